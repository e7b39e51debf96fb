"""Tiny bundles for the tests of deployment: a runtime that needs numpy only, and answers at once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from test_bundle import DECLARED, INNER, PORTS, RUNTIME, SOURCE, pictures, scores

from lepton_edge.bundle import write_bundle
from lepton_edge.feeds import open_data, write_feed
from lepton_edge.preprocess import from_dict


def make(folder: Path, version: str = "1", *, off: float = 1.0, change: tuple[str, str] = ("", "")) -> Path:
    """A bundle whose labels tell its ``version``; its answers are ``off`` times what it says they should be."""
    work = folder / f"parts-{version}-{time.monotonic_ns()}"
    work.mkdir(parents=True)
    (work / "sums.py").write_text(RUNTIME.replace(*change) if change[0] else RUNTIME)
    (work / "net.sums").write_text(json.dumps(INNER))
    np.save(work / "raw.npy", pictures(4))
    feed = write_feed(open_data(work / "raw.npy", SOURCE, from_dict(DECLARED)), work / "feed")
    np.savez(work / "in.npz", image=feed.array("image"))
    np.savez(work / "out.npz", scores=scores(pictures(4)) / off)
    return write_bundle(
        folder / f"bundle-{version}",
        artifact_path=work / "net.sums",
        runtime_file=work / "sums.py",
        ports=PORTS,
        input_specs=SOURCE,
        preprocess=from_dict(DECLARED),
        manifest_extra={"source_model": {"name": "net.keras"}, "created": "2025-01-01T00:00:00+00:00"},
        golden=(work / "in.npz", work / "out.npz"),
        labels=[f"label of {version}", "green", "red"],
    )
