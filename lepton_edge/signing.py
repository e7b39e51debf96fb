"""Signing bundles, with ssh-keygen or minisign; ``ondevice/signatures.py`` checks them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.ondevice.signatures import MINISIGN, NAMESPACE, SSH
from lepton_edge.store import aside

NAMES = (SSH, MINISIGN)
KEY_TYPES = ("ssh-", "ecdsa-", "sk-")


def sign(folder: Path, key: Path) -> Path:
    """Sign the manifest of a bundle, which holds the SHA-256 of all its files; the signature's path.

    ``key`` is an OpenSSH private key (or a public one whose private half is in the agent), or a secret key of minisign.
    Both ask for a passphrase on the terminal where the key has one. Raises LeptonError when the tool fails.
    """
    if not key.is_file():
        raise UsageError(f"{key}: there is no such key", "make one: ssh-keygen -t ed25519 -f KEY")
    head = key.read_bytes()[:200]
    mini = b"minisign" in head or b"encrypted secret key" in head
    tool, name = ("minisign", MINISIGN) if mini else ("ssh-keygen", SSH)
    if shutil.which(tool) is None:
        raise LeptonError(f"{tool} is not installed here", f"apt-get install {tool if mini else 'openssh-client'}")
    with aside(folder) as scratch:
        copy = scratch / "manifest.json"
        shutil.copyfile(folder / "manifest.json", copy)
        made = scratch / name
        argv = ["minisign", "-S", "-s", str(key), "-m", str(copy), "-x", str(made)]
        if not mini:
            argv = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(copy)]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode or not made.is_file():
            words = " ".join((done.stderr or done.stdout).split())[-300:]
            raise LeptonError(f"{key}: {tool} did not sign with it: {words}", "is it a private key of yours?")
        made.replace(folder / name)
    return folder / name


def read_key(file: Path | None) -> str:
    """Whom to trust, as the device keeps it: an allowed-signers file or a minisign public key; "" for no file.

    A public key of OpenSSH becomes a line of an allowed-signers file. Raises UsageError for anything else.
    """
    if file is None:
        return ""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(
            f"{file}: the key cannot be read ({e})", "give a public key, or an allowed-signers file"
        ) from e
    if "PRIVATE KEY" in text or "secret key" in text:
        raise UsageError(f"{file} is a private key", "give the public one (.pub): it goes to the device")
    if text.startswith("untrusted comment: minisign public key"):
        return text
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines or not all(any(word.startswith(KEY_TYPES) for word in line) for line in lines):
        raise UsageError(f"{file} holds no public key", "give a .pub file, an allowed-signers file, or one of minisign")
    if len(lines) == 1 and lines[0][0].startswith(KEY_TYPES):
        kind, key = lines[0][:2]
        return f'{NAMESPACE} namespaces="{NAMESPACE}" {kind} {key}\n'
    return text
