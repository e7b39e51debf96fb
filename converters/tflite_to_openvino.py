"""TFLite to OpenVINO IR through OpenVINO's own reader, float and int8 models.

OpenVINO has no fused LSTM for TFLite files: such a model is refused and nothing is written.
The result is compiled and run once (in float32) beside the source before it is published: a float model that
does not give the source's numbers is refused.
"""

REQUIRES = ("openvino>=2026", "ai-edge-litert>=2.1")
# Dearer than the way through ONNX: what NNCF makes of an IR from this reader is worse (18 dB against 35 dB for the
# sample CNN). It is taken where that way fails.
COST = 3.5


def run(src: str, dst: str, *, compress_to_fp16: bool = False) -> dict:
    """Convert `src` to `dst` (.xml, weights in .bin beside it); names and order are those of the TFLite file."""
    import openvino

    from lepton_edge.errors import LeptonError
    from lepton_edge.openvino_ir import ir_aside, reason
    from lepton_edge.tf_export.check import distance_db
    from lepton_edge.tf_export.tflite_source import open_tflite

    source = open_tflite(src)
    for names in (source.raw_inputs, source.raw_outputs):
        if len(set(names)) < len(names):  # OpenVINO tells tensors by name
            raise LeptonError(
                f"OpenVINO cannot convert '{src}': two of its ports are called '{max(names, key=names.count)}'",
                hint="convert the model this file was made from",
            )
    core = openvino.Core()
    feeds, reference = source.probe()
    try:
        model = core.read_model(src)
        inputs = [model.input(name) for name in source.raw_inputs]
        outputs = [model.output(name) for name in source.raw_outputs]
        model.reshape({port: list(feed.shape) for port, feed in zip(inputs, feeds, strict=True)})
    except RuntimeError as error:
        raise LeptonError(
            f"OpenVINO cannot convert '{src}': {reason(error)}", hint="convert the model this file was made from"
        ) from error
    for ports, names in ((inputs, source.inputs), (outputs, source.outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    with ir_aside(dst) as made:
        openvino.save_model(model, made, compress_to_fp16=compress_to_fp16)
        again = core.read_model(made)
        config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        try:
            request = core.compile_model(again, "CPU", config).create_infer_request()
            results = request.infer(dict(zip(source.inputs, feeds, strict=True)))
        except RuntimeError as error:
            raise LeptonError(f"OpenVINO cannot run what it made of '{src}': {reason(error)}") from error
        decibels = distance_db(reference, [results[name] for name in source.outputs])
        source.check(decibels, "OpenVINO")
    return source.mapping(source.inputs, source.outputs, decibels)
