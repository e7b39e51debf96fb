"""Run a net in ONNX Runtime and hand out the values of inner tensors, in groups that fit a memory budget."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.quant.net import Net, to_proto

BUDGET = 1 << 30
LARGE = 1_500_000_000  # a protobuf holds less than 2 GiB

Sample = dict[str, np.ndarray]


class Runner:
    """An ONNX Runtime CPU session of a net; `fetch` names what run() returns, in order. Outputs by default."""

    def __init__(
        self,
        net: Net,
        fetch: Sequence[str] | None = None,
        *,
        threads: int = 0,
        plain: bool = False,
        weights_as_they_are: bool = False,
    ) -> None:
        """`plain` turns graph optimisation off; `weights_as_they_are` only that ONNX Runtime rounds the float weights
        of a layer with quantized inputs. Raises LeptonError where ONNX Runtime refuses the graph."""
        import onnx
        import onnxruntime as ort

        self.fetch = list(net.outputs if fetch is None else fetch)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or min(os.cpu_count() or 1, 4)
        if plain:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings: dict[str, Any] = {"providers": ["CPUExecutionProvider"]}
        if weights_as_they_are:
            settings["disabled_optimizers"] = ["WeightBiasQuantization"]
        model = to_proto(net, [name for name in self.fetch if name not in net.inputs])
        try:
            if model.ByteSize() < LARGE:
                self._session = ort.InferenceSession(model.SerializeToString(), options, **settings)
            else:
                with tempfile.TemporaryDirectory(prefix="lepton-") as folder:
                    onnx.save(model, str(Path(folder) / "m.onnx"), save_as_external_data=True, location="m.data")
                    self._session = ort.InferenceSession(str(Path(folder) / "m.onnx"), options, **settings)
        except Exception as error:  # ONNX Runtime's exceptions derive straight from Exception
            raise LeptonError(f"ONNX Runtime does not accept the graph: {_line(error)}") from error

    def run(self, sample: Sample) -> list[np.ndarray]:
        """The fetched tensors for one sample. Raises LeptonError where the model cannot run on it."""
        asked = [name for name in self.fetch if name not in sample]
        try:
            values = dict(zip(asked, self._session.run(asked, sample) if asked else [], strict=True))
        except Exception as error:  # as above
            raise LeptonError(
                f"the model does not run on a sample: {_line(error)}", "check shapes and dtypes of the data"
            ) from error
        return [sample[name] if name in sample else values[name] for name in self.fetch]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def groups(net: Net, tensors: Sequence[str], sample: Sample, budget: int = BUDGET) -> list[list[str]]:
    """`tensors` in groups whose values for one sample take at most half of `budget` bytes (one at least)."""
    sizes = {name: _bytes(net, name) for name in tensors}
    unknown = [name for name, size in sizes.items() if size is None]
    for at in range(0, len(unknown), 8):
        part = unknown[at : at + 8]
        sizes.update(zip(part, (value.nbytes for value in Runner(net, part).run(sample)), strict=True))
    made: list[list[str]] = [[]]
    held = 0
    for name in tensors:
        size = sizes[name] or 0
        if made[-1] and held + size > budget // 2:
            made.append([])
            held = 0
        made[-1].append(name)
        held += size
    return made if made[0] else []


def _bytes(net: Net, name: str) -> int | None:
    """Size of a float32 tensor for one sample (a free first axis counts 1), None where the shape isn't known."""
    shape = net.shapes.get(name)
    if shape is None or any(d is None for d in shape[1:]):
        return None
    return 4 * int(np.prod([1 if d is None else d for d in shape], dtype=np.int64))


def each(
    net: Net,
    tensors: Sequence[str],
    samples: Iterable[Sample],
    take: Callable[[str, np.ndarray], None],
    *,
    budget: int = BUDGET,
    told: Callable[[int], None] | None = None,
) -> None:
    """Call `take(tensor, values)` for every tensor and sample; `samples` is read once for each group."""
    first = next(iter(samples), None)
    if first is None or not tensors:
        return
    made = groups(net, tensors, first, budget)
    done = 0
    for part in made:
        runner = Runner(net, part)
        for sample in samples:
            for name, value in zip(part, runner.run(sample), strict=True):
                take(name, value)
            done += 1
            if told:
                told(done // len(made))


def finite(tensor: str, value: np.ndarray) -> np.ndarray:
    """`value` of a tensor for a sample. Raises LeptonError where it holds NaN or infinity."""
    if not np.isfinite(value).all():
        raise not_finite(tensor)
    return value


def not_finite(tensor: str) -> LeptonError:
    """The error of a tensor that holds NaN or infinity."""
    return LeptonError(
        f"tensor '{tensor}' holds NaN or infinity for a calibration sample", "check the samples and their preprocessing"
    )
