"""What 'deploy' and 'bundle' print."""

from __future__ import annotations

from lepton_edge.show import _console, _line, _table
from lepton_edge.texts import DASH, number, size


def deployed(done: dict) -> None:
    """What was switched to, and why it may be trusted."""
    console = _console()
    before = f", before it {done['previous']}" if done["previous"] not in (None, done["version"]) else ""
    _line(console, f"{done['name']} {done['version']} is current on {done['address']}{before}", "bold green")
    _line(console, f"runtime: {done['runtime']['how']}; sent {size(done['sent_bytes'])} in {done['seconds']} s")
    _proved(done["self_test"])
    if done["signer"]:
        kept = ", trusted on first use and kept" if done["trusted_on_first_use"] else ""
        _line(console, f"signed by {done['signer']}{kept}")
    _line(console, f"run it there: {done['folder']}/predict photo.jpg")
    if done["service"]:
        _service(done["service"])


def rolled_back(done: dict) -> None:
    """Which version is current again."""
    line = f"{done['name']} {done['version']} is current again on {done['address']}, no longer {done['previous']}"
    _line(_console(), line, "bold green")
    _proved(done["self_test"])


def _proved(results: list[dict]) -> None:
    told = ", ".join(f"{r['what']} off by {number(r['difference'])} of {number(r['allowed'])} allowed" for r in results)
    _line(_console(), f"self-test there (measured): {told}")


def _service(told: dict) -> None:
    console = _console()
    if told["started"]:
        _line(console, f"service: {next(iter(told['units']))} listens")
    if told["note"]:
        _line(console, f"note: {told['note']}", "yellow")
    if not told["started"]:
        for name, text in told["units"].items():
            _line(console, f"\n# ~/.config/systemd/user/{name}\n{text}")


def applications(found: list[dict]) -> None:
    """A table of applications and versions."""
    console = _console()
    if not found:
        _line(console, "no application is there")
        return
    table = _table("application", "version", "", "when", "model", "runtime", "signed by")
    for app in found:
        for row in app["versions"]:
            state = "current" if row["current"] else ""
            runtime = row.get("runtime", {}).get("how", DASH)
            cells = (row.get("when", DASH), row.get("model", DASH), runtime, row.get("signer") or DASH)
            table.add_row(app["name"], row["version"], state, *cells)
    console.print(table)


def bundled(made: dict) -> None:
    """Where the bundle is, its signature and its image."""
    console = _console()
    _line(console, f"bundle: {made['bundle']} ({made['version']})", "bold green")
    if made["signature"]:
        _line(console, f"signed: {made['signature']}")
    if image := made["image"]:
        _line(console, f"image: {image['file']} ({size(image['size_bytes'])})")
        for row in image["images"]:
            _line(console, f"  {row['arch']}: {size(row['size_bytes'])}, {row['python']}, {row['digest']}")
