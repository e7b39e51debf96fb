"""Low-rank factorisation of an ONNX model: two thin products for a dense layer, where faster."""

from __future__ import annotations

from lepton_edge.errors import UsageError
from lepton_edge.passes._onnx_file import put
from lepton_edge.passes._samples import Progress, Samples, silent

REQUIRES = ("onnx>=1.17", "onnxruntime>=1.20")
COST = 1.0


def run(
    src: str,
    dst: str,
    *,
    data: str,
    macs: float = 0.8,
    round_to: int = 8,
    keep: str = "",
    samples: int = 300,
    seed: int = 0,
    memory: str = "1GB",
    progress: Progress | None = None,
) -> dict:
    """Write `dst`, the float ONNX model `src` with dense layers (MatMul, Gemm) as two products each.

    Ranks, multiples of `round_to`, are shared out until `macs`, a share of the model's multiply-accumulates, is left
    and what outputs of layers miss is least, on up to `samples` samples of the feed folder `data`; no labels are
    needed. A layer only takes a rank at which two products were measured faster here (ONNX Runtime, one thread) than
    the one; those named in `keep` (by what they make, with commas) stay. What is left is fitted by least squares to
    the original's answers.

    Returns macs, parameters, nonzeros and zip_bytes (each before and after), ranks [now, full] and missing (the share
    of the output's power) by layer, left (reasons by layer), calibration_sqnr_db. Raises LeptonError for options that
    make no sense, a model without a layer to factorise, a share that cannot be reached and data of other inputs.
    """
    from lepton_edge.passes.prune_onnx import facts
    from lepton_edge.quant.prepare import prepare
    from lepton_edge.slim.drive_lowrank import factorized
    from lepton_edge.slim.lowrank_time import fastest
    from lepton_edge.texts import byte_count
    from lepton_edge.tflite_writer.load import inputs

    if not 0 < macs < 1:
        raise UsageError(f"macs must lie between 0 and 1, not {macs:g}", "0.8 keeps 80 % of the multiply-accumulates")
    if round_to < 1:
        raise UsageError(f"round_to must be at least 1, not {round_to}", "8 suits most kernels")
    kept = tuple(name.strip() for name in keep.split(",") if name.strip())
    feed = Samples(data, inputs(src), samples, seed, src)
    made = factorized(
        src, feed, macs, round_to, fastest, progress or silent, kept=kept, seed=seed, memory=byte_count(memory)
    )
    put(made.net, dst)
    before, after = facts(prepare(src)), facts(made.net)
    told = {key: {"before": before[key], "after": after[key]} for key in before}
    counts = made.figures["macs"]
    said = [
        f"{len(made.figures['ranks'])} layers factorised: {counts['after'] / counts['before']:.1%} of the"
        f" multiply-accumulates and {after['parameters'] / before['parameters']:.1%} of the parameters are left"
    ]
    return {"samples": len(feed), **told, **made.figures, "notes": said}
