"""Run dicts for the report's tests: realistic, the same on every machine, made without running anything."""

from __future__ import annotations

import hashlib
import math
import random
from typing import Any

from lepton_edge import choose

#         name              accuracy  sqnr  agree  size       zip      p50    jitter  steps
FULL = (
    ("tflite", "float32", 0.9130, 131.2, 1.0, 412_644, 381_022, 0.1162, 0.03, ("keras_to_tflite",)),
    (
        "tflite",
        "int8",
        0.9104,
        31.4,
        0.9912,
        110_496,
        84_310,
        0.0431,
        0.02,
        ("keras_to_tflite", "quantize_tflite"),
    ),
    (
        "tflite",
        "pruned-int8",
        0.9022,
        24.8,
        0.9701,
        110_496,
        41_207,
        0.0429,
        0.03,
        ("prune_keras", "keras_to_tflite", "quantize_tflite"),
    ),
    ("onnx", "float32", 0.9130, 128.9, 1.0, 409_871, 379_115, 0.1093, 0.05, ("keras_to_onnx",)),
    ("onnx", "int8", 0.9098, 29.7, 0.9893, 118_250, 91_544, 0.0712, 0.04, ("keras_to_onnx", "quantize_onnx")),
    (
        "openvino",
        "float32",
        0.9130,
        126.1,
        1.0,
        431_902,
        388_040,
        0.1321,
        0.05,
        ("keras_to_onnx", "onnx_to_openvino"),
    ),
    (
        "openvino",
        "int8",
        0.9101,
        30.2,
        0.9904,
        151_377,
        99_213,
        0.0865,
        0.06,
        ("keras_to_onnx", "quantize_onnx", "onnx_to_openvino"),
    ),
)
REASONS = {
    "tflite-int8": "the fastest of the 6 that meet the limits",
    "tflite-pruned-int8": "top-1 drops 1.10 points, more than the 1 allowed",
    "tflite-float32": "meets the limits, 2.70x the time of tflite-int8",
    "onnx-float32": "meets the limits, 2.54x the time of tflite-int8",
    "onnx-int8": "meets the limits, 1.65x the time of tflite-int8",
    "openvino-float32": "meets the limits, 3.06x the time of tflite-int8",
    "openvino-int8": "meets the limits, 2.01x the time of tflite-int8",
}
RUNTIMES = {
    "tflite": {"runtime": "ai-edge-litert", "version": "2.3.0", "delegate": "xnnpack"},
    "onnx": {"runtime": "onnxruntime", "version": "1.32.0"},
    "openvino": {"runtime": "openvino", "version": "2026.4.0", "precision": "f32"},
}
REFERENCE = 0.9132


def full_run() -> dict[str, Any]:
    """Three formats, a pruned one, a failed one, labels, paired intervals: what a good run looks like."""
    made = [_candidate(*row) for row in FULL]
    for c in made:
        moved = max(1 - c["parity"]["agreement"], c["drop_points"] / 100)  # share of answers that changed
        half = 196 * math.sqrt(moved / 5000)
        c["drop_ci95"] = [c["drop_points"] - half, c["drop_points"] + half]
    made.append(failed("onnx-pruned-int8", "onnx", "pruned-int8"))
    return _run(made, "tflite-int8")


def two_run() -> dict[str, Any]:
    """One format, float and int8."""
    run = _run([_candidate(*row) for row in FULL[:2]], "tflite-int8")
    run["candidates"][1]["reason"] = "the fastest of the 2 that meet the limits"
    run["settings"] |= {"to": ["tflite"], "max_size": 200_000, "max_latency": 0.1}
    run["warnings"] = []
    return run


def unlabelled_run() -> dict[str, Any]:
    """No labels: parity stands in for accuracy; one output is exact, p95 could not be supported."""
    run = full_run()
    for c in run["candidates"]:
        c |= {"accuracy": None, "drop_points": None, "drop_ci95": None}
        if c["latency"]:
            c["latency"] |= {"p95_ms": None, "p95_ci": None, "p99_ms": None, "count": 60}
    run["candidates"][2]["reason"] = "meets the limits, as fast as tflite-int8 within the noise, and not smaller"
    run["candidates"][5]["parity"] |= {"sqnr_db": None, "max_abs": 0.0}
    run["reference"]["accuracy"] = None
    run["data"]["evaluation"]["labels"] = False
    run["settings"]["max_drop"] = 2.5
    return flagged(run)


def rejected_run() -> dict[str, Any]:
    """Everything ran and nothing met the limits."""
    run = full_run()
    for c in run["candidates"]:
        c["picked"] = False
        c.pop("drop_ci95", None)
        if c["status"] == "ok":
            c["reason"] = f"{c['size_bytes']:,} bytes, more than the 100,000 allowed"
    run["picked"] = None
    run["settings"] |= {"max_size": 100_000, "max_latency": 5.0}
    return run


def broken_run() -> dict[str, Any]:
    """Every candidate failed."""
    names = (("tflite-int8", "tflite", "int8"), ("onnx-float32", "onnx", "float32"))
    return _run([failed(*n) for n in names], None)


def wide_run() -> dict[str, Any]:
    """Three orders of magnitude of latency, long names, formats and schemes of other people."""
    times = (0.021, 0.034, 0.19, 0.21, 1.7, 4.4, 9.7, 21.0, 38.0)
    formats = ("tflite", "onnx", "openvino", "pt2", "ncnn", "tflite", "onnx", "openvino", "savedmodel")
    schemes = ("int8", "int8", "int8", "w4a8", "float16", "float32", "float32", "float32", "w8a16-blockwise")
    made = []
    for i, (ms, fmt, scheme) in enumerate(zip(times, formats, schemes, strict=True)):
        acc = 0.70 + 0.013 * i + (0.02 if i % 2 else 0)
        row = _candidate(fmt, scheme, acc, 14 + 4 * i, 0.9, int(9e5 * 1.9**i), int(7e5 * 1.9**i), ms, 0.08, ("a_to_b",))
        row["name"] = f"{fmt}-{scheme}-per-channel-symmetric-weights-learned-rounding-{i}"
        row |= {"ratio": None, "reason": f"meets the limits, {ms / times[0]:.2f}x the time of the first"}
        made.append(row)
    made[0]["reason"] = "the fastest of the 9 that meet the limits"
    run = _run(made, made[0]["name"])
    run["settings"]["max_drop"] = 25.0
    return flagged(run)


def hostile_run() -> dict[str, Any]:
    """Names and messages that try to leave their place in HTML, SVG, Markdown, CSV and a terminal."""
    run = full_run()
    attack = '<script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)>'
    run["model"]["name"] = f"=cmd|' /C calc'!A0 {attack}.keras"
    run["candidates"][0]["name"] = run["candidates"][1]["ratio"]["to"] = f"{attack} $\\frac{{1}}$ | `x` \x1b[31m\u202e"
    run["candidates"][4]["reason"] = f"line one\nline two {attack}"
    run["candidates"][4]["name"] = "模型-\ud800-onnx"
    run["candidates"][4]["steps"][0]["options"] = {attack: [attack]}
    run["candidates"][4]["parity"]["outputs"] = {attack: run["candidates"][4]["parity"]["outputs"]["logits"]}
    run["candidates"][-1]["error"] = {"message": f"@SUM(1) ]]> --> {attack}", "hint": attack}
    run["warnings"] = [f"# {attack}", "--> ]]> </style></script>"]
    run["preprocessing"] = {attack: {"deep": [attack]}}
    return run


def flagged(run: dict[str, Any]) -> dict[str, Any]:
    """The run with the flags of its Pareto front."""
    front = choose.pareto(run["candidates"])
    for c in run["candidates"]:
        c["pareto"] = c["name"] in front
    return run


def failed(name: str, fmt: str, scheme: str) -> dict[str, Any]:
    """A candidate whose second step failed."""
    message = "quantize_onnx: node 'Gather_12' has an int64 output that feeds a quantized input"
    return {
        "name": name,
        "format": fmt,
        "scheme": scheme,
        "path": None,
        "sha256": None,
        "size_bytes": None,
        "zip_bytes": None,
        "steps": [{"step": "keras_to_onnx", "seconds": 2.1, "cached": True, "options": {}, "notes": []}],
        "status": "failed",
        "error": {"message": message, "hint": "exclude the node with --exclude Gather_12"},
        "runtime": None,
        "parity": None,
        "accuracy": None,
        "drop_points": None,
        "latency": None,
        "ratio": None,
        "picked": False,
        "pareto": False,
        "reason": f"failed: {message}",
    }


def _candidate(
    fmt: str,
    scheme: str,
    acc: float,
    sqnr: float,
    agree: float,
    size: int,
    zipped: int,
    p50: float,
    jitter: float,
    steps: tuple[str, ...],
) -> dict[str, Any]:
    name = f"{fmt}-{scheme}"
    base = next((row[7] for row in FULL if row[0] == fmt and row[1] == "float32"), None)
    part = {
        "count": 5000,
        "max_abs": 10 ** (-sqnr / 20) * 8,
        "cosine": 1 - 10 ** (-sqnr / 10) / 2,
        "sqnr_db": sqnr,
        "agreement": agree,
    }
    half = 1.96 * math.sqrt(acc * (1 - acc) / 5000)
    return {
        "name": name,
        "format": fmt,
        "scheme": scheme,
        "path": f"artifacts/fashion_cnn.{scheme}.{fmt}",
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "size_bytes": size,
        "zip_bytes": zipped,
        "steps": [
            {
                "step": s,
                "seconds": 1.3 + len(s) / 10,
                "cached": i == 0,
                "options": {"fixed_batch": 1} if not i else {"bits": 8, "per_channel": True},
                "notes": ["3 constants folded"] if i else [],
            }
            for i, s in enumerate(steps)
        ],
        "status": "ok",
        "error": None,
        "runtime": RUNTIMES.get(fmt, {"runtime": fmt, "version": "1.0"}),
        "parity": {"kind": "measured", **part, "outputs": {"logits": dict(part)}},
        "accuracy": {
            "top1": acc,
            "top5": min(1.0, acc + 0.07),
            "count": 5000,
            "ci95": [acc - half, acc + half],
        },
        "drop_points": round((REFERENCE - acc) * 100, 9),
        "latency": _latency(p50, jitter, name),
        "ratio": None
        if scheme == "float32" or not base
        else {
            "to": f"{fmt}-float32",
            "median": p50 / base,
            "ci95": [p50 / base * 0.97, p50 / base * 1.03],
            "verdict": "faster",
        },
        "picked": name == "tflite-int8",
        "pareto": False,
        "reason": REASONS.get(name, ""),
    }


def _latency(p50: float, jitter: float, seed: str) -> dict[str, Any]:
    rng = random.Random(seed)
    rounds = []
    high = 1 + 0.67 * jitter  # the median of the samples below is p50
    for _ in range(10):
        drift = rng.gauss(1, jitter / 4)
        rounds.append(
            [
                int(p50 / high * 1e6 * drift * (1 + abs(rng.gauss(0, jitter)) + (rng.random() > 0.97) * rng.random()))
                for _ in range(100)
            ]
        )
    return {
        "kind": "measured",
        "p50_ms": p50,
        "p50_ci": [p50 * (1 - jitter / 6), p50 * (1 + jitter / 5)],
        "p90_ms": p50 * 1.07,
        "p95_ms": p50 * 1.12,
        "p95_ci": [p50 * 1.10, p50 * 1.16],
        "p99_ms": None,
        "mean_ms": p50 * 1.03,
        "count": 1000,
        "rounds": 10,
        "first_ms": p50 * 4,
        "load_ms": 3.1 + p50,
        "peak_rss_mb": 58.4,
        "threads": 1,
        "samples_ns": rounds,
    }


def _run(candidates: list[dict[str, Any]], picked: str | None) -> dict[str, Any]:
    for c in candidates:
        c["picked"] = c["name"] == picked
    run = {
        "schema": "lepton-edge.run/1",
        "created": "2026-03-14T09:26:53+00:00",
        "command": "compress",
        "seconds": 192.4,
        "tool": {"name": "lepton-edge", "version": "0.1.0"},
        "host": {
            "cpu": "Example CPU 9000 @ 2.5 GHz",
            "cores": 4,
            "isa": ["avx2", "avx512_vnni"],
            "governor": None,
            "memory_gb": 15.9,
            "os": "Linux 6.1",
            "python": "3.11.7",
            "packages": {"openvino": "2026.4.0", "onnxruntime": "1.32.0", "ai-edge-litert": "2.3.0"},
        },
        "device": {"name": "local", "title": "this machine", "kind": "measured"},
        "model": {
            "name": "fashion_cnn.keras",
            "format": "keras",
            "sha256": hashlib.sha256(b"model").hexdigest(),
            "size_bytes": 1_284_530,
            "inputs": [{"name": "image", "shape": [None, 28, 28, 1], "dtype": "float32"}],
            "outputs": [{"name": "logits", "shape": [None, 10], "dtype": "float32"}],
        },
        "data": {
            "calibration": {"source": "train.npz", "count": 300},
            "evaluation": {"source": "test.npz", "count": 5000, "labels": True},
        },
        "preprocessing": {"scale": 0.00392156862745098, "mean": [0.0], "std": [1.0], "layout": "NHWC"},
        "settings": {
            "to": ["tflite", "onnx", "openvino"],
            "max_drop": 1.0,
            "max_size": None,
            "max_latency": None,
            "threads": 1,
            "seed": 0,
        },
        "reference": {
            "runtime": {"runtime": "keras", "version": "3.15.0"},
            "accuracy": {"top1": REFERENCE, "top5": 0.9971, "count": 5000},
        },
        "candidates": candidates,
        "picked": picked,
        "warnings": ["the frequency governor could not be read: set it to performance for steadier times"],
    }
    return flagged(run)
