"""Pruning of an ONNX model without training: channels or weights go, what is left is fitted."""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.passes._samples import Progress, Samples, silent

REQUIRES = ("onnx>=1.17", "onnxruntime>=1.20")
COST = 1.5  # Keras models, which can be trained meanwhile, are pruned as such
SHARE = 0.8


def run(
    src: str,
    dst: str,
    *,
    data: str,
    method: str = "",
    macs: float = 0.0,
    sparsity: float = 0.0,
    round_to: int = 8,
    importance: str = "reconstruction",
    keep: str = "",
    samples: int = 300,
    seed: int = 0,
    memory: str = "1GB",
    progress: Progress | None = None,
) -> dict:
    """Write a pruned `dst`, fitted on the feed folder `data`; no labels are needed.

    - "channels": channels, heads and neurons are removed until `macs`, a share, of the multiply-accumulates is left.
      Layers keep multiples of `round_to` channels, those named in `keep` (by what they make, with commas) all of them.
      `importance` is "reconstruction", "activation" or "magnitude" (slim/order.py);
    - "weights": the share `sparsity` of each layer's weights is zero;
    - N:M, "2:4" for one: of every M weights along the input channels N are left.

    Without a `method` a `sparsity` asks for weights, anything else for channels (`macs` 0.8 unless given).

    Returns what was measured: macs, parameters, nonzeros, zip_bytes (each before and after), calibration_sqnr_db, and
    for channels the widths [after, before] by layer. Raises LeptonError for options that make no sense, for a model
    with nothing to prune, for a share that cannot be reached, and for data of other inputs.
    """
    from lepton_edge.quant.net import to_proto
    from lepton_edge.quant.prepare import prepare
    from lepton_edge.slim import core, drive_sparse, sparse
    from lepton_edge.texts import byte_count
    from lepton_edge.tflite_writer.load import inputs

    method = method or ("weights" if sparsity else "channels")
    check_options(method, macs, sparsity, round_to, importance)
    feed = Samples(data, inputs(src), samples, seed, src)
    tell = progress or silent
    if method == "channels":
        kept = tuple(name.strip() for name in keep.split(",") if name.strip())
        options = core.Options(macs or SHARE, round_to, importance, kept, seed=seed, memory=byte_count(memory))
        made = core.prune(src, feed, options, tell)
    else:
        made = drive_sparse.prune(src, feed, sparse.pattern(method, sparsity), tell)
    model = to_proto(made.net)
    target = Path(dst)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".prune-") as folder:
        aside = Path(folder) / target.name
        save(model, aside)
        aside.replace(target)
    before, after = facts(prepare(src)), facts(made.net)
    told = {key: {"before": before[key], "after": after[key]} for key in before}
    return {"method": method, "samples": len(feed), **told, **made.figures, "notes": notes(method, told, made.figures)}


def check_options(method: str, macs: float, sparsity: float, round_to: int, importance: str) -> None:
    """Refuse options that make no sense, naming the one that is off."""
    from lepton_edge.slim import order, sparse

    if not 0 <= macs < 1:
        raise UsageError(f"macs must lie between 0 and 1, not {macs:g}", "0.8 keeps 80 % of the multiply-accumulates")
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity must lie between 0 and 1, not {sparsity:g}", "0.5 sets half of the weights to zero")
    if method == "channels" and sparsity:
        raise UsageError("sparsity is for method weights, and channels were asked for", "say --macs 0.8 instead")
    if method != "channels" and macs:
        raise UsageError(f"macs is for method channels: {method} leaves the multiply-accumulates", "leave it out")
    if method == "weights" and not sparsity:
        raise UsageError("method weights needs a sparsity", "0.5 sets half of the weights to zero")
    if method not in ("channels", "weights") and sparsity:
        raise UsageError(f"sparsity is for method weights: {method} says it all", "leave it out")
    if round_to < 1:
        raise UsageError(f"round_to must be at least 1, not {round_to}", "8 suits most kernels")
    if importance not in order.IMPORTANCE:
        raise UsageError(f"unknown importance '{importance}'", f"known: {', '.join(order.IMPORTANCE)}")
    if method != "channels":
        sparse.pattern(method, sparsity)


def facts(net: Any) -> dict[str, int]:
    """Counts of a net's float constants, and how many bytes they take when zipped."""
    import numpy as np

    from lepton_edge.quant.net import reads

    used = {name for node in net.nodes for name in reads(node)}
    arrays = [a for name, a in net.consts.items() if name in used and a.dtype == np.float32]
    return {
        "parameters": sum(a.size for a in arrays),
        "nonzeros": sum(int(np.count_nonzero(a)) for a in arrays),
        "zip_bytes": sum(len(zlib.compress(np.ascontiguousarray(a).tobytes(), 6)) for a in arrays),
    }


def notes(method: str, told: dict, figures: dict) -> list[str]:
    """What the reader of a report should know."""
    share = told["nonzeros"]["after"] / told["parameters"]["before"]
    said = []
    if method == "channels":
        macs = figures["macs"]["after"] / figures["macs"]["before"]
        said.append(
            f"channels removed: {macs:.1%} of the multiply-accumulates and {share:.1%} of the parameters are left"
        )
    else:
        said.append(
            f"{method}: {share:.1%} of the weights are not zero; the file is smaller once zipped, and faster only in a"
            " runtime that skips zeros: measure it"
        )
    if figures["left"]:
        names = list(figures["left"].items())
        shown = "; ".join(f"{name} ({why})" for name, why in names[:3])
        said.append(f"{len(names)} layers left as they are: {shown}" + ("; ..." if len(names) > 3 else ""))
    return said


def save(model: Any, path: Path) -> None:
    """Write a ModelProto once ONNX's checker and ONNX Runtime take it."""
    import onnx

    from lepton_edge.quant.tap import LARGE

    if model.ByteSize() >= LARGE:
        raise LeptonError(f"its pruned form takes {model.ByteSize() / 1e9:.1f} GB, more than one ONNX file holds", "")
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
