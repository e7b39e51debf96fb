"""What is counted in a model file: parameters, those that are not zero, multiply-accumulates.

They are read from each file itself by the inspector of its format, so they hold for what ships: a converter that folds
or pads shows. Of packed integers (4 bits) zeros are not counted in every format: None then.
"""

from __future__ import annotations

from lepton_edge import registry
from lepton_edge.artifact import Artifact
from lepton_edge.errors import LeptonError
from lepton_edge.inspect_model import inspector_files
from lepton_edge.launch import python_path
from lepton_edge.stages import Road

KEYS = ("parameters", "nonzeros", "macs")


def inspect_model(road: Road, art: Artifact) -> dict:
    """Run the inspector of the format in a worker. Raises LeptonError for a file that it cannot read."""
    worker = road.workers.get(f"inspecting {art.path.name}")
    return worker.call("inspect", file=python_path(registry.PACKAGE / "inspect_model.py"), path=python_path(art.path))


def counts(road: Road, art: Artifact) -> dict:
    """The counts of a file by KEYS, each None where it cannot be known; "uncounted" then says why."""
    if art.format not in inspector_files():
        return {**dict.fromkeys(KEYS), "uncounted": f"there is no inspector for {art.format} models"}
    try:
        found = inspect_model(road, art)
    except LeptonError as e:
        return {**dict.fromkeys(KEYS), "uncounted": e.message}
    return {key: found[key] for key in KEYS}
