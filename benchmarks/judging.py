"""Runs every artefact in every runtime it has a file for: how near its answers are to the float model's, how fast."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from artefacts import Artefact
from common import cache
from models import Prepared

from lepton_edge import bench, run_feeds, stages, stats
from lepton_edge.errors import LeptonError
from lepton_edge.progress import Silent
from lepton_edge.recipe import Data, Recipe

RUNTIMES = ("onnxruntime", "litert", "openvino")


@dataclass
class Entry:
    """An artefact in one runtime: its file, then its figures and times, or the reason why there are none."""

    artefact: Artefact
    runtime: str
    file: Path | None
    entrant: bench.Entrant | None = None
    figures: dict | None = None
    error: str = ""
    info: dict | None = None

    @property
    def key(self) -> str:
        """Name and runtime."""
        return f"{self.artefact.name}@{self.runtime}"


class Bench:
    """One model's reference answers, and what is held against them. Use inside ``opened``."""

    def __init__(self, road: stages.Road, made_of: Prepared) -> None:
        self.road, self.made_of = road, made_of
        self.source = stages.load_source(road, made_of.model)
        recipe = Recipe(data=Data(evaluation=str(made_of.eval)))
        self.feeds = run_feeds.open_feeds(road, self.source, recipe)
        self.reference = stages.reference(road, self.source, self.feeds.evaluation)
        (self.output,) = self.reference.outputs
        self.labels = self.feeds.labels()

    def facts(self) -> dict:
        """What the float model itself reaches in ONNX Runtime."""
        told = {"count": self.feeds.evaluation.count, "runtime": self.reference.info}
        return {**told, **self._figures(self.reference.outputs[self.output])}

    def judge(self, entry: Entry, answer: bool = True) -> None:
        """Run ``entry``'s file over the evaluation samples; fills in its figures and what it is timed with."""
        if entry.file is None:
            return
        try:
            other = stages.load_source(self.road, entry.file)
            model = stages.Model(other.art, *run_feeds.match(self.source, other))
            if answer:
                got = stages.answers(self.road, model, self.feeds.evaluation, runtime=other.runtime)
                feed, entry.info = got.feed, got.info
                entry.figures = self._figures(got.outputs[got.wiring[0].name])
                entry.figures["bytes"] = other.art.size_bytes
                for file in Path(next(iter(got.outputs.values())).filename).parent.glob("*.npy"):
                    file.unlink()  # an OCR model answers with a gigabyte
            else:
                feed = stages.feed_for(self.road, model, self.feeds.evaluation, other.inputs)
            entry.entrant = bench.Entrant(entry.key, entry.file, other.runtime, feed.folder)
        except LeptonError as error:
            entry.error = error.message

    def _figures(self, outputs: np.ndarray) -> dict:
        reference = self.reference.outputs[self.output]
        made = compare(reference, outputs)
        if self.labels is not None:
            made["top1"] = float(np.mean(np.asarray(outputs).reshape(len(outputs), -1).argmax(1) == self.labels))
        if hasattr(self.made_of.case, "figures"):
            made |= self.made_of.case.figures(reference, outputs, self.made_of.folder)
        return made


@contextmanager
def opened(made_of: Prepared) -> Iterator[Bench]:
    """A bench whose scratch folder goes when it is closed."""
    with stages.road(cache("scratch"), Silent()) as road:
        yield Bench(road, made_of)


def compare(reference: np.ndarray, outputs: np.ndarray) -> dict:
    """Nearness of outputs [n, ...] to the reference's, sample by sample, in float64.

    sqnr_db: 10 log10(sum ref^2 / sum (ref - out)^2) over everything, None when equal. cosine_mean, cosine_min: over
    the samples. agreement: share of samples with the same largest component.
    """
    power = noise = 0.0
    cosines, same = [], 0
    for a, b in zip(reference, outputs, strict=True):
        r, o = (np.asarray(x, np.float64).ravel() for x in (a, b))
        power, noise = power + float(r @ r), noise + float((r - o) @ (r - o))
        norm = math.sqrt(float(r @ r) * float(o @ o))
        cosines.append(float(r @ o) / norm if norm else 0.0)
        same += int(r.argmax() == o.argmax())
    return {
        "sqnr_db": 10 * math.log10(power / noise) if noise else None,
        "cosine_mean": float(np.mean(cosines)),
        "cosine_min": min(cosines),
        "agreement": same / len(cosines),
    }


def latencies(entries: list[Entry], *, seconds: float, rounds: int, passes: int) -> dict[str, dict]:
    """Time the entries of one runtime, one thread, batch 1, real samples, interleaved round by round.

    Each of the ``passes`` starts fresh processes, so that what differs from process to process (where memory lands)
    is in the spread. Returns by key {"p50_ms", "p50_ci", "round_medians_ms", ...} or {"error"}.
    """
    rows: dict[str, list[list[int]]] = {e.key: [] for e in entries}
    processes: dict[str, list[int]] = {e.key: [] for e in entries}
    facts: dict[str, dict] = {}
    for k in range(passes):
        timed = bench.measure(
            [e.entrant for e in entries if e.entrant and "error" not in facts.get(e.key, {})],
            bench.How(seconds, rounds, processes=1, seed=k),
        ).timings
        for key, timing in timed.items():
            if timing.latency is None:
                facts[key] = {"error": timing.error.message if timing.error else "not measured"}
                continue
            rows[key] += timing.latency["samples_ns"]
            processes[key] += [k] * timing.latency["rounds"]
            busy = max(facts.get(key, {}).get("others_cores") or 0.0, timing.latency["others_cores"] or 0.0)
            facts[key] = {"peak_rss_mb": timing.latency["peak_rss_mb"], "others_cores": busy}
    for key, fact in facts.items():
        if "error" not in fact:
            figures = stats.summarize(rows[key], processes[key])
            fact |= {name: figures[name] for name in ("count", "rounds", "p50_ms", "p50_ci")}
            fact["process_of_round"] = processes[key]
            fact["round_medians_ms"] = [round(stats.median(r) / 1e6, 5) for r in rows[key]]
    return facts


def against(a: dict, b: dict) -> dict:
    """How long ``a`` takes relative to ``b``: the median of paired rounds, its 95 % interval, and the spread."""
    pairs = list(zip(a["round_medians_ms"], b["round_medians_ms"], strict=True))
    made = stats.ratio([[x] for x, _ in pairs], [[y] for _, y in pairs], a.get("process_of_round"))
    ratios = sorted(x / y for x, y in pairs)
    return {**made, "min": ratios[0], "max": ratios[-1]}
