"""OCI image archives of a bundle (image-spec 1.1), written without a container engine: the same bytes every time.

A layer each: a root file system with Python (``oci_base.py``), the runtime's wheels unpacked, the bundle. One image
index holds the platforms; ``skopeo``, ``podman load`` and registries take the archive.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lepton_edge import oci_base, wheelhouse
from lepton_edge.deploy import Bundle
from lepton_edge.deploy_runtime import requirements
from lepton_edge.errors import UsageError, did_you_mean
from lepton_edge.oci_base import ARCHS, Base
from lepton_edge.oci_parts import KIND, Blobs, Entry, Layer, write_tar
from lepton_edge.ondevice.wheels import unpack
from lepton_edge.progress import Silent
from lepton_edge.store import aside

HOME = "opt/lepton-edge"


def write_image(
    file: Path, bundle: Bundle, archs: Sequence[str], bases: Sequence[Path], progress: Silent | None = None
) -> dict:
    """Write an OCI archive of a bundle for ``archs`` (amd64, arm64); what is in it, an entry a platform.

    ``bases`` are root file systems (.tar) or OCI layouts to build on; without one, Debian's is made by mmdebstrap.
    Raises UsageError for an unknown architecture, LeptonError for a base that does not serve, wheels that there are
    not, and a full disk; an older file is replaced only by a whole one.
    """
    progress = progress or Silent()
    for arch in archs:
        if arch not in ARCHS:
            raise UsageError(f"no image can be made for '{arch}'", did_you_mean(arch, list(ARCHS)))
    with aside(file.absolute().parent) as scratch:
        blobs = Blobs(scratch / "blobs")
        blobs.folder.mkdir()
        found = oci_base.read(bases, archs, blobs, progress)
        rows, manifests = [], []
        for arch in archs:
            base = found[arch]
            progress.stage(f"{arch}: the runtime's wheels for Python {base.version}")
            layers = [*base.layers, *_own_layers(bundle, base, blobs, scratch / arch)]
            config = blobs.add_json(_config(base, layers, bundle), "config.v1")
            manifest = {
                "schemaVersion": 2, "mediaType": f"{KIND}manifest.v1+json",
                "config": config, "layers": [layer.descriptor for layer in layers],
            }  # fmt: skip
            told = blobs.add_json(manifest, "manifest.v1")
            manifests.append({**told, "platform": base.platform})
            size = sum(layer.descriptor["size"] for layer in layers)
            rows.append({"arch": arch, "digest": told["digest"], "size_bytes": size, "python": base.python})
        progress.stage(f"writing {file.name}")
        index = blobs.add_json(_index(manifests), "index.v1")
        top = _index([{**index, "annotations": {"org.opencontainers.image.ref.name": bundle.version}}])
        parts: list[Entry] = [("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')]
        parts += [("index.json", json.dumps(top, sort_keys=True).encode())]
        parts += [(f"blobs/sha256/{blob.name}", blob) for blob in blobs.folder.iterdir()]
        with (scratch / "archive").open("wb") as out:
            write_tar(out, parts)
        (scratch / "archive").replace(file)
    return {"file": str(file), "size_bytes": file.stat().st_size, "digest": index["digest"], "images": rows}


def _own_layers(bundle: Bundle, base: Base, blobs: Blobs, scratch: Path) -> list[Layer]:
    """The runtime, and the bundle."""
    site = scratch / "site"
    machine = ARCHS[base.platform["architecture"]].machine
    for wheel in wheelhouse.wheels(
        requirements(bundle.folder), machine, base.version, scratch / "wheels", glibc=base.glibc
    ):
        unpack(str(wheel), str(site))
    runtime: list[Entry] = [("tmp/.keep", b"")]  # some root file systems lack /tmp
    runtime += [(f"{HOME}/site/{f.relative_to(site).as_posix()}", f) for f in site.rglob("*") if f.is_file()]
    files: list[Entry] = [(f"{HOME}/bundle/{name}", bundle.folder / name) for name in bundle.files()]
    made = []
    for what, entries in (("the runtime", runtime), ("the bundle", files)):
        with (scratch / "layer").open("w+b") as tar:
            write_tar(tar, entries)
            tar.seek(0)
            made.append(blobs.layer(tar, what))
    shutil.rmtree(scratch)
    return made


def _config(base: Base, layers: Sequence[Layer], bundle: Bundle) -> dict[str, Any]:
    """The image's configuration: it runs predict.py as nobody."""
    before: Mapping[str, Any] = base.config.get("config") or {}
    kept = [e for e in before.get("Env") or () if e.partition("=")[0] not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")]
    path = [] if any(e.startswith("PATH=") for e in kept) else ["PATH=/usr/local/bin:/usr/bin:/bin"]
    run = {
        "Env": [*kept, *path, f"PYTHONPATH=/{HOME}/site", "PYTHONDONTWRITEBYTECODE=1"],
        "Entrypoint": [base.python, f"/{HOME}/bundle/predict.py"],
        "WorkingDir": "/", "User": "65534:65534",
        "Labels": {"org.opencontainers.image.title": bundle.manifest["model"]["file"],
                   "org.opencontainers.image.version": bundle.version},
    }  # fmt: skip
    return {
        **base.platform, "config": run,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created_by": f"lepton-edge: {layer.what}"} for layer in layers],
    }  # fmt: skip


def _index(manifests: Sequence[dict]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": f"{KIND}index.v1+json", "manifests": list(manifests)}
