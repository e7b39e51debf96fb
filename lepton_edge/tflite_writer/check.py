"""Runs a written file against ONNX Runtime: same seeded input, outputs compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError, NoWay
from lepton_edge.tflite_writer.layout import Perm, store

Feeds = dict[str, np.ndarray]


def seeded_inputs(specs: dict[str, tuple[tuple[int, ...], np.dtype]], seed: int = 0) -> Iterator[Feeds]:
    """Feeds to try in turn: normal noise, then [0, 1) (logs and roots), with large, small and zero integers."""
    for k, (high, positive) in enumerate(((100, False), (2, False), (100, True), (2, True), (1, True))):
        rng = np.random.default_rng(seed + k)
        yield {name: _draw(rng, shape, dtype, high, positive) for name, (shape, dtype) in specs.items()}


def _draw(rng: Any, shape: tuple[int, ...], dtype: np.dtype, high: int, positive: bool) -> np.ndarray:
    if dtype.kind == "f":
        return (rng.random(shape) if positive else rng.standard_normal(shape)).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind not in "iu":
        raise LeptonError(f"an input of type {dtype} cannot be fed", hint="TFLite inputs are numbers or booleans")
    return rng.integers(0, high, shape).astype(dtype)


def session(model: Any) -> Any:
    """An ONNX Runtime session of a ModelProto, or of a file, without optimisations, one thread."""
    import tempfile

    import onnxruntime as ort

    from lepton_edge.tflite_writer.load import save

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.enable_cpu_mem_arena = False
    if isinstance(model, Path):
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory(prefix="lepton-") as folder:
        path = Path(folder) / "m.onnx"
        save(model, path)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def reference(model: Any, feeds: Feeds, names: list[str]) -> Feeds:
    """The named outputs as ONNX Runtime computes them; tries gentler integers where it refuses the first."""
    run = session(model)
    specs = {k: (v.shape, v.dtype) for k, v in feeds.items()}
    failure: Exception | None = None
    for trial in [feeds, *seeded_inputs(specs, seed=1)]:
        try:
            return dict(zip(names, run.run(names, trial), strict=True))
        except Exception as error:  # ONNX Runtime's errors share no public base
            failure = error
    text = " ".join(str(failure).split())[:300]
    raise LeptonError(f"ONNX Runtime cannot run the model: {text}", hint="check the ONNX file first") from failure


def interpreter(data: bytes | Path) -> Any:
    """An allocated LiteRT interpreter of a file, or its bytes; LeptonError says what it objects to."""
    from ai_edge_litert.interpreter import Interpreter

    source: dict[str, Any] = {"model_path": str(data)} if isinstance(data, Path) else {"model_content": data}
    try:
        made = Interpreter(**source, num_threads=1)
        made.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise NoWay(f"LiteRT does not load the converted model: {text}", hint="please report the model") from error
    return made


def run_tflite(made: Any, feeds: Feeds) -> Feeds:
    """Outputs by signature name; inputs by signature name, in the file's own layout."""
    made.reset_all_variables()
    return made.get_signature_runner("serving_default")(**feeds)


def compare(want: np.ndarray, got: np.ndarray) -> dict[str, float]:
    """max_abs, cosine and SQNR (dB, 300 where exact) over the elements that are finite in the reference."""
    if want.dtype.kind in "biu":
        differing = float(np.mean(want != got)) if want.size else 0.0
        return {"max_abs": differing, "cosine": 1.0 - differing, "sqnr_db": 300.0 if differing == 0 else 0.0}
    same = np.array_equal(np.isnan(want), np.isnan(got)) and np.array_equal(
        np.where(np.isinf(want), want, 0), np.where(np.isinf(got), got, 0)
    )
    finite = np.isfinite(want) & np.isfinite(got)
    a, b = want[finite].astype(np.float64), got[finite].astype(np.float64)
    if not same:
        return {"max_abs": float("inf"), "cosine": 0.0, "sqnr_db": float("-inf")}
    power, noise = float(a @ a), float((a - b) @ (a - b))
    norm = float(np.sqrt(power * (b @ b)))
    return {
        "max_abs": float(np.abs(a - b).max(initial=0.0)),
        "cosine": float(a @ b) / norm if norm else float(noise == 0),
        "sqnr_db": 300.0 if noise == 0 else 10 * float(np.log10(max(power, 1e-300) / noise)),
    }


def _close(want: np.ndarray, figures: dict[str, float], limit_db: float) -> bool:
    if want.dtype.kind in "biu":
        return figures["cosine"] >= 0.99 or want.size == 0
    finite = want[np.isfinite(want)]
    scale = float(np.abs(finite).max(initial=0.0))
    tiny = figures["max_abs"] <= 2e-6 * max(1.0, scale)
    return figures["sqnr_db"] >= limit_db or tiny


def verify(
    data: bytes | Path,
    model: Any,
    inputs: dict[str, tuple[str, Perm | None, np.dtype, tuple[int, ...]]],
    outputs: dict[str, tuple[str, Perm | None]],
    limit_db: float,
) -> dict[str, Any]:
    """Compares file and model; the dicts map tflite name -> (onnx name, perm[, onnx dtype, onnx shape]).

    Raises LeptonError where an output's SQNR is under `limit_db`; returns the worst figures.
    """
    from lepton_edge.tflite_writer.load import release

    specs = {source: (shape, dtype) for source, _, dtype, shape in inputs.values()}
    shown: Any = model
    hidden: list[str] = []
    if any(dtype.kind in "iu" for _, dtype in specs.values()):
        shown, hidden = _with_rounded(model)
    feeds, wanted = _trial(session(shown), specs, [source for source, _ in outputs.values()], hidden)
    release()
    made = interpreter(data)
    details = made.get_signature_runner("serving_default").get_input_details()
    given = {}
    for name, (source, perm, _, _) in inputs.items():
        if name in details:
            value = feeds.pop(source)
            value = value if perm is None else store(value, perm)
            given[name] = _as_stored(value, details[name])
    try:
        got = run_tflite(made, given)
    except (ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise NoWay(f"LiteRT does not run the converted model: {text}", hint="please report the model") from error
    told = made.get_signature_runner("serving_default").get_output_details()
    return _worst(wanted, got, outputs, limit_db, {name: detail["quantization"] for name, detail in told.items()})


def _as_stored(value: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """A port's real numbers as its file stores them."""
    scale, zero = detail["quantization"]
    if scale and value.dtype.kind == "f" and detail["dtype"] != value.dtype:
        limits = np.iinfo(detail["dtype"])
        value = np.clip(np.rint(value / np.float32(scale)) + zero, limits.min, limits.max)
    return value.astype(detail["dtype"], copy=False)


def _real(value: np.ndarray, quantization: tuple[float, int] | None) -> np.ndarray:
    """The real numbers that a port's integers stand for."""
    if quantization is None or not quantization[0] or value.dtype.kind == "f":
        return value
    return (value.astype(np.float32) - quantization[1]) * np.float32(quantization[0])


def _worst(
    wanted: Feeds,
    got: Feeds,
    outputs: dict[str, tuple[str, Perm | None]],
    limit_db: float,
    scales: dict[str, tuple[float, int]],
) -> dict[str, Any]:
    worst: dict[str, Any] = {"sqnr_db": 300.0, "max_abs": 0.0, "cosine": 1.0}
    for name, (source, perm) in outputs.items():
        want = wanted[source] if perm is None else store(wanted[source], perm)
        if got[name].shape != want.shape:
            raise LeptonError(
                f"output '{name}' has shape {got[name].shape} instead of {want.shape}", hint="please report it"
            )
        figures = compare(want, _real(got[name], scales.get(name)))
        if not _close(want, figures, limit_db):
            raise NoWay(
                f"the converted model disagrees with ONNX Runtime at output '{name}': "
                f"SQNR {figures['sqnr_db']:.1f} dB, max error {figures['max_abs']:.3g}",
                hint="nothing was written; please report the model",
            )
        worst["sqnr_db"] = min(worst["sqnr_db"], figures["sqnr_db"])
        worst["cosine"] = min(worst["cosine"], figures["cosine"])
        worst["max_abs"] = max(worst["max_abs"], figures["max_abs"])
    return worst


def _with_rounded(model: Any) -> tuple[Any, list[str]]:
    """The model with everything that it rounds to integers among its outputs, and the names of those tensors.

    Random integers in an attention mask may give NaN, which rounding would hide: each runtime makes another integer
    of it.
    """
    import onnx

    proto = onnx.load(str(model)) if isinstance(model, Path) else model
    rounds = ("QuantizeLinear", "DynamicQuantizeLinear")
    taken = {port.name for port in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer)}
    read = dict.fromkeys(node.input[0] for node in proto.graph.node if node.op_type in rounds)
    names = [name for name in read if name not in taken]
    if not names:
        return model, []
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return shown, names


def _trial(
    run: Any, specs: dict[str, tuple[tuple[int, ...], np.dtype]], names: list[str], hidden: list[str]
) -> tuple[Feeds, Feeds]:
    """The first seeded input that ONNX Runtime takes and that gives finite outputs, and those outputs.

    What is ``hidden`` behind them has to be finite, too.
    """
    kept, failure = None, ""
    for feeds in seeded_inputs(specs):
        try:
            values = run.run([*names, *hidden], feeds)
        except Exception as error:  # ONNX Runtime's errors share no public base: gentler integers come next
            failure = " ".join(str(error).split())[:200]
            continue
        kept = feeds, dict(zip(names, values[: len(names)], strict=True))
        if all(v.dtype.kind != "f" or np.isfinite(v).all() for v in values):
            break
    if kept is None:
        raise LeptonError(f"ONNX Runtime cannot run the model: {failure}", hint="check the ONNX file first")
    return kept
