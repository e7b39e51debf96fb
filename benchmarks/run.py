"""The published figures: runs `lepton-edge compress` on the real models, keeps the results, writes BENCHMARKS.md.

    python benchmarks/run.py [--shared DIR] [--only NAME ...]

DIR (default: shared/ beside the checkout) holds the models and data named in CASES; what is absent is named and
left out. Each case is one run of the command as a user would type it; its run.json without the raw samples is
kept in benchmarks/results/. The tables in BENCHMARKS.md are generated from those files only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import BIN, RESULTS, ROOT
from page import update

# name: model, calibration, evaluation, further arguments; None: the embedded sample
CASES: dict[str, tuple[str, str, str, list[str]] | None] = {
    "fashion_cnn": None,
    "ic_resnet8": ("mlperf_tiny/ic_resnet8.h5", "cifar10/calib.npz", "cifar10/eval.npz", []),
    "kws_dscnn": ("mlperf_tiny/kws_dscnn_savedmodel", "speech_commands/calib.npz", "speech_commands/eval.npz", []),
    "mobilenet_v2_onnx": (
        *("models/mobilenet_v2.onnx", "imagenet_sample/calib", "imagenet_sample/eval"),
        ["--preprocess", "imagenet"],
    ),
    "mobilenet_v2_pt2": (
        *("models/mobilenet_v2.pt2", "imagenet_sample/calib", "imagenet_sample/eval"),
        ["--preprocess", "imagenet"],
    ),
}


def run_case(name: str, shared: Path, out: Path) -> dict | None:
    """Run one case and return its record, or None when its files are not here."""
    case = CASES[name]
    command = [str(BIN / "lepton-edge"), "compress"]
    if case is not None:
        model, calibration, evaluation, more = case
        gone = [p for p in (model, calibration, evaluation) if not (shared / p).exists()]
        if gone:
            print(f"{name}: left out, for {', '.join(gone)} is not in {shared}")
            return None
        command += [str(shared / model), "--data", str(shared / calibration), "--eval", str(shared / evaluation), *more]
    start = time.monotonic()
    done = subprocess.run([*command, "--out", str(out / name), "--json"], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 4):
        raise SystemExit(f"{name}: exit code {done.returncode}: {done.stderr.strip()}")
    run = json.loads(done.stdout)
    for c in run["candidates"]:
        if c["latency"]:
            del c["latency"]["samples_ns"]
    print(f"{name}: {time.monotonic() - start:.0f} s, picked {run['picked']}")
    return {
        k: run[k]
        for k in ("created", "host", "model", "data", "settings", "reference", "candidates", "picked", "warnings")
    }


def start_up(rounds: int = 20) -> dict:
    """Wall seconds of `lepton-edge --help` and of `python -c "import typer"`, in turn and in random order."""
    commands = {"help": [str(BIN / "lepton-edge"), "--help"], "typer": [sys.executable, "-c", "import typer"]}
    times: dict[str, list[float]] = {k: [] for k in commands}
    for i in range(rounds + 1):
        for key in random.sample(list(commands), 2):
            start = time.perf_counter()
            subprocess.run(commands[key], capture_output=True, check=True)
            if i:  # the first of each warms the disk cache
                times[key].append(time.perf_counter() - start)
    ratios = sorted(a / b for a, b in zip(times["help"], times["typer"], strict=True))
    return {"seconds": times, "ratio_median": ratios[len(ratios) // 2], "ratio_min": ratios[0], "ratio_max": ratios[-1]}


def table(run: dict) -> list[str]:
    """The Markdown table of one case."""
    base, machine = run["reference"]["accuracy"], run["host"]
    software = ", ".join(f"{k} {machine['packages'][k]}" for k in ("ai-edge-litert", "onnxruntime", "openvino"))
    lines = [
        f"fp32 top-1 {base['top1']:.4f} on {base['count']} samples; {machine['cpu']}, "
        f"{machine['cores']} cores ({' '.join(machine['isa'])}); {software}; 1 thread, batch 1; {run['created'][:10]}.",
        "",
        "| candidate | top-1 | drop, points [95 %] | agreement | SQNR dB | bytes | p50 ms [95 %] | time / float |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in run["candidates"]:
        if c["status"] != "ok":
            lines.append(f"| {c['name']} | failed: {c['error']['message']} | | | | | | |")
            continue
        p, t, d = c["parity"], c["latency"], c["drop_ci95"]
        sqnr = f"{p['sqnr_db']:.1f}" if p["sqnr_db"] is not None else "exact"
        ratio = c["ratio"]
        against = f"{ratio['median']:.2f} [{ratio['ci95'][0]:.2f}, {ratio['ci95'][1]:.2f}]" if ratio else ""
        name = f"**{c['name']}**" if c["picked"] else c["name"]
        lines.append(
            f"| {name} | {c['accuracy']['top1']:.4f} | {c['drop_points']:+.2f} [{d[0]:+.2f}, {d[1]:+.2f}] | "
            f"{p['agreement']:.3f} | {sqnr} | {c['size_bytes']:,} | "
            f"{t['p50_ms']:.4g} [{t['p50_ci'][0]:.4g}, {t['p50_ci'][1]:.4g}] | {against} |"
        )
    return [*lines, *(f"\n> {w}" for w in run["warnings"])]


def write_page() -> None:
    """Generate this benchmark's section of BENCHMARKS.md from the kept results."""
    lines = [
        "# Benchmarks",
        "",
        "Generated by `make bench` from benchmarks/results/. Every figure is measured on the file that would ship, in",
        "the runtime it ships for. Times of different machines and runs are not comparable; the last column (paired,",
        "interleaved, in one run) is. The picked candidate is bold.",
    ]
    for name in CASES:
        file = RESULTS / f"{name}.json"
        if file.is_file():
            run = json.loads(file.read_text())
            lines += ["", f"## {name} ({run['model']['name']})", "", *table(run)]
    file = RESULTS / "start_up.json"
    if file.is_file():
        s = json.loads(file.read_text())
        lines += [
            "",
            "## Start-up",
            "",
            f"`lepton-edge --help` takes {s['ratio_median']:.2f}x (from {s['ratio_min']:.2f}x to "
            f"{s['ratio_max']:.2f}x) the time of "
            f'`python -c "import typer"`, {len(s["seconds"]["help"])} interleaved pairs.',
        ]
    update("compress", lines)


def main() -> None:
    """Run the cases asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("LEPTON_EDGE_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--shared", type=Path, default=default, help="folder with data/ in it")
    parser.add_argument("--only", nargs="*", choices=[*CASES, "start_up", "page"], default=[*CASES, "start_up"])
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as out:
        for name in args.only:
            record = None
            if name == "start_up":
                record = start_up()
            elif name != "page":
                record = run_case(name, args.shared / "data", Path(out))
            if record:
                (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    write_page()


if __name__ == "__main__":
    main()
