"""Bundles on devices: pushed, proved there by their own golden outputs, and only then made current.

push ─▶ verify (SHA-256, signature) ─▶ runtime ─▶ self-test, all there ─▶ switch; whatever fails before changes nothing.
The device's end is ``ondevice/deploying.py``.
"""

from __future__ import annotations

import getpass
import json
import platform
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_edge import deploy_runtime, service, signing, there
from lepton_edge.device import Device, get_device
from lepton_edge.errors import LeptonError, PlaceLost, UsageError
from lepton_edge.ondevice import deploying
from lepton_edge.progress import Silent
from lepton_edge.remote import Remote
from lepton_edge.texts import number

ROOT, KEPT = "~/lepton-edge", 3
SELF_TEST_S = 600.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Bundle:
    """A bundle folder whose files were found to be those of its manifest."""

    folder: Path
    manifest: dict[str, Any]
    sha256: str  # of manifest.json, which holds those of all files: it stands for the whole

    @property
    def version(self) -> str:
        """How this content is called on devices."""
        return self.sha256[:12]

    def files(self) -> dict[str, dict[str, Any]]:
        """All that travels, {"sha256", "size_bytes"} by name."""
        own = {}
        for name in ("manifest.json", *signing.NAMES):
            if (file := self.folder / name).is_file():
                own[name] = {"sha256": there.sha256(file), "size_bytes": file.stat().st_size}
        return {**self.manifest["files"], **own}


def read_bundle(folder: Path) -> Bundle:
    """Read and check a bundle. Raises LeptonError for a folder that is none, or whose files were changed."""
    file = folder / "manifest.json"
    if not file.is_file():
        raise LeptonError(
            f"{folder}: there is no bundle here (no manifest.json)",
            "'compress' writes one into its run folder; 'bundle' makes it again",
        )
    try:
        manifest = json.loads(file.read_text("utf-8"))
        if manifest["schema"] != "lepton-edge.bundle/1":
            raise ValueError(f"schema {manifest['schema']}")
        problem = deploying.verify(str(folder), sha256 := there.sha256(file))["problem"]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise LeptonError(f"{file} is not the manifest of a bundle ({e})", "make the bundle again") from e
    if problem:
        raise LeptonError(f"{folder}: {problem.replace(' there', '')}", "make the bundle again, or copy it again")
    return Bundle(folder, manifest, sha256)


def app_name(bundle: Bundle, given: str) -> str:
    """The name of the application: ``given``, else that of the model it was made from. Raises UsageError."""
    if given:
        if not NAME.fullmatch(given):
            raise UsageError(f"'{given}' is no name for an application", "letters, digits and . _ - only")
        return given
    source = (bundle.manifest.get("provenance") or {}).get("source_model") or {}
    stem = Path(source.get("name") or bundle.manifest["model"]["file"]).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-_")[:64] or "model"


def deploy(
    folder: Path,
    device_name: str,
    *,
    root: str = ROOT,
    name: str = "",
    wheels: Path | None = None,
    units: bool = False,
    key_file: Path | None = None,
    progress: Silent | None = None,
) -> dict:
    """Make the bundle in ``folder`` the current version of an application on a device, if it answers right there.

    ``root`` is the folder of applications there, ``wheels`` a folder of wheels for a device that is offline,
    ``key_file`` whom to trust (see ``signing.read_key``); ``units`` asks for a systemd service. Raises LeptonError,
    and then nothing was switched.
    """
    progress, start = progress or Silent(), time.monotonic()
    bundle, key, device = read_bundle(folder), signing.read_key(key_file), get_device(device_name)
    app = app_name(bundle, name)
    with _opened(device, progress) as place, _claimed(place, root, app) as claim:
        home = claim["folder"]
        needs = deploy_runtime.needs(place, home, bundle.folder, wheels)
        begun = there.call(place, "begin", folder=home, sha256=bundle.sha256, version=bundle.version,
                           files=bundle.files(), more=needs.size)  # fmt: skip
        target, sent = begun["place"], 0
        progress.stage(f"sending the bundle to {place.title}")
        for file in begun["missing"]:
            there.put(place, bundle.folder / file, f"{target}/{file}", progress)
            sent += (bundle.folder / file).stat().st_size
        progress.stage(f"verifying the bundle on {place.title}")
        there.call(place, "verify", place=target, sha256=bundle.sha256)
        signed = there.call(place, "check", there.SIGNATURES, place=target, pinned=claim["pinned"], key=key)
        runtime = deploy_runtime.install(place, home, needs, progress)
        proved = self_test(place, target, runtime, progress)
        told = {"sha256": bundle.sha256, "model": bundle.manifest["model"]["file"], "runtime": runtime,
                "signer": signed["signer"], "by": _who()}  # fmt: skip
        progress.stage(f"switching {app} to {bundle.version}")
        with _switching(app):
            switched = there.call(
                place, "commit", folder=home, version=bundle.version, place=target, told=told,
                pin=signed.get("pin", ""), keep=KEPT,
            )  # fmt: skip
        installed = _service(place, app, home, bundle.version) if units else None
    return {
        "device": device.name, "address": place.title, "name": app, "folder": home, "version": bundle.version,
        "sha256": bundle.sha256, **switched, "sent_bytes": sent, "runtime": runtime, "self_test": proved,
        "signer": signed["signer"], "trusted_on_first_use": signed.get("first", False), "service": installed,
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def rollback(device_name: str, name: str, *, root: str = ROOT, progress: Silent | None = None) -> dict:
    """Make the version before the current one current again, once it is whole and passes its self-test there."""
    progress, device = progress or Silent(), get_device(device_name)
    with _opened(device, progress) as place, _claimed(place, root, name, create=False) as claim:
        folder = claim["folder"]
        old = there.call(place, "earlier", folder=folder)
        there.call(place, "verify", place=old["place"], sha256=old["sha256"])
        there.call(place, "check", there.SIGNATURES, place=old["place"], pinned=claim["pinned"], key="")
        proved = self_test(place, old["place"], None, progress)
        with _switching(name):
            there.call(place, "go_back", folder=folder, version=old["version"])
    return {
        "device": device.name, "address": place.title, "name": name, "folder": folder, "version": old["version"],
        "previous": old["current"], "self_test": proved,
    }  # fmt: skip


def deployments(device_name: str, *, root: str = ROOT, name: str = "", progress: Silent | None = None) -> list[dict]:
    """The applications on a device with their versions, the one deployed last at the end."""
    with _opened(get_device(device_name), progress or Silent()) as place:
        return there.call(place, "listing", root=root, name=name)


def self_test(place: Remote, folder: str, runtime: dict | None, progress: Silent) -> list[dict]:
    """Run the bundle's own self-test there; its results. Raises LeptonError with what differs, and by how much."""
    progress.stage(f"self-test on {place.title}")
    if runtime is not None:
        there.call(place, "launcher", place=folder, python=runtime["python"], site=runtime["site"])
    argv = [f"{folder}/.deployed/python", f"{folder}/predict.py", "--self-test", "--json"]
    done = place.run(argv, timeout=SELF_TEST_S)
    try:
        results = json.loads(done["out"].strip().splitlines()[-1])["results"]
    except (IndexError, ValueError, KeyError, TypeError):
        results = []
    for result in results:
        if not result["ok"]:
            off = "it has another shape" if result["difference"] is None else f"it is off by {_digits(result)}"
            raise LeptonError(
                f"{place.title}: the model answers differently there: output '{result['what']}', {off}",
                "is it the runtime that the bundle was made with? 'bench --device' and 'compare' show more",
            )
    if done["code"] != 0 or not results:
        why = there.last_line(done, SELF_TEST_S)
        raise LeptonError(f"{place.title}: the self-test could not run there: {why}", _hint(done))
    return results


@contextmanager
def _opened(device: Device, progress: Silent) -> Iterator[Remote]:
    if not device.is_reached:
        raise UsageError(
            f"'{device.name}' is not a device that can be reached (its transport is '{device.transport}')",
            "'lepton-edge devices add user@host' makes one of a board",
        )
    with progress:
        progress.stage(f"connecting to {device.reach.get('address') or device.name}")
        place = Remote(device)
        try:
            yield place
        finally:
            place.close()


@contextmanager
def _claimed(place: Remote, root: str, app: str, create: bool = True) -> Iterator[dict]:
    """Hold the application's lock on the device; what was not finished is removed when it is let go."""
    claim = there.call(place, "claim", root=root, name=app, by=_who(), create=create)
    try:
        yield claim
    except PlaceLost as e:  # the lock ends with the agent; what is left there goes with the next deployment
        raise PlaceLost(e.message + ("" if "--list" in e.hint else "; nothing was switched there"), e.hint) from e
    except Exception:  # not an interrupt: that need not wait for what still runs there
        with suppress(LeptonError):  # the first error is the one to tell
            there.call(place, "release", folder=claim["folder"])
        raise
    there.call(place, "release", folder=claim["folder"])


@contextmanager
def _switching(app: str) -> Iterator[None]:
    """A connection that is lost in here leaves open whether the switch was made."""
    try:
        yield
    except PlaceLost as e:
        raise PlaceLost(e.message, f"see with 'deploy --list' which version of {app} is current") from e


def _service(place: Remote, app: str, folder: str, version: str) -> dict:
    try:
        return service.install(place, app, folder)
    except LeptonError as e:
        raise type(e)(f"{e.message} ({version} is current all the same)", e.hint) from e


def _digits(result: dict) -> str:
    return f"{number(result['difference'])}, and {number(result['allowed'])} is allowed"


def _hint(done: dict) -> str:
    if done["code"] == -signal.SIGILL:
        return "the runtime there was built for a processor with other instructions: choose another release of it"
    if done["code"] == -signal.SIGKILL:
        return "was there too little memory on it?"
    return "run predict.py --self-test of the bundle there to see more"


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{platform.node()}"
    except (KeyError, OSError):  # no such user in the system's list
        return platform.node()
