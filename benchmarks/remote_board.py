"""A remote board end to end: latency and parity in three runtimes, deployment, rollback, and all that may break.

    python benchmarks/remote_board.py [--namespace] [--only bench deploy faults]

The board is a real sshd on loopback (tests/board.py), so its figures are this machine's. With --namespace all of it
runs in a network namespace of its own whose loopback carries 20 Mbit/s (needs root, unshare, ip and tc).
Results: benchmarks/results/remote_board.json, and the section "A board over SSH" of BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import BIN, RESULTS, ROOT, cache, cli, last_words, shared
from page import table, update

sys.path.append(str(ROOT / "tests"))
RESULT = RESULTS / "remote_board.json"
RATE = "20mbit"
MODELS = {
    "ic_resnet8": ("mlperf_tiny/ic_resnet8.h5", "cifar10/calib.npz", "cifar10/eval.npz", ()),
    "mobilenet_v2": (
        *("models/mobilenet_v2.onnx", "imagenet_sample/calib", "imagenet_sample/eval"),
        ("--preprocess", "imagenet"),
    ),
}
CUTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the time that an undisturbed run takes


def compressed(name: str) -> Path:
    """The run folder of a model, made once: float and int8 in three formats, and the bundle of the picked one."""
    out = cache("board") / name
    if not (out / "run.json").is_file():
        model, calibration, evaluation, more = MODELS[name]
        data = ("--data", shared(calibration), "--eval", shared(evaluation), *more)
        cli("compress", shared(model), *data, "--out", out, "--seconds", "1")
    return out


def files(run: Path) -> list[Path]:
    """The artefacts of a run."""
    told = json.loads((run / "run.json").read_text())
    return [run / c["path"] for c in told["candidates"] if c["status"] == "ok"]


def bench_rows(names: tuple[str, ...]) -> list[dict]:
    """Every file on the board: latency, and its answers against this machine's."""
    rows = []
    for name in names:
        _, _, evaluation, more = MODELS[name]
        found = cli("bench", *files(compressed(name)), "--device", "board", "--data", shared(evaluation), *more)
        for row in found["rows"]:
            keep = ("name", "format", "size_bytes", "runtime", "parity", "accuracy", "error")
            latency = {
                k: v for k, v in (row["latency"] or {}).items() if k not in ("samples_ns", "process_of_round", "warmup")
            }
            rows.append({"model": name, **{k: row[k] for k in keep}, "latency": latency})
            print(
                rows[-1]["name"],
                latency.get("p50_ms"),
                row["parity"] and row["parity"]["sqnr_db"],
                row["error"],
                flush=True,
            )
    return rows


def run_cli(*arguments: object, environ: dict[str, str] | None = None) -> subprocess.Popen:
    """The command, started."""
    command = [str(BIN / "lepton-edge"), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | (environ or {}), **pipes)  # type: ignore[call-overload]


def deployments(board) -> list[dict]:
    """Two versions, a rollback, and what the board says of itself after each."""
    rows = []

    def note(what: str, *arguments: object) -> None:
        start = time.monotonic()
        done = run_cli(*arguments)
        out, err = done.communicate()
        said = last_words(out if not done.returncode else err).replace(str(board.folder), "~")
        rows.append(
            {"what": what, "code": done.returncode, "seconds": round(time.monotonic() - start, 1), "said": said}
        )
        print(rows[-1], flush=True)

    app = ("--device", "board", "--name", "app", "--to", board.folder / "apps")
    note("first version", "deploy", compressed("ic_resnet8") / "bundle", *app)
    note("second version", "deploy", compressed("mobilenet_v2") / "bundle", *app)
    note("what is there", "deploy", "--list", *app)
    note("rollback", "deploy", "--rollback", *app)
    return rows


def faults(board) -> list[dict]:
    """Everything on the list of what may happen to a board, each with what the command says and what is left behind."""
    model = files(compressed("ic_resnet8"))
    rows: list[dict] = []

    def note(what: str, process: subprocess.Popen, disturb: Callable[[subprocess.Popen], None] | None = None) -> dict:
        start = time.monotonic()
        if disturb:
            disturb(process)
        out, err = process.communicate()
        seconds = time.monotonic() - start
        deadline = time.monotonic() + 45
        while board.left() and time.monotonic() < deadline:
            time.sleep(0.2)
        told = json.loads(out) if out.lstrip().startswith("{") else {}
        local = [r for r in told.get("rows", []) if r["device"]["name"] == "local"]
        row = {
            "what": what,
            "code": process.returncode,
            "seconds": round(seconds, 1),
            "said": _said(told, err),
            "local_rows": sum(bool(r["latency"]) for r in local),
            "board_rows": sum(bool(r["latency"]) for r in told.get("rows", []) if r["device"]["name"] != "local"),
            "left": board.left(),
        }
        rows.append(row)
        print(row, flush=True)
        return row

    def bench(device: str = "board", environ: dict[str, str] | None = None, *more: object) -> subprocess.Popen:
        devices = f"{device},local"
        return run_cli("bench", *model, "--device", devices, "--seconds", "1", "--json", *more, environ=environ)

    plain = note("nothing: for comparison", bench())
    for share in CUTS:

        def cut(process: subprocess.Popen, share: float = share) -> None:
            time.sleep(share * plain["seconds"])
            for pid in board.sessions():
                os.kill(pid, signal.SIGKILL)

        note(f"connection cut after {share:.0%} of the time", bench(), cut)
    wrong = board.folder / "wrong_known"
    key = (board.folder / "user.pub").read_text().split()
    wrong.write_text(f"[127.0.0.1]:{board.port} {key[0]} {key[1]}\n")
    note("wrong host key", bench(environ={"LEPTON_EDGE_SSH": f"{board.client} -o UserKnownHostsFile={wrong}"}))
    board.toml(_devices(), "nopython", python="python9.9")
    note("no Python there", bench("nopython"))
    if os.getuid() == 0:
        small = board.folder / "small"
        small.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], check=True)
        try:
            board.toml(_devices(), "fulldisk", temp=str(small))
            note("full disk (300 kB)", bench("fulldisk"))
            rows[-1]["left"] = sorted(p.name for p in small.iterdir())
        finally:
            subprocess.run(["umount", small], check=True)
    wheels = _foreign_wheels()
    note("wheels of another processor", bench("board", None, "--wheels", wheels))

    def kill(process: subprocess.Popen) -> None:
        time.sleep(0.5 * plain["seconds"])
        process.kill()

    note("the host's process killed (-9)", bench(), kill)
    return rows


def _said(told: dict, err: str) -> str:
    """What the user reads: the notes of the board, the errors of its rows, the last line on stderr."""
    texts = [n for e in told.get("environments", {}).values() for n in e.get("notes", ())]
    texts += [r["error"]["message"] for r in told.get("rows", []) if r["error"]]
    unique = list(dict.fromkeys(texts)) or [last_words(err)]
    return " / ".join(unique)[:400]


def _foreign_wheels() -> Path:
    """Wheels of ONNX Runtime's dependencies for aarch64: what a careless copy would carry to an x86-64 board."""
    from lepton_edge import wheelhouse

    folder = cache("board", "wheels")
    wheelhouse.wheels(("numpy<2",), "aarch64", "3.11", folder)
    return folder


def _devices() -> Path:
    return Path(os.environ["LEPTON_EDGE_DEVICES"])


def write_page() -> None:
    """The section of BENCHMARKS.md, from the kept results."""
    told = json.loads(RESULT.read_text())
    lines = [
        "# A board over SSH",
        "",
        "A real sshd on loopback; `python benchmarks/remote_board.py`.",
    ]
    network = told["networks"]
    if rows := told.get("bench"):
        text = "one thread, and the answers of the file there against the same file here"
        lines += ["", f"Latency there{network['bench']}, {text}:", ""]
        cells = []
        for r in rows:
            p, t = r["parity"], r["latency"]
            same = "the same" if p and p["sqnr_db"] is None else f"{p['sqnr_db']:.1f} dB" if p else ""
            top1 = f"{r['accuracy']['top1']:.4f}" if r["accuracy"] else ""
            runtime = f"{r['runtime']['runtime']} {r['runtime']['version']}" if r["runtime"] else ""
            p50 = f"{t['p50_ms']:.3f} [{t['p50_ci'][0]:.3f}, {t['p50_ci'][1]:.3f}]" if t else r["error"]["message"]
            cells.append([r["model"], r["name"], runtime, p50, same, top1])
        lines += table(["model", "file", "runtime there", "p50 ms [95 %]", "answers", "top-1 there"], cells)
    if rows := told.get("deploy"):
        lines += ["", f"Deployment{network['deploy']}:", ""]
        lines += table(
            ["step", "exit code", "s", "last line"],
            [[r["what"], str(r["code"]), str(r["seconds"]), r["said"]] for r in rows],
        )
    if rows := told.get("faults"):
        text = "while 6 files are measured on it and on this machine"
        lines += ["", f"What may happen to a board {text}{network['faults']}:", ""]
        head = [
            "what happened",
            "exit code",
            "rows of the board",
            "rows of this machine",
            "left on the board",
            "what is said",
        ]
        cells = [
            [
                r["what"],
                str(r["code"]),
                str(r["board_rows"]),
                str(r["local_rows"]),
                ", ".join(r["left"]) or "nothing",
                r["said"],
            ]
            for r in rows
        ]
        lines += table(head, cells)
    update("board", lines)


def main() -> None:
    """Start the board, show it all, keep the results."""
    import board

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespace", action="store_true")
    parser.add_argument(
        "--only", nargs="*", choices=["bench", "deploy", "faults", "page"], default=["bench", "deploy", "faults"]
    )
    args = parser.parse_args()
    if args.only == ["page"]:
        return write_page()
    for name in MODELS:
        compressed(name)
    if args.namespace and not os.environ.get("LEPTON_EDGE_IN_NAMESPACE"):
        setup = "ip link set lo up; ip link set lo mtu 1500; "
        setup += f"tc qdisc add dev lo root tbf rate {RATE} burst 64kb latency 400ms"
        command = ["unshare", "-n", "sh", "-c", f'{setup}; exec "$@"', "sh", sys.executable, *sys.argv]
        os.execvpe("unshare", command, os.environ | {"LEPTON_EDGE_IN_NAMESPACE": "1"})
    told = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    network = " in a network namespace of its own, at 20 Mbit/s" if args.namespace else ""
    with tempfile.TemporaryDirectory() as folder:
        pi = board.start(Path(folder) / "board")
        os.environ |= {"LEPTON_EDGE_SSH": pi.client, "LEPTON_EDGE_DEVICES": str(Path(folder) / "devices")}
        _devices().mkdir()
        try:
            reach = ("--python", sys.executable, "--temp", pi.temp)
            added = cli("devices", "add", f"127.0.0.1:{pi.port}", "--name", "board", *reach)
            told["cpu"] = added["cpu"]
            told["networks"] = told.get("networks", {}) | dict.fromkeys(args.only, network)
            if "bench" in args.only:
                told["bench"] = bench_rows(tuple(MODELS))
            if "deploy" in args.only:
                told["deploy"] = deployments(pi)
            if "faults" in args.only:
                told["faults"] = faults(pi)
        finally:
            pi.stop()
    RESULT.write_text(json.dumps(told, indent=1) + "\n")
    write_page()


if __name__ == "__main__":
    main()
