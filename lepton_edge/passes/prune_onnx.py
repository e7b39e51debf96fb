"""Pruning of an ONNX model: channels or weights go, what is left is fitted, or trained."""

from __future__ import annotations

import zlib
from typing import Any

from lepton_edge.errors import UsageError
from lepton_edge.passes._onnx_file import put
from lepton_edge.passes._samples import Progress, Samples, silent
from lepton_edge.registry import require

REQUIRES = ("onnx>=1.17", "onnxruntime>=1.20")
COST = 1.5  # Keras models, which can be trained meanwhile, are pruned as such
SHARE = 0.8
TRAINING = ("torch>=2.9",)


def run(
    src: str,
    dst: str,
    *,
    data: str,
    method: str = "",
    macs: float = 0.0,
    sparsity: float = 0.0,
    spread: str = "uniform",
    round_to: int = 8,
    importance: str = "reconstruction",
    keep: str = "",
    samples: int = 300,
    seed: int = 0,
    memory: str = "1GB",
    epochs: int = 0,
    rounds: int = 1,
    batch_size: int = 32,
    learning_rate: float = 0.01,
    temperature: float = 4.0,
    inner: float = 1.0,
    distil: float = 0.7,
    augment: str = "",
    held_out: float = 0.1,
    patience: int = 0,
    progress: Progress | None = None,
) -> dict:
    """Write a pruned `dst`, fitted on up to `samples` samples of the feed folder `data`; no labels are needed.

    - "channels": channels, heads and neurons are removed until `macs`, a share, of the multiply-accumulates is left.
      Layers keep multiples of `round_to` channels, those named in `keep` (by what they make, with commas) all of them.
      `importance` is "reconstruction", "activation", "magnitude" (slim/order.py) or "taylor" (slim/taylor.py);
    - "depth": branches of residual sums are taken away whole until `macs` is left, or less;
    - "weights": the share `sparsity` of the weights is zero, with the `spread` "uniform" of each layer's, with "erk"
      more of large layers' and fewer of small ones';
    - N:M, "2:4" for one: of every M weights along the input channels N are left.

    Without a `method` a `sparsity` asks for weights, anything else for channels (`macs` 0.8 unless given).

    With `epochs` all samples of `data` then train what is left towards the original's answers, as finetune_onnx.py
    does, whose options the others are. In `rounds` a part of the channels or weights goes, the rest is trained, and so
    on: each takes its share of the epochs, the last one half of them.

    Returns what was measured: macs, parameters, nonzeros, zip_bytes (each before and after), calibration_sqnr_db, for
    channels the widths [after, before] by layer, and "training", the figures of each round. Raises LeptonError for
    options that make no sense, for a model with nothing to prune, for a share that cannot be reached, for data of
    other inputs, and where training is asked for, as finetune_onnx.py does.
    """
    from lepton_edge.quant.prepare import prepare
    from lepton_edge.slim.once import Asked, once
    from lepton_edge.slim.spread import SPREADS
    from lepton_edge.texts import byte_count
    from lepton_edge.tflite_writer.load import inputs
    from lepton_edge.tuning import core
    from lepton_edge.tuning import rounds as gradual

    method = method or ("weights" if sparsity else "channels")
    check_options(method, macs, sparsity, round_to, importance)
    if spread not in SPREADS:
        raise UsageError(f"unknown spread '{spread}'", f"known: {', '.join(SPREADS)}")
    if spread != SPREADS[0] and method != "weights":
        raise UsageError(f"spread is for method weights: {method} has none", "leave it out")
    if keep and method != "channels":
        raise UsageError(f"keep is for method channels: {method} keeps no layer by name", "leave it out")
    trained = core.Options(
        epochs, batch_size, learning_rate, temperature, inner, distil, augment, held_out, patience, seed
    )
    check_training(trained, rounds, method)
    feed = Samples(data, inputs(src), samples, seed, src)
    tell = progress or silent
    kept = tuple(name.strip() for name in keep.split(",") if name.strip())
    asked = Asked(method, macs or SHARE, sparsity, round_to, importance, kept, seed, byte_count(memory), spread)
    if epochs:
        made = gradual.pruned(src, data, feed, feed.labels, asked, trained, rounds, __file__, tell)
    else:
        made = once(src, feed, asked, tell, feed.labels)
    put(made.net, dst)
    before, after = facts(prepare(src)), facts(made.net)
    told = {key: {"before": before[key], "after": after[key]} for key in before}
    said = notes(method, told, made.figures) + made.figures.pop("notes", [])
    return {"method": method, "samples": len(feed), **told, **made.figures, "notes": said}


def check_options(method: str, macs: float, sparsity: float, round_to: int, importance: str) -> None:
    """Refuse options that make no sense, naming the one that is off."""
    from lepton_edge.slim import order, sparse

    if not 0 <= macs < 1:
        raise UsageError(f"macs must lie between 0 and 1, not {macs:g}", "0.8 keeps 80 % of the multiply-accumulates")
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity must lie between 0 and 1, not {sparsity:g}", "0.5 sets half of the weights to zero")
    whole = method in ("channels", "depth")
    if whole and sparsity:
        raise UsageError(f"sparsity is for method weights, and {method} was asked for", "say --macs 0.8 instead")
    if not whole and macs:
        raise UsageError(f"macs is for methods channels and depth: {method} saves no work by itself", "leave it out")
    if method == "weights" and not sparsity:
        raise UsageError("method weights needs a sparsity", "0.5 sets half of the weights to zero")
    if not whole and method != "weights" and sparsity:
        raise UsageError(f"sparsity is for method weights: {method} says it all", "leave it out")
    if round_to < 1:
        raise UsageError(f"round_to must be at least 1, not {round_to}", "8 suits most kernels")
    if importance not in order.IMPORTANCE:
        raise UsageError(f"unknown importance '{importance}'", f"known: {', '.join(order.IMPORTANCE)}")
    if not whole:
        sparse.pattern(method, sparsity)
    if importance == "taylor" and method == "channels":
        require("the importance taylor", TRAINING)


def check_training(options: Any, rounds: int, method: str) -> None:
    """Refuse options of training that make no sense, or that are given where nothing is trained."""
    if options.epochs < 0 or rounds < 1:
        raise UsageError(f"epochs is {options.epochs} and rounds {rounds}: give at least 0 and 1", "leave them out")
    if rounds > 1 and not options.epochs:
        raise UsageError(f"{rounds} rounds need epochs to train in", "for example epochs 30")
    if rounds > 1 and method not in ("channels", "weights"):
        raise UsageError(f"rounds are for methods channels and weights: {method} goes in one", "leave it out")
    if options.epochs:
        require("training while pruning", TRAINING)
        options.check()


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
    if method in ("channels", "depth"):
        macs = figures["macs"]["after"] / figures["macs"]["before"]
        what = "channels" if method == "channels" else f"{len(figures['branches'])} residual branches"
        said.append(
            f"{what} removed: {macs:.1%} of the multiply-accumulates and {share:.1%} of the parameters are left"
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
