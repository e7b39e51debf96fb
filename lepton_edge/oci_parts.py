"""The parts of an OCI image (image-spec 1.1): blobs, layers, and tars that are the same for the same contents."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

KIND = "application/vnd.oci.image."
Entry = tuple[str, bytes | Path]  # a path in an archive, and the contents or the file that has them


@dataclass(frozen=True)
class Layer:
    """A layer: its descriptor, the digest of its uncompressed tar, and what it holds."""

    descriptor: dict[str, Any]
    diff_id: str
    what: str


@dataclass(frozen=True)
class Blobs:
    """The folder of an image's parts, each named by its SHA-256."""

    folder: Path

    def add(self, data: bytes, media: str) -> dict[str, Any]:
        """Keep ``data``; its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / digest).write_bytes(data)
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    def add_json(self, data: Any, kind: str) -> dict[str, Any]:
        """Keep a JSON document; its descriptor."""
        return self.add(json.dumps(data, sort_keys=True).encode(), f"{KIND}{kind}+json")

    def layer(self, tar: IO[bytes], what: str) -> Layer:
        """Keep a layer, compressed, from its uncompressed tar."""
        part, plain = self.folder / ".part", hashlib.sha256()
        with part.open("wb") as out, gzip.GzipFile("", "wb", 6, out, mtime=0) as packed:
            while block := tar.read(1 << 20):
                plain.update(block)
                packed.write(block)
        with part.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = part.stat().st_size
        part.replace(self.folder / digest)
        told = {"mediaType": f"{KIND}layer.v1.tar+gzip", "digest": f"sha256:{digest}", "size": size}
        return Layer(told, f"sha256:{plain.hexdigest()}", what)


def write_tar(out: IO[bytes], entries: Iterable[Entry]) -> None:
    """A tar of files, the same bytes for the same contents: sorted, with their folders, of nobody and no time."""
    ordered = dict(sorted(entries))
    folders = {str(parent): None for name in ordered for parent in Path(name).parents if str(parent) != "."}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted([*folders, *ordered]):
            info, entry = tarfile.TarInfo(name), ordered.get(name)
            if entry is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
                tar.addfile(info)
            elif isinstance(entry, bytes):
                info.size = len(entry)
                tar.addfile(info, io.BytesIO(entry))
            else:
                info.size = entry.stat().st_size
                with entry.open("rb") as stream:
                    tar.addfile(info, stream)
