"""Signed bundles: signed here, checked by the tools on the device, with a key that is given or was kept."""

from __future__ import annotations

import os
import shutil
import subprocess

import apps
import board
import pytest

from lepton_edge import api, signing
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.ondevice import signatures

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen (openssh-client)")


@pytest.fixture
def keys(tmp_path):
    """Two key pairs of OpenSSH: the private files."""
    for name in ("ours", "theirs"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return tmp_path / "ours", tmp_path / "theirs"


@pytest.fixture
def bundle(tmp_path):
    return apps.make(tmp_path)


def public(key):
    return signing.read_key(key.with_suffix(".pub"))


def check(bundle, pinned="", key=""):
    return signatures.check(str(bundle), pinned, key)


def test_an_unsigned_bundle(bundle, keys):
    assert check(bundle) == {"signer": ""}
    for asked in ({"key": public(keys[0])}, {"pinned": public(keys[0])}):
        assert "not signed, and has to be" in check(bundle, **asked)["problem"]


def test_a_key_that_is_given_or_kept_or_trusted_on_first_use(bundle, keys):
    assert signing.sign(bundle, keys[0]).name == "manifest.json.sig"
    first = check(bundle)
    assert first["first"] and first["signer"].startswith("ED25519 key SHA256:") and first["pin"] == public(keys[0])
    for asked in ({"key": first["pin"]}, {"pinned": first["pin"]}, {"pinned": first["pin"], "key": public(keys[0])}):
        assert check(bundle, **asked) == {**first, "first": False}
    for asked in ({"key": public(keys[1])}, {"pinned": public(keys[1])}):
        assert "not signed by a key that is taken there" in check(bundle, **asked)["problem"]
    assert "not the one that this application is pinned" in check(bundle, first["pin"], public(keys[1]))["problem"]


def test_what_was_changed_after_it_was_signed(bundle, keys):
    signing.sign(bundle, keys[0])
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    for asked in ({}, {"key": public(keys[0])}):
        assert "does not hold" in check(bundle, **asked)["problem"]
    for junk in (b"", b"junk", b"\xff"):
        (bundle / "manifest.json.sig").write_bytes(junk)
        assert "is not a signature" in check(bundle)["problem"] and "problem" in check(bundle, key=public(keys[0]))
    signing.sign(bundle, keys[0])
    assert check(bundle)["signer"], "signed again"


def test_an_allowed_signers_file_of_several(bundle, keys, tmp_path):
    signing.sign(bundle, keys[0])
    lines = [f"{name}@here {(key.with_suffix('.pub')).read_text()}" for name, key in zip("ab", keys, strict=True)]
    (tmp_path / "allowed").write_text("# ours\n" + "".join(lines))
    assert check(bundle, key=signing.read_key(tmp_path / "allowed"))["signer"].startswith("ED25519 key")
    (tmp_path / "allowed").write_text(f'a@here namespaces="git" {keys[0].with_suffix(".pub").read_text()}')
    assert "problem" in check(bundle, key=signing.read_key(tmp_path / "allowed")), "for other things only"


@pytest.mark.skipif(shutil.which("minisign") is None, reason="there is no minisign (apt-get install minisign)")
def test_minisign(bundle, tmp_path, monkeypatch):
    pair = [tmp_path / "mini.pub", tmp_path / "mini.key"]
    subprocess.run(["minisign", "-G", "-W", "-p", str(pair[0]), "-s", str(pair[1])], check=True, capture_output=True)
    assert signing.sign(bundle, pair[1]).name == "manifest.json.minisig"
    key = signing.read_key(pair[0])
    assert check(bundle, key=key)["signer"].startswith("minisign RW")
    assert "checked with a key only" in check(bundle)["problem"]
    (bundle / "manifest.json").write_text("{}")
    assert "does not hold" in check(bundle, key=key)["problem"]
    monkeypatch.setenv("PATH", "")
    assert "no minisign" in check(bundle, key=key)["problem"]
    with pytest.raises(LeptonError, match="minisign is not installed here"):
        signing.sign(bundle, pair[1])


def test_keys_that_are_none(bundle, keys, tmp_path):
    with pytest.raises(UsageError, match="private key"):
        signing.read_key(keys[0])
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UsageError, match="holds no public key"):
        signing.read_key(tmp_path / "text")
    with pytest.raises(UsageError, match="no such key"):
        signing.sign(bundle, tmp_path / "absent")
    with pytest.raises(LeptonError, match="ssh-keygen did not sign"):
        signing.sign(bundle, tmp_path / "text")
    assert not (bundle / "manifest.json.sig").exists()


@pytest.mark.skipif(bool(board.MISSING), reason=board.MISSING)
def test_a_device_keeps_the_key_it_trusted_first(keys, tmp_path, monkeypatch):
    pi = board.start(tmp_path / "board")
    try:
        monkeypatch.setenv("LEPTON_EDGE_SSH", pi.client)
        there_ = {"device_name": str(pi.toml(tmp_path)), "root": str(tmp_path / "apps")}
        first, second = apps.make(tmp_path, "1"), apps.make(tmp_path, "2")
        signing.sign(first, keys[0])
        assert api.deploy(first, **there_)["trusted_on_first_use"]
        with pytest.raises(LeptonError, match="the bundle is not signed, and has to be"):
            api.deploy(second, **there_)
        signing.sign(second, keys[1])
        with pytest.raises(LeptonError, match="not signed by a key that is taken there"):
            api.deploy(second, **there_)
        current = os.readlink(tmp_path / "apps" / "net" / "current")  # noqa: PTH115
        signing.sign(second, keys[0])
        done = api.deploy(second, **there_)
        assert f"versions/{done['previous']}" == current and not done["trusted_on_first_use"]
    finally:
        pi.stop()
