"""Every scheme in every format on small models: how near to float, how small, and what is refused with which reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from test_runtimes import needs

for module in ("ai_edge_litert", "onnxruntime", "openvino"):
    pytest.importorskip(module)
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402, TID253

from lepton_edge import registry  # noqa: E402
from lepton_edge.errors import LeptonError, UsageError  # noqa: E402
from lepton_edge.feeds import feed_from_arrays  # noqa: E402
from lepton_edge.passes import quantize_onnx, quantize_openvino, quantize_tflite  # noqa: E402
from lepton_edge.quant import rounding, schemes  # noqa: E402
from lepton_edge.quant.plain_dynamic import plain  # noqa: E402
from lepton_edge.record import scheme as word  # noqa: E402

RUNTIMES = {"onnx": "onnxruntime", "tflite": "litert", "openvino": "openvino"}
SUFFIX = {"onnx": ".onnx", "tflite": ".tflite", "openvino": ".xml"}


def save(path, nodes, inputs, consts, opset=17):
    graph = helper.make_graph(
        nodes,
        "m",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in consts.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)


def conv_net(path):
    """Convolution, depthwise, pointwise with a residual sum, mean, dense; inputs are smooth, as images are."""
    rng = np.random.default_rng(0)

    def weights(*shape):
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    consts = {
        "w1": weights(16, 3, 3, 3), "b1": weights(16), "w2": weights(16, 1, 3, 3), "b2": weights(16),
        "w3": weights(16, 16, 1, 1), "b3": weights(16), "w4": weights(64, 16), "b4": weights(64),
        "w5": weights(64, 10),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w2", "b2"], ["c"], pads=[1] * 4, group=16),
        node("Relu", ["c"], ["d"]),
        node("Conv", ["d", "w3", "b3"], ["e"]),
        node("Add", ["e", "b"], ["f"]),
        node("GlobalAveragePool", ["f"], ["g"]),
        node("Flatten", ["g"], ["h"]),
        node("Gemm", ["h", "w4", "b4"], ["i"], transB=1),
        node("Relu", ["i"], ["j"]),
        node("MatMul", ["j", "w5"], ["y"]),
    ]
    save(path, nodes, {"x": (TensorProto.FLOAT, [1, 3, 24, 24])}, consts)
    coarse = rng.normal(size=(48, 3, 4, 4))
    images = np.kron(coarse, np.ones((1, 1, 6, 6))) + 0.1 * rng.normal(size=(48, 3, 24, 24))
    return {"x": images.astype(np.float32)}


def transformer(path):
    """Token embedding, one attention block of one head, a feed-forward block, a projection."""
    rng = np.random.default_rng(1)
    width, tokens = 64, 12

    def weights(*shape):
        return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    consts = {"table": rng.normal(size=(200, width)).astype(np.float32), "scale": np.float32(1 / 8).reshape(())}
    consts |= {name: weights(width, width) for name in ("q", "k", "v", "o", "p")}
    consts |= {"up": weights(width, 4 * width), "down": weights(4 * width, width)}
    consts |= {"bq": 0.1 * weights(width), "bu": 0.1 * weights(4 * width), "g": np.ones(width, np.float32)}
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "x"], ["e"]),
        node("MatMul", ["e", "q"], ["q0"]),
        node("Add", ["q0", "bq"], ["q1"]),
        node("MatMul", ["e", "k"], ["k1"]),
        node("MatMul", ["e", "v"], ["v1"]),
        node("Transpose", ["k1"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q1", "kt"], ["s0"]),
        node("Mul", ["s0", "scale"], ["s1"]),
        node("Softmax", ["s1"], ["s"], axis=-1),
        node("MatMul", ["s", "v1"], ["m"]),
        node("MatMul", ["m", "o"], ["m1"]),
        node("Add", ["m1", "e"], ["r"]),
        node("LayerNormalization", ["r", "g"], ["n"], axis=-1),
        node("MatMul", ["n", "up"], ["u0"]),
        node("Add", ["u0", "bu"], ["u1"]),
        node("Relu", ["u1"], ["u"]),
        node("MatMul", ["u", "down"], ["d"]),
        node("Add", ["d", "n"], ["z"]),
        node("MatMul", ["z", "p"], ["y"]),
    ]
    save(path, nodes, {"x": (TensorProto.INT64, [1, tokens])}, consts)
    return {"x": rng.integers(0, 200, (48, tokens))}


MODELS = {"conv": conv_net, "transformer": transformer}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The float model, its inputs and, made once, the ONNX file of a scheme with or without samples."""
    folder = tmp_path_factory.mktemp("schemes")
    held = {}

    def get(kind, scheme="float", *, samples=True, **options):
        if (kind, "float") not in held:
            path = folder / f"{kind}.onnx"
            arrays = MODELS[kind](path)
            feed_from_arrays({k: v[:32] for k, v in arrays.items()}, None, folder / f"{kind}-feed", source="test")
            held[kind, "float"] = (path, {k: v[32:] for k, v in arrays.items()}, {})
        path, unseen, _ = held[kind, "float"]
        key = (kind, scheme, samples, *options.items())
        if scheme != "float" and key not in held:
            target = folder / f"{'-'.join(str(k) for k in key if k is not True)}.onnx".replace("'", "")
            data = str(folder / f"{kind}-feed") if samples else ""
            told = quantize_onnx.run(str(path), str(target), scheme=scheme, data=data, **options)
            held[key] = (target, unseen, told)
        return held[(kind, "float") if scheme == "float" else key]

    return get


def as_format(path, format_):
    """The file in another format, made once."""
    target = path.with_suffix(SUFFIX[format_])
    if not target.exists():
        step = next(s for s in registry.steps() if s.name == f"onnx_to_{format_}")
        spec = importlib.util.spec_from_file_location(step.name, step.file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.run(str(path), str(target))
    return target


def answers(path, format_, unseen):
    session = needs(RUNTIMES[format_]).load(str(path))
    port = session.inputs[0]
    found = []
    for sample in unseen["x"]:
        x = sample[None].astype(port["dtype"])
        x = x.transpose(0, 2, 3, 1) if x.ndim == 4 and format_ == "tflite" else x
        found.append(session.run({port["name"]: np.ascontiguousarray(x)})["y"])
    return np.concatenate(found)


def sqnr(kind, path, format_, unseen, made):
    want = answers(made(kind)[0], "onnx", unseen)
    return 10 * np.log10((want**2).sum() / ((want - answers(path, format_, unseen)) ** 2).sum())


def size(path):
    files = (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
    return sum(p.stat().st_size for p in files)


def operators(path):
    """TFLite operators with their versions, and the types of the constants they read."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    names = {v: k for k, v in vars(schema.BuiltinOperator).items()}
    types = {v: k for k, v in vars(schema.TensorType).items()}
    graph, found = model.subgraphs[0], []
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        kinds = [types[graph.tensors[i].type] for i in op.inputs if i >= 0]
        found.append((names[max(code.builtinCode, code.deprecatedBuiltinCode)], code.version, kinds))
    return found


# dB against float on samples that calibration has not seen
BARS = {
    ("conv", "w8a16"): 45, ("conv", "w8"): 35, ("conv", "dynamic"): 28, ("conv", "w4"): 12,
    ("transformer", "w8a16"): 38, ("transformer", "w8"): 33, ("transformer", "dynamic"): 25, ("transformer", "w4"): 12,
}  # fmt: skip


@pytest.mark.parametrize("format_", list(RUNTIMES))
@pytest.mark.parametrize(("kind", "scheme"), list(BARS))
def test_every_scheme_is_near_to_float_in_every_format(made, kind, scheme, format_):
    source, unseen, told = made(kind, scheme)
    assert told["scheme"] == scheme and told["samples"] == 32 and told["quantized_tensors"] > 0
    reached = sqnr(kind, as_format(source, format_), format_, unseen, made)
    print(kind, scheme, format_, round(reached, 1))
    assert reached > BARS[kind, scheme]


@pytest.mark.parametrize("format_", list(RUNTIMES))
@pytest.mark.parametrize(("scheme", "share"), [("w8a16", 0.6), ("dynamic", 0.37), ("w8", 0.37), ("w4", 0.30)])
def test_files_shrink_as_the_scheme_says(made, scheme, share, format_):
    """The embedding is a fifth of the weights: w4 keeps it in 8 bits, w8a16 in 32."""
    float_ = size(as_format(made("transformer")[0], format_))
    graph = {"onnx": 3_000, "tflite": 14_000, "openvino": 60_000}[format_]  # what isn't weights
    assert size(as_format(made("transformer", scheme)[0], format_)) < share * float_ + graph


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize(("scheme", "bar"), [("dynamic", 22), ("w8", 28), ("w4", 8)])
def test_schemes_that_need_no_samples(made, kind, scheme, bar):
    source, unseen, told = made(kind, scheme, samples=False)
    assert told["samples"] == 0 and "nearest" in told["notes"][0]
    assert sqnr(kind, source, "onnx", unseen, made) > bar


def test_samples_make_four_bits_better(made):
    by = {s: sqnr("transformer", *_onnx(made("transformer", "w4", samples=s)), made) for s in (True, False)}
    assert by[True] > by[False] + 1


def _onnx(found):
    return found[0], "onnx", found[1]


def test_w8a16_is_int16_all_through_in_tflite(made):
    source, unseen, _ = made("conv", "w8a16")
    assert sqnr("conv", as_format(source, "tflite"), "tflite", unseen, made) > 50
    found = operators(as_format(source, "tflite"))
    names = [name for name, _, _ in found]
    assert names.count("QUANTIZE") == 1 and names.count("DEQUANTIZE") == 1
    convs = [kinds for name, _, kinds in found if "CONV" in name or name == "FULLY_CONNECTED"]
    assert len(convs) == 5 and all(kinds == ["INT16", "INT8", "INT64"] for kinds in convs)
    assert ("ADD", ["INT16", "INT16"]) in [(name, kinds) for name, _, kinds in found]


def test_w8a16_leaves_an_operator_without_an_int16_kernel_in_float(tmp_path):
    rng = np.random.default_rng(2)
    w = rng.normal(size=(4, 4, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("DepthToSpace", ["a"], ["b"], blocksize=2),
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("Add", ["c", "c"], ["y"]),
    ]
    save(tmp_path / "m.onnx", nodes, {"x": (TensorProto.FLOAT, [1, 4, 4, 4])}, {"w": w})
    x = rng.normal(size=(8, 4, 4, 4)).astype(np.float32)
    feed_from_arrays({"x": x}, None, tmp_path / "feed", source="test")
    quantize_onnx.run(str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), scheme="w8a16", data=str(tmp_path / "feed"))
    found = operators(as_format(tmp_path / "q.onnx", "tflite"))
    assert ("DEPTH_TO_SPACE", ["FLOAT32"]) in [(name, kinds) for name, _, kinds in found]
    assert ("LOGISTIC", ["INT16"]) in [(name, kinds) for name, _, kinds in found]


def test_dynamic_is_integer_products_everywhere(made):
    source, _, _ = made("transformer", "dynamic")
    kinds = [n.op_type for n in onnx.load(source).graph.node]
    assert kinds.count("MatMulInteger") == 7 and kinds.count("DynamicQuantizeLinear") == 5  # q, k and v share theirs
    found = operators(as_format(source, "tflite"))
    products = [(version, types) for name, version, types in found if name == "FULLY_CONNECTED"]
    assert products == [(12, ["FLOAT32", "INT8", "FLOAT32"])] * 7
    conv = operators(as_format(made("conv", "dynamic")[0], "tflite"))
    assert [types[1] for name, _, types in conv if name == "CONV_2D"] == ["INT8", "INT8"]
    assert [types[1] for name, _, types in conv if name == "DEPTHWISE_CONV_2D"] == ["FLOAT32"]


def test_dynamic_products_are_fused_in_onnx_runtime(made, tmp_path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(made("transformer", "dynamic")[0]), options, providers=["CPUExecutionProvider"])
    kinds = {n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node}
    assert kinds & {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"} and "MatMulInteger" not in kinds


def test_plain_dynamic_is_the_float_product_of_the_same_weights(made):
    source, unseen, _ = made("transformer", "dynamic")
    model = onnx.load(source)
    assert plain(model) and not plain(model)
    assert not {"MatMulInteger", "DynamicQuantizeLinear"} & {n.op_type for n in model.graph.node}
    target = source.with_name("plain.onnx")
    onnx.save(model, target)
    assert sqnr("transformer", target, "onnx", unseen, made) > 30


def test_w4_is_four_bits_in_every_file(made):
    source, _, _ = made("transformer", "w4")
    types = [t.data_type for t in onnx.load(source).graph.initializer]
    assert types.count(TensorProto.INT4) == 7
    xml = as_format(source, "openvino").read_text()
    assert xml.count('element_type="i4"') + xml.count('element_type="u4"') == 7
    found = operators(as_format(source, "tflite"))
    assert [(v, k[1]) for name, v, k in found if name == "FULLY_CONNECTED"] == [(13, "INT4")] * 7


def test_w4_per_channel(made):
    source, unseen, told = made("transformer", "w4", block=0)
    assert "per channel" in told["notes"][0]
    for format_ in RUNTIMES:
        assert sqnr("transformer", as_format(source, format_), format_, unseen, made) > 9
    found = operators(as_format(source, "tflite"))
    assert [(v, k[1]) for name, v, k in found if name == "FULLY_CONNECTED"] == [(12, "INT4")] * 7


def test_blocks_that_tflite_cannot_run_are_refused_with_the_reason(made):
    source, unseen, _ = made("transformer", "w4", block=16)
    assert sqnr("transformer", source, "onnx", unseen, made) > 12
    with pytest.raises(LeptonError, match=r"w4 in blocks of 16 is not possible in tflite: MatMul .* FULLY_CONNECTED"):
        as_format(source, "tflite")


def test_openvino_is_told_how_to_round_activations(made):
    for scheme, group in (("dynamic", "32"), ("w8", "0"), ("w4", "32")):
        text = as_format(made("transformer", scheme)[0], "openvino").read_text()
        assert f'<DYNAMIC_QUANTIZATION_GROUP_SIZE value="{group}"' in text


@pytest.mark.parametrize("format_", list(RUNTIMES))
def test_bfloat16_is_refused_with_the_reason_of_the_format(format_):
    with pytest.raises(LeptonError, match=f"scheme bfloat16 is not possible in {format_}: .*bfloat16"):
        schemes.require({"scheme": "bfloat16"}, format_)


def test_what_cannot_be_made_is_said(made, tmp_path):
    source = str(made("conv")[0])
    with pytest.raises(UsageError, match="unknown scheme 'w5'"):
        quantize_onnx.run(source, str(tmp_path / "q.onnx"), scheme="w5")
    for scheme in ("w8a8", "w8a16"):
        with pytest.raises(LeptonError, match=f"scheme {scheme} needs calibration samples"):
            quantize_onnx.run(source, str(tmp_path / "q.onnx"), scheme=scheme)
    with pytest.raises(LeptonError, match="block is 24: runtimes take powers of two"):
        quantize_onnx.run(source, str(tmp_path / "q.onnx"), scheme="w4", block=24)
    with pytest.raises(LeptonError, match=r"w4 finds no MatMul or Gemm .* in blocks of 128"):
        quantize_onnx.run(source, str(tmp_path / "q.onnx"), scheme="w4", block=128)
    with pytest.raises(LeptonError, match="quantized already"):
        quantize_onnx.run(str(made("conv", "w8")[0]), str(tmp_path / "q.onnx"), scheme="w8")
    for step in (quantize_tflite, quantize_openvino):
        with pytest.raises(LeptonError, match="has no scheme dynamic: only w8a8"):
            step.run(source, str(tmp_path / "q"), data="", scheme="dynamic")
    assert not list(tmp_path.iterdir())


def test_names_of_artefacts_say_the_scheme():
    assert word(("quantize",)) == "int8"
    assert [word(("quantize",), {"scheme": s}) for s in ("w8a8", "w8a16", "dynamic", "w4")] == [
        "int8", "w8a16", "dynamic", "w4",
    ]  # fmt: skip
    assert word(("prune", "quantize"), {"scheme": "w8"}) == "pruned-w8"


def test_gptq_with_blocks_beats_rounding_to_the_nearest_and_equals_itself_with_one_scale():
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(24, 64))
    x = rng.normal(size=(500, 24)) @ mix
    xx = (x.T @ x / len(x))[None]
    w = rng.normal(size=(1, 8, 64))
    peak = np.repeat(np.abs(w.reshape(1, 8, 4, 16)).max(3), 16, axis=2)
    step = rounding.steps(peak, 4)
    errors = []
    for rounded in (rounding.gptq(w, peak, xx, 4), rounding.nearest(w, peak, 4)):
        left = w - rounded * step
        errors.append(float(np.einsum("gof,gfh,goh->", left, xx, left)))
    assert errors[0] < 0.5 * errors[1]
    one = np.abs(w).max(2)
    same = np.broadcast_to(one[:, :, None], w.shape)
    assert (rounding.gptq(w, one, xx) == rounding.gptq(w, same, xx)).mean() > 0.999


@pytest.mark.parametrize("scheme", ["dynamic", "float16"])
def test_the_command_needs_no_data(made, tmp_path, scheme):
    from lepton_edge import api
    from lepton_edge.recipe import Recipe

    out = tmp_path / "q.tflite"
    told = api.quantize(made("conv")[0], "tflite", out, Recipe(quantize={"scheme": scheme}))
    assert told["scheme"] == scheme and Path(told["path"]) == out
    assert told["parity"]["sqnr_db"] > 22 and "seeded random" in told["data"]


@pytest.mark.parametrize("scheme", ["dynamic", "w4"])
def test_what_was_quantized_can_be_converted_later(made, tmp_path, scheme):
    """The conversion is held to what integer kernels of two runtimes may differ by, not to float arithmetic."""
    from lepton_edge import api
    from lepton_edge.recipe import Recipe

    told = api.convert(made("transformer", scheme)[0], "tflite", tmp_path / "q.tflite", Recipe())
    assert told["parity"]["sqnr_db"] > 20


def test_compress_names_candidates_by_the_scheme(made, tmp_path):
    from lepton_edge import api
    from lepton_edge.recipe import Bench, Compress, Data, Recipe

    source, unseen, _ = made("conv")
    np.savez(tmp_path / "data.npz", **unseen)
    for scheme in ("w8", "float16"):
        recipe = Recipe(
            Data(calibration=str(tmp_path / "data.npz")),
            compress=Compress(to=("tflite", "onnx")),
            quantize={"scheme": scheme},
            bench=Bench(seconds=0.05, rounds=2),
        )
        run = api.compress(source, tmp_path / scheme, recipe)
        by = {row["name"]: row for row in run["candidates"]}
        assert set(by) == {f"{f}-{s}" for f in ("tflite", "onnx") for s in ("float32", scheme)}
        assert all(row["status"] == "ok" for row in run["candidates"])
        assert (tmp_path / scheme / by[f"tflite-{scheme}"]["path"]).name == f"conv.{scheme}.tflite"
