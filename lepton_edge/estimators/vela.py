"""Arm Ethos-U by its compiler, Vela: cycles, memory, and what does not run on the NPU."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from lepton_edge.errors import LeptonError
from lepton_edge.inspectors import tflite

REQUIRES = ("ethos-u-vela>=5",)
KIB = 1024


def estimate(
    model: str, *, accelerator: str = "ethos-u55-128", system_config: str = "", memory_mode: str = "", keep: str = ""
) -> dict:
    """What Vela says of an int8 TFLite file on ``accelerator`` ("ethos-u55-128": 128 MACs a cycle).

    ``system_config`` and ``memory_mode`` are sections of Vela's own configuration; without them it takes those that its
    documentation gives for the accelerator, and the result tells which. Milliseconds and cycles are the NPU's: what
    runs on the CPU is not in them. ``keep`` is a folder for the table of layers and the compiled model.
    Returns inference_ms, cycles, bytes of memory, MACs, shares on the NPU, and the operators left with reasons.
    Raises LeptonError with Vela's own words where it refuses the file or an option.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ethosu.vela", model, "--output-dir", folder, "--verbose-performance"]
        command += ["--accelerator-config", accelerator]
        command += ["--system-config", system_config] if system_config else []
        command += ["--memory-mode", memory_mode] if memory_mode else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        made = sorted(Path(folder).iterdir())
        summary = next((f for f in made if "_summary_" in f.name), None)
        layers = next((f for f in made if f.name.endswith("per-layer.csv")), None)
        if done.returncode or summary is None or layers is None:
            raise LeptonError(*_why(Path(model).name, done.stdout + done.stderr))
        figures = _read(summary)[0]
        rows = _read(layers)
        for file in made if keep else ():
            shutil.copyfile(file, Path(keep) / file.name)
    return _result(model, figures, rows, _reasons(done.stdout))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _result(model: str, figures: dict[str, str], rows: list[dict[str, str]], reasons: dict[str, str]) -> dict:
    known = {layer["name"]: layer for layer in tflite.inspect(model)["layers"]}
    # Rows are of Vela's own, finer operators; the names of those that it leaves alone are the file's.
    cpu = list(dict.fromkeys(row["Name"] for row in rows if row["Target"] != "NPU"))
    total = sum(layer["macs"] for layer in known.values())
    left = sum(known[name]["macs"] for name in cpu if name in known)
    operators = max(len(known), len(cpu))
    return {
        "version": metadata.version("ethos-u-vela"),
        "accelerator": figures["accelerator_configuration"],
        "system_config": figures["system_config"],
        "memory_mode": figures["memory_mode"],
        "clock_mhz": float(figures["core_clock"]) / 1e6,
        "inference_ms": float(figures["inference_time"]) * 1e3,
        "cycles_total": int(float(figures["cycles_total"])),
        "cycles_npu": int(float(figures["cycles_npu"])),
        "sram_bytes": round(float(figures["sram_memory_used"]) * KIB),
        "dram_bytes": round(float(figures["dram_memory_used"]) * KIB),
        "flash_bytes": round(
            (float(figures["on_chip_flash_memory_used"]) + float(figures["off_chip_flash_memory_used"])) * KIB
        ),
        "macs": total,
        "macs_on_npu": (total - left) / total if total else None,
        "operators": operators,
        "operators_on_npu": (operators - len(cpu)) / operators if operators else None,
        "on_cpu": [
            {"operator": known.get(name, {}).get("op", ""), "name": name, "reason": reasons.get(name, "")}
            for name in cpu
        ],
        "layers": [
            {
                "name": row["Name"],
                "operator": row["Original Operator"],
                "target": row["Target"],
                "cycles": int(float(row["Op Cycles"])),
                "macs": int(float(row["MAC Count"])),
            }
            for row in rows
        ],
    }


def _reasons(text: str) -> dict[str, str]:
    """Why an operator does not run on the NPU, by the name of its output."""
    found = re.findall(r"\) operator: \S+, ofm: '(.*?)'\nReason: (.+)", text)
    return {name: reason.strip() for name, reason in found}


def _why(name: str, text: str) -> tuple[str, str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [x for x in lines if re.match(r"(vela: )?error", x, re.IGNORECASE)] or lines or ["it gave no reason"]
    return f"{name}: Vela cannot compile it: {telling[-1][:300]}", "see 'vela --help' for the names of its options"
