"""The ONNX to TFLite writer, operator by operator: small ONNX graphs, converted, run in LiteRT and compared."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writer_graphs import I64, SINGLE, one, rand, written

from lepton_edge.tflite_writer import layout


@pytest.mark.parametrize("name", SINGLE)
def test_one_operator_agrees_with_onnxruntime(name: str, tmp_path: Path) -> None:
    result, _ = written(tmp_path, SINGLE[name])
    assert result["parity"]["sqnr_db"] >= 60 or result["parity"]["max_abs"] < 1e-5


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 3)] * 4), size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    dilation=st.integers(1, 2), op=st.sampled_from(["Conv", "Depthwise", "MaxPool", "AveragePool", "AverageAll"]),
    ceil=st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_windows_of_any_shape(tmp_path, kernel, stride, pads, size, dilation, op, ceil) -> None:
    pads = [min(p, k - 1) for p, k in zip(pads, kernel * 2, strict=True)]
    attrs = {"kernel_shape": list(kernel), "strides": list(stride), "pads": pads}
    reach = [(k - 1) * dilation + 1 for k in kernel]
    if op in ("Conv", "Depthwise") and all(size[i] + pads[i] + pads[i + 2] >= reach[i] for i in (0, 1)):
        weights = rand(4, 2, *kernel) if op == "Conv" else rand(4, 1, *kernel)
        group = 1 if op == "Conv" else 2
        proto = one("Conv", [(1, 2, *size)], {"w": weights}, dilations=[dilation] * 2, group=group, **attrs)
    elif op == "MaxPool":
        proto = one("MaxPool", [(1, 2, *size)], ceil_mode=int(ceil), **attrs)
    else:
        proto = one(
            "AveragePool",
            [(1, 2, *size)],
            count_include_pad=int(op == "AverageAll"),
            ceil_mode=int(ceil),
            opset=19,
            **attrs,
        )
    written(tmp_path, proto)


@given(
    kernel=st.integers(1, 5), stride=st.integers(1, 3), pad=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    extra=st.integers(0, 2), size=st.integers(2, 6),
)  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_transposed_windows_of_any_shape(tmp_path, kernel, stride, pad, extra, size) -> None:
    extra, pad = min(extra, stride - 1), [min(p, (kernel - 1) // 2) for p in pad]
    written(tmp_path, one(
        "ConvTranspose", [(1, 3, size, size + 1)], {"w": rand(3, 2, kernel, kernel)}, strides=[stride] * 2,
        pads=[pad[0], pad[1], pad[1], pad[0]], output_padding=[extra, extra],
    ))  # fmt: skip


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("where", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("size", [(16, 20), (4, 5), (13, 7)])
def test_resize(tmp_path: Path, mode: str, where: str, size: tuple[int, int]) -> None:
    proto = one(
        "Resize", [(1, 3, 8, 10)], {"sizes": I64([1, 3, *size])}, order=["x0", "", "", "sizes"], mode=mode,
        coordinate_transformation_mode=where,
    )  # fmt: skip
    _, ops = written(tmp_path, proto)
    if mode == "linear" and where in ("half_pixel", "align_corners"):
        assert ops == ["RESIZE_BILINEAR"]


@given(st.lists(st.sampled_from([1, 1, 2, 3, 4]), min_size=1, max_size=4), st.data())
@settings(max_examples=150, deadline=None)
def test_reshape_without_moving_is_right(shape: list[int], data) -> None:
    before = tuple(shape)
    perm = tuple(data.draw(st.permutations(range(len(before)))))
    total, after = math.prod(before), []
    while total > 1:
        after.append(data.draw(st.sampled_from([d for d in range(2, total + 1) if total % d == 0])))
        total //= after[-1]
    for _ in range(data.draw(st.integers(0, 2))):
        after.insert(data.draw(st.integers(0, len(after))), 1)
    after = tuple(after) or (1,)
    value = np.arange(math.prod(before)).reshape(before)
    target = layout.reshape(before, perm, after)
    if target is not None:
        stored = layout.store(value, perm).reshape(layout.stored_shape(after, target))
        np.testing.assert_array_equal(stored, layout.store(value.reshape(after), target))
    nearest = layout.gather_blocks(before, perm, after)
    assert layout.reshape(before, nearest, after) is not None
