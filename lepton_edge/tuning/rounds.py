"""Pruning with training behind it, at once or in rounds: a part goes, the rest is trained, and so on.

Gradual removal leaves more accuracy than one step of the same size: Molchanov et al., "Importance Estimation for
Neural Network Pruning" (arXiv:1906.10771, section 4). Of channels each round multiplies the share of the
multiply-accumulates by the same factor; of weights the first round takes most, as in Zhu & Gupta, "To prune, or not to
prune" (arXiv:1710.01878). Teacher of all rounds is the original.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.quant.core import decibels, distance_of, take
from lepton_edge.quant.net import Net, from_proto, to_proto
from lepton_edge.quant.tap import Sample
from lepton_edge.slim.once import Asked, Once, once
from lepton_edge.training import checkpoint as checkpoints
from lepton_edge.tuning.core import Options, Told, key_of, tune
from lepton_edge.tuning.samples import Rows

JUDGED = 32  # samples that the nearness to the original is told of


def pruned(
    src: str,
    data: str,
    samples: Sequence[Sample],
    labels: np.ndarray | None,
    asked: Asked,
    options: Options,
    rounds: int,
    code: str,
    told: Told,
) -> Once:
    """Prune `src` in `rounds`, each followed by its part of `options.epochs`, on all samples of the folder `data`.

    `code` is the file of the pass, for the key under which an interrupted run is taken up: finished prunings and
    rounds are not made again. Figures are those of the whole way, "training" those of each round.
    """
    from lepton_edge.quant.prepare import prepare

    name = Path(src).name
    original = prepare(src)
    rows = Rows(data, original.inputs, name)
    parts = [vars(asked) | {"kept": list(asked.kept)}, rounds, len(samples)]
    key = key_of(code, src, rows, vars(options), parts)
    figures: dict[str, Any] = {}
    trained: list[dict] = []
    notes: list[str] = []
    with checkpoints.opened(key) as kept, tempfile.TemporaryDirectory(prefix="lepton-") as scratch:
        folder = kept.path.parent if kept else Path(scratch)
        path, dense = src, original
        for k, epochs in enumerate(shares(options.epochs, rounds)):
            before = f"round {k + 1} of {rounds}, " if rounds > 1 else ""
            tell = prefixed(told, before)
            wanted = part_of(asked, k, rounds, figures)
            made = remembered(folder / f"pruned-{k}", partial(once, path, samples, wanted, tell, labels))
            dense = made.dense if k == 0 else dense
            figures = merged(figures, made.figures)
            own = key_of(code, src, rows, vars(options), [*parts, k])
            tuned = tune(
                made.net, dense, rows, replace(options, epochs=epochs), name=name, key=own, told=tell
            )  # fmt: skip
            trained.append(tuned.facts)
            notes += [before + note for note in tuned.notes]
            path = str(folder / f"trained-{k}.onnx")
            written(tuned.net, Path(path))
    judged = take(samples, JUDGED)
    figures["calibration_sqnr_db"] = decibels(distance_of(original, tuned.net, judged))
    return Once(tuned.net, dense, {**figures, "training": trained, "notes": notes})


def part_of(asked: Asked, k: int, rounds: int, figures: dict) -> Asked:
    """What round `k` prunes to; `figures` are those of the rounds before it."""
    if asked.method != "channels":
        return replace(asked, sparsity=asked.sparsity * (1 - (1 - (k + 1) / rounds) ** 3))
    share = asked.macs ** ((k + 1) / rounds)
    if figures:  # of what is left by now
        share *= figures["macs"]["before"] / figures["macs"]["after"]
    return replace(asked, macs=min(share, 0.9999))


def shares(epochs: int, rounds: int) -> list[int]:
    """Epochs of each round: the last one takes half of them, the others the rest, one at least."""
    if rounds == 1:
        return [epochs]
    each = max(1, epochs // 2 // (rounds - 1))
    return [each] * (rounds - 1) + [max(1, epochs - each * (rounds - 1))]


def prefixed(told: Told, text: str) -> Told:
    """The same progress with a text before what is told."""
    return lambda done, total, what: told(done, total, text + what)


def merged(before: dict, after: dict) -> dict:
    """Figures of two prunings, one after the other, as those of one."""
    if not before:
        return dict(after)
    both = {**before, **after}
    if "widths" not in after:
        return both
    both["macs"] = {"before": before["macs"]["before"], "after": after["macs"]["after"]}
    widths = {name: list(pair) for name, pair in before["widths"].items()}
    for name, (now, whole) in after["widths"].items():
        widths[name] = [now, widths.get(name, [0, whole])[1]]
    return {**both, "widths": widths}


def remembered(stem: Path, make: Callable[[], Once]) -> Once:
    """What `make` gives, from files of an earlier, interrupted run where they are there."""
    import onnx

    record = stem.with_suffix(".json")
    files = [stem.with_name(f"{stem.name}-{part}.onnx") for part in ("net", "dense")]
    if record.is_file():
        nets = [from_proto(onnx.load(str(file))) for file in files]
        return Once(nets[0], nets[1], json.loads(record.read_text(encoding="utf-8")))
    made = make()
    for net, file in zip((made.net, made.dense), files, strict=True):
        written(net, file)
    part = record.with_suffix(".part")
    part.write_text(json.dumps(made.figures), encoding="utf-8")
    part.replace(record)
    return made


def written(net: Net, path: Path) -> None:
    """Put a net in a file, aside first."""
    import onnx

    part = path.with_suffix(".part")
    onnx.save(to_proto(net), str(part))
    part.replace(path)
