"""Signatures of bundles, checked on the device by the tools there: ssh-keygen (OpenSSH 8.2 or later) or minisign."""

from __future__ import annotations

import base64
import os
import shutil
import struct
import subprocess
import tempfile

NAMESPACE = "lepton-edge"
SSH, MINISIGN = "manifest.json.sig", "manifest.json.minisig"


def check(place: str, pinned: str, key: str) -> dict:
    """Check the signature of the manifest in ``place``: {"signer", "pin", "first"} or {"problem", "hint"}.

    ``pinned`` is whom this application takes (what an earlier deployment kept), ``key`` whom the caller takes, both as
    an allowed-signers file (ssh-keygen(1)) or a minisign public key. Without either, the key inside an SSH signature
    is taken, and is the one to keep: trust on first use. ``pin`` is what to keep from now on.
    """
    if pinned and key and pinned.split() != key.split():
        hint = "to take another key from now on, remove the file 'signers' in the application's folder there"
        return {"problem": "the key given is not the one that this application is pinned to", "hint": hint}
    wanted = pinned or key
    signed = [name for name in (SSH, MINISIGN) if os.path.exists(os.path.join(place, name))]
    if not signed:
        hint = "sign it: lepton-edge bundle --sign KEY BUNDLE"
        return {"problem": "the bundle is not signed, and has to be", "hint": hint} if wanted else {"signer": ""}
    first = not wanted
    if first:
        if SSH not in signed:
            return {"problem": "a minisign signature is checked with a key only", "hint": "give it with --key FILE"}
        try:
            wanted = _embedded(os.path.join(place, SSH))
        except (ValueError, struct.error):
            return {"problem": f"{SSH} is not a signature", "hint": "sign the bundle again"}
    ours, tool = (MINISIGN, "minisign") if "minisign public key" in wanted.splitlines()[0] else (SSH, "ssh-keygen")
    if ours not in signed:
        return {"problem": f"the bundle has no {ours}, and has to", "hint": "sign it with the key that is pinned"}
    if shutil.which(tool) is None:
        hint = f"install it there (Debian: {'minisign' if tool == 'minisign' else 'openssh-client'})"
        return {"problem": f"signatures cannot be checked there: no {tool}", "hint": hint}
    with tempfile.TemporaryDirectory() as folder:
        keys = os.path.join(folder, "keys")
        with open(keys, "w", encoding="utf-8") as f:
            f.write(wanted if wanted.endswith("\n") else wanted + "\n")
        told = (_minisign if tool == "minisign" else _ssh)(place, keys)
    if told.get("problem"):
        return {"hint": "it was changed after it was signed, or signed by someone else", **told}
    return {**told, "pin": wanted, "first": first}


def _ssh(place: str, keys: str) -> dict:
    signature = os.path.join(place, SSH)
    found = _run(["ssh-keygen", "-Y", "find-principals", "-s", signature, "-f", keys])
    if found.returncode:
        return {"problem": "the bundle is not signed by a key that is taken there"}
    who = found.stdout.splitlines()[0]
    with open(os.path.join(place, "manifest.json"), "rb") as manifest:
        argv = ["ssh-keygen", "-Y", "verify", "-f", keys, "-I", who, "-n", NAMESPACE, "-s", signature]
        done = _run(argv, manifest)
    if done.returncode:
        return {"problem": f"the signature does not hold ({_last(done)})"}
    return {"signer": done.stdout.strip().rpartition(" with ")[2]}


def _minisign(place: str, keys: str) -> dict:
    manifest = os.path.join(place, "manifest.json")
    done = _run(["minisign", "-V", "-p", keys, "-m", manifest, "-x", os.path.join(place, MINISIGN)])
    if done.returncode:
        return {"problem": f"the signature does not hold ({_last(done)})"}
    with open(keys, encoding="utf-8") as f:
        return {"signer": "minisign " + f.read().split()[-1]}


def _embedded(signature: str) -> str:
    """The public key inside an SSH signature, as a line of an allowed-signers file (PROTOCOL.sshsig of OpenSSH)."""
    with open(signature, encoding="ascii") as f:
        blob = base64.b64decode("".join(line.strip() for line in f if not line.startswith("-----")))
    if blob[:6] != b"SSHSIG":
        raise ValueError(signature)
    (size,) = struct.unpack(">I", blob[10:14])
    key = blob[14 : 14 + size]
    (size,) = struct.unpack(">I", key[:4])
    return f'{NAMESPACE} namespaces="{NAMESPACE}" {key[4 : 4 + size].decode()} {base64.b64encode(key).decode()}\n'


def _run(argv: list, stream=None) -> subprocess.CompletedProcess:
    return subprocess.run(argv, stdin=stream or subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def _last(done: subprocess.CompletedProcess) -> str:
    lines = (done.stdout + done.stderr).split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {done.returncode}")
