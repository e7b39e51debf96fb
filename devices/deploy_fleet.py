#!/usr/bin/env python3
"""Deploy a bundle to many boards in parallel, each as 'lepton-edge deploy' does it; run it again until all are done.

    python devices/deploy_fleet.py lepton-out/bundle hosts.txt -j 8

hosts.txt has a board a line, what follows are options of its transport or of deploy (to=, name=, key=, wheels=):

    pi@kitchen.local
    pi@10.0.0.7:2222  python=/usr/bin/python3.11  to=/opt/models   # the one in the hall

Boards that have this bundle already (said in the state file beside hosts.txt) are passed over. Exit code 1 when any
failed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from lepton_edge.deploy import read_bundle
from lepton_edge.errors import LeptonError, UsageError

DEPLOY = ("to", "name", "key", "wheels")


@dataclass(frozen=True)
class Host:
    """A line of the hosts file."""

    address: str
    reach: dict[str, str]  # options of its transport
    options: dict[str, str]  # options of deploy


def read_hosts(file: Path) -> list[Host]:
    """The boards of a hosts file. Raises UsageError naming the line that is none."""
    hosts: dict[str, Host] = {}
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError as e:
        raise UsageError(f"{file}: cannot be read ({e.strerror})", "check the path") from e
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as e:
            raise UsageError(f"{file}:{number}: {e}", "close the quotes") from e
        if not words:
            continue
        address, pairs = words[0], [word.partition("=") for word in words[1:]]
        if "=" in address or not all(sign for _, sign, _ in pairs):
            raise UsageError(f"{file}:{number}: '{line.strip()}'", "write user@host[:port] key=value ...")
        if address in hosts:
            raise UsageError(f"{file}:{number}: {address} is there twice", "remove one of the lines")
        told = {key: value for key, _, value in pairs}
        options = {key: told.pop(key) for key in DEPLOY if key in told}
        hosts[address] = Host(address, told, options)
    if not hosts:
        raise UsageError(f"{file}: there is no host in it", "write one a line")
    return list(hosts.values())


def deploy(host: Host, bundle: Path, device: Path, more: list[str]) -> dict:
    """Deploy to one board, in a process of its own: a row of the table. ``device`` is where to describe the board."""
    lines = [
        f"title = {json.dumps(host.address)}",
        'kind = "measured"',
        'transport = "ssh"',
        'arch = "host"',
        "[reach]",
    ]
    lines += [f"{key} = {json.dumps(value)}" for key, value in {"address": host.address, **host.reach}.items()]
    device.write_text("\n".join(lines) + "\n", "utf-8")
    options = [f"--{key}={value}" for key, value in host.options.items()]
    command = [sys.executable, "-m", "lepton_edge", "deploy", str(bundle), "--device", str(device), "--json"]
    start = time.monotonic()
    done = subprocess.run([*command, *more, *options], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    row = {"host": host.address, "ok": done.returncode == 0, "seconds": round(time.monotonic() - start, 1)}
    try:
        told = json.loads(done.stdout)
    except ValueError:
        told = {"error": {"message": (done.stderr.strip().splitlines() or ["no answer"])[-1], "hint": ""}}
    error = told.get("error", {})
    reason = "; ".join(filter(None, (error.get("message"), error.get("hint"))))
    return {**row, "version": told.get("version", ""), "sha256": told.get("sha256", ""), "reason": reason}


def keep(file: Path, state: dict) -> None:
    """Write the state aside, then rename."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(state, indent=1), "utf-8")
    part.replace(file)


def show(rows: list[dict]) -> None:
    """The table."""
    width = max(len(row["host"]) for row in rows)
    print(f"{'host':{width}}  {'':7} {'version':12} {'seconds':>7}  reason")
    for row in rows:
        state = "skipped" if row.get("skipped") else "ok" if row["ok"] else "FAILED"
        print(f"{row['host']:{width}}  {state:7} {row['version']:12} {row['seconds']:7.1f}  {row['reason']}".rstrip())


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("hosts", type=Path)
    parser.add_argument("-j", "--jobs", type=int, default=8, help="boards at a time (8)")
    parser.add_argument("--state", type=Path, help="where what is done is kept (HOSTS.state.json)")
    parser.add_argument("--again", action="store_true", help="also boards that have this bundle already")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--service", action="store_true", help="also a systemd service, see 'lepton-edge deploy'")
    for key in DEPLOY:
        parser.add_argument(f"--{key}", help=f"{key}= of the boards that say nothing else")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error("--jobs counts from 1")
    try:
        bundle, hosts = read_bundle(options.bundle), read_hosts(options.hosts)
    except LeptonError as e:
        print(f"error: {e.message}\nhint: {e.hint}", file=sys.stderr)
        return e.exit_code
    file = options.state or options.hosts.with_name(options.hosts.name + ".state.json")
    try:
        state = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        done = {h for h, row in state.items() if row["sha256"] == bundle.sha256 and not options.again}
    except (ValueError, KeyError, TypeError, AttributeError):
        print(f"error: {file} is damaged\nhint: remove it: then all boards are looked at again", file=sys.stderr)
        return 1
    rows = {h: {**state[h], "host": h, "skipped": True, "ok": True, "seconds": 0.0} for h in done}
    left = [h for h in hosts if h.address not in done]
    more = ["--service"] if options.service else []
    more += [f"--{key}={value}" for key in DEPLOY if (value := getattr(options, key))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        jobs = [(host, options.bundle, Path(folder) / f"board{k}.toml", more) for k, host in enumerate(left)]
        pending = [pool.submit(deploy, *job) for job in jobs]
        try:
            for k, future in enumerate(as_completed(pending), 1):
                row = rows[future.result()["host"]] = future.result()
                print(f"[{k}/{len(left)}] {row['host']}: {'ok' if row['ok'] else row['reason']}", file=sys.stderr)
                if row["ok"]:
                    state[row["host"]] = {"version": row["version"], "sha256": row["sha256"], "reason": ""}
                    keep(file, state)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print("interrupted; the same command goes on with the boards that are left", file=sys.stderr)
            return 130
    ordered = [rows[h.address] for h in hosts]
    if options.json:
        print(json.dumps({"bundle": bundle.sha256, "hosts": ordered}, indent=1))
    else:
        show(ordered)
    return 0 if all(row["ok"] for row in ordered) else 1


if __name__ == "__main__":
    sys.exit(main())
