"""TensorFlow Lite Micro: the memory that a model takes, and whether it answers as LiteRT does."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

REQUIRES = ("tflite-micro>=0.dev20250101", "ai-edge-litert>=2.1")
ARENA = 64 << 20  # more than any model for a microcontroller; what it takes of it is what is told


def estimate(model: str, *, data: str, arena_kb: int = 0, samples: int = 32, progress=None) -> dict:
    """Load a TFLite file, read the size of its arena, and run ``samples`` of the feed folder ``data`` beside LiteRT.

    ``arena_kb`` is what the device has for it (0: not known). Returns loads (with the reason where it does not),
    arena_bytes (of a 64-bit build, whose pointers make it a little larger than a Cortex-M's), fits, and how the
    answers differ from LiteRT's: "litert" stands for its fast kernels, which round otherwise, "reference" for those
    that round as this runtime does. Of each: on how many samples they are the same, and by output max_abs (in its own
    units) and max_lsb (steps of a quantized output; None of a float one). Raises ValueError for a file that LiteRT
    cannot load.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
    from tflite_micro.python.tflite_micro import runtime

    from lepton_edge.runtimes import litert

    fast = litert.load(model)
    plain = Interpreter(model_path=model, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    plain.allocate_tensors()
    told: dict[str, Any] = {
        "version": metadata.version("tflite-micro"),
        "against": f"ai-edge-litert {fast.info['version']}",
    }
    try:
        with _stderr() as said:
            micro = runtime.Interpreter.from_file(model, arena_size=ARENA)
            micro.print_allocations()
            arena = re.search(r"Arena allocation total (\d+) bytes", _text(said))
            if arena is None:
                raise ValueError(f"{Path(model).name}: TensorFlow Lite Micro did not tell the size of its arena")
            size = int(arena[1])
            others = {"litert": fast, "reference": litert.Session(plain, {})}
            answers = _beside(micro, others, data, samples, progress)
    except RuntimeError as e:
        return {**told, "loads": False, "reason": _reason(_text(said)) or str(e)}
    fits = size <= arena_kb * 1024 if arena_kb else None
    return {**told, "loads": True, "arena_bytes": size, "fits": fits, **answers}


def _beside(micro: Any, others: dict[str, Any], data: str, samples: int, progress: Any) -> dict[str, Any]:
    """How the answers of ``micro`` differ from those of each of ``others``, on the first samples of a feed folder."""
    import numpy as np

    from lepton_edge import worker

    count, arrays, whole = worker._open_feed(data)
    count = min(count, samples)
    ports = others["litert"].outputs
    same = dict.fromkeys(others, 0)
    worst = {name: np.zeros(len(ports)) for name in others}
    for i in range(count):
        feeds = worker._sample(others["litert"], arrays, whole, i)
        for k, spec in enumerate(others["litert"].inputs):
            micro.set_input(feeds[spec["name"]], k)
        micro.invoke()
        got = [micro.get_output(k).astype(np.float64) for k in range(len(ports))]
        for name, session in others.items():
            wanted = session.run(feeds)
            off = [np.abs(got[k] - wanted[spec["name"]]).max(initial=0.0) for k, spec in enumerate(session.outputs)]
            worst[name] = np.maximum(worst[name], off)
            same[name] += not any(off)
        if progress:
            progress(i + 1, count, "samples")
    told: dict[str, Any] = {"samples": count}
    for name in others:
        told[name] = {"same": same[name], "outputs": {}}
        for spec, off in zip(ports, worst[name], strict=True):
            step = spec["quantization"][0] if "quantization" in spec else None
            told[name]["outputs"][spec["name"]] = {
                "max_abs": float(off) * (step or 1.0),
                "max_lsb": round(off) if step else None,
            }
    return told


@contextmanager
def _stderr() -> Iterator[IO[bytes]]:
    """The process's stderr, below Python's: that is where the library writes. The file stays readable afterwards."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - read by those who catch what was raised meanwhile
    old = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield file
    finally:
        os.dup2(old, 2)
        os.close(old)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _reason(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    telling = [x for x in lines if "Didn't find op" in x or "not supported" in x or "Failed to" in x]
    return (telling or lines or [""])[0][:200]
