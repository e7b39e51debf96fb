"""From which rank down two thin products are faster than one: measured in ONNX Runtime, on one thread, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

ROUNDS = 11
ROUND_S = 2e-3  # at least, of one side in a round
FASTER = 0.97  # of the time of the layer as it is

# Rows, inputs, outputs, rank: the time of the factors over that of the layer.
Ratio = Callable[[int, int, int, int], float]


def fastest(rows: int, inputs: int, outputs: int, ranks: tuple[int, ...], ratio: Ratio | None = None) -> int:
    """The largest of ascending `ranks` that is faster, halving in on it; 0 where none is."""
    ratio = ratio or measured
    low, high = 0, len(ranks)
    while low < high:  # all of ranks[:low] are faster
        middle = (low + high) // 2
        if ratio(rows, inputs, outputs, ranks[middle]) <= FASTER:
            low = middle + 1
        else:
            high = middle
    return ranks[low - 1] if low else 0


@cache
def measured(rows: int, inputs: int, outputs: int, rank: int) -> float:
    """The median of paired rounds: time of two products over that of one."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    sides = [_session([inputs, outputs], rng), _session([inputs, rank, outputs], rng)]
    counts = [max(1, round(ROUND_S / min(_timed(side, x, 1) for _ in range(3)))) for side in sides]
    ratios = []
    for _ in range(ROUNDS):
        whole, parts = (_timed(side, x, count) / count for side, count in zip(sides, counts, strict=True))
        ratios.append(parts / whole)
    return statistics.median(ratios)


def _session(sizes: list[int], rng: np.random.Generator) -> Any:
    """An ONNX Runtime session of products with matrices of these sizes."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    pairs = list(pairwise(sizes))
    weights = [rng.standard_normal(pair).astype(np.float32) for pair in pairs]
    nodes = [helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"x{k + 1}"]) for k in range(len(pairs))]
    ends = [
        helper.make_tensor_value_info(f"x{k}", TensorProto.FLOAT, [None, size])
        for k, size in ((0, sizes[0]), (len(pairs), sizes[-1]))
    ]
    graph = helper.make_graph(
        nodes, "products", ends[:1], ends[1:],
        [numpy_helper.from_array(w, f"w{k}") for k, w in enumerate(weights)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _timed(session: Any, x: np.ndarray, count: int) -> float:
    """Seconds of `count` runs."""
    start = time.perf_counter()
    for _ in range(count):
        session.run(None, {"x0": x})
    return time.perf_counter() - start
