"""Bundles made again, of any candidate of a past run; signed; as images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepton_edge import oci, record, signing, stages
from lepton_edge.artifact import open_artifact
from lepton_edge.deploy import read_bundle
from lepton_edge.errors import LeptonError, UsageError, did_you_mean
from lepton_edge.feeds import feed_from_arrays
from lepton_edge.ports import from_json
from lepton_edge.progress import Silent
from lepton_edge.report import load_run


def bundle(
    source: Path,
    out: Path | None = None,
    *,
    candidate: str | None = None,
    key: Path | None = None,
    image: Path | None = None,
    archs: Sequence[str] = ("amd64", "arm64"),
    bases: Sequence[Path] = (),
    progress: Silent | None = None,
) -> dict:
    """The bundle of a run's candidate, made again (or a bundle as it is), signed with ``key``, and as an OCI image."""
    with progress or Silent() as shown:
        if (is_bundle := (source / "manifest.json").is_file()) and (out or candidate):
            raise UsageError(f"{source} is a bundle already", "give the run folder with --out and --candidate")
        folder = source if is_bundle else rebundle(source, out, candidate, shown)
        signature = signing.sign(read_bundle(folder).folder, key) if key else None
        made = read_bundle(folder)
        archive = oci.write_image(image, made, archs, bases, shown) if image else None
    return {
        "bundle": str(folder),
        "version": made.version,
        "sha256": made.sha256,
        "signature": str(signature) if signature else None,
        "image": archive,
    }


def rebundle(folder: Path, out: Path | None, name: str | None, progress: Silent) -> Path:
    """Write the bundle of a run's picked candidate, or of the one named; its folder (``out``, else beside the run's).

    Its golden outputs are what the artefact answers here, now. Raises LeptonError for an artefact that was changed.
    """
    import numpy as np

    run = load_run(folder)
    row = _candidate(run, name, folder)
    if "bundling" not in run or not row.get("ports") or not (folder / "samples.npz").is_file():
        raise LeptonError(
            f"{folder}: this run does not say how {row['name']} is fed",
            "run 'compress' again with this release; finished steps are kept",
        )
    art = open_artifact(folder / row["path"])
    if art.sha256 != row["sha256"]:
        raise LeptonError(f"{art.path} was changed since the run", "run 'compress' again")
    target = out or folder / ("bundle" if row["picked"] else f"bundle-{row['name']}")
    with stages.road(target.absolute().parent, progress) as road:
        specs = run["bundling"]["inputs"]
        with np.load(folder / "samples.npz", allow_pickle=False) as stored:
            samples = {spec["name"]: stored[spec["name"]] for spec in specs}
        whole = [spec["name"] for spec in specs if spec.get("whole")]
        feed = feed_from_arrays(samples, None, road.folder("samples"), source=str(folder), whole=whole)
        model = stages.Model(art, from_json(row["ports"]["inputs"]), from_json(row["ports"]["outputs"]))
        road.progress.stage(f"running {row['name']} on {feed.count} samples")
        got = stages.answers(road, model, feed)
        outputs = road.folder("golden") / "outputs.npz"
        np.savez(outputs, **{p.source: np.asarray(got.outputs[p.name]) for p in got.wiring})  # type: ignore[arg-type]
        golden = (folder / "samples.npz", outputs)
        return record.write_bundle_of(target, run, row, art.path, got.info, golden)


def _candidate(run: dict, name: str | None, folder: Path) -> dict[str, Any]:
    rows = {row["name"]: row for row in run["candidates"]}
    if name is None and run["picked"] is None:
        raise UsageError(f"{folder}: no candidate of this run was picked", f"name one: --candidate {next(iter(rows))}")
    chosen = name or run["picked"]
    if chosen not in rows:
        raise UsageError(f"{folder}: there is no candidate '{chosen}'", did_you_mean(chosen, list(rows)))
    if rows[chosen]["status"] != "ok":
        raise LeptonError(f"{folder}: the candidate '{chosen}' failed in this run", "choose another one")
    return rows[chosen]
