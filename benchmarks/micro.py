"""What int8 models take of microcontrollers with an Arm Ethos-U, by Vela and TensorFlow Lite Micro: estimates.

    python benchmarks/micro.py

The int8 files of MLPerf Tiny, and ours (`quantize --integer`) made from the same float models, on three accelerators;
needs the extra [micro] and the development data. Vela is Arm's compiler: the figures are its model of the NPU, the same
on every machine.
"""

from __future__ import annotations

import json
import shutil

import edge_models
from common import RESULTS, Missing, cache, cli
from page import table, update

DEVICES = ("cortex-m55-ethos-u55", "cortex-m85-ethos-u65", "cortex-m85-ethos-u85")


def main() -> None:
    """Estimate every file on every device and write the section of the page."""
    rows = []
    for name in edge_models.SOURCES:
        made = edge_models.make(name, ("tflite all integer",))
        reference = cache("edge") / f"{name}.mlperf.tflite"
        shutil.copyfile(made.reference, reference)
        for device in DEVICES:
            told = cli("estimate", made.files["tflite all integer"], reference, "--device", device, "--data", made.eval)
            for model in told["models"]:
                del model["data"]  # a path of this machine
                whose = "MLPerf's" if "mlperf" in model["name"] else "ours"
                rows.append({"model": name, "whose": whose, "device": device, "title": told["title"], **model})
    (RESULTS / "micro.json").write_text(json.dumps({"kind": "estimated", "rows": rows}, indent=1) + "\n")
    write(rows)


def write(rows: list[dict]) -> None:
    """The section of BENCHMARKS.md."""
    npu, micro, left = [], [], {}
    for r in rows:
        vela, tflm = r["estimates"]["vela"], r["estimates"]["tflite_micro"]
        npu.append([
            r["model"], r["whose"], vela["accelerator"].replace("_", "-"), f"{vela['inference_ms']:.3f}",
            f"{vela['cycles_total']:,}", f"{vela['sram_bytes'] / 1024:.1f}", f"{vela['dram_bytes'] / 1024:.1f}",
            f"{vela['flash_bytes'] / 1024:.1f}", f"{vela['macs_on_npu']:.1%}",
            f"{vela['operators_on_npu'] * vela['operators']:.0f} of {vela['operators']}",
        ])  # fmt: skip
        left[(r["model"], r["whose"])] = ", ".join(o["operator"] for o in vela["on_cpu"]) or "none"
        if r["device"] == DEVICES[0]:
            of = tflm["samples"]
            micro.append([
                r["model"], r["whose"], f"{tflm['arena_bytes'] / 1024:.1f}",
                f"{tflm['reference']['same']} of {of}", worst(tflm["reference"]),
                f"{tflm['litert']['same']} of {of}", worst(tflm["litert"]),
            ])  # fmt: skip
    first = rows[0]["estimates"]
    settings = dict.fromkeys(
        f"{v['accelerator'].replace('_', '-')}: {v['system_config']}, {v['memory_mode']}, {v['clock_mhz']:.0f} MHz"
        for v in (r["estimates"]["vela"] for r in rows)
    )
    micro_version, litert = first["tflite_micro"]["version"], first["tflite_micro"]["against"]
    update("micro", [
        "## Microcontrollers: Ethos-U and TensorFlow Lite Micro, estimated",
        "",
        f"Estimates by ethos-u-vela {first['vela']['version']}, with its own settings ({'; '.join(settings)}). The "
        "time of operators that are left to the CPU is not in them. Written by `benchmarks/micro.py`.",
        "",
        *table(["model", "int8 file", "accelerator", "ms", "cycles", "SRAM KiB", "DRAM KiB", "flash KiB", "MACs on NPU",
                "operators on NPU"], npu),
        "",
        *[f"- left to the CPU of {name}, {whose}: {what}" for (name, whose), what in left.items()],
        "",
        f"TensorFlow Lite Micro {micro_version} against {litert}, on the first {first['tflite_micro']['samples']} "
        "evaluation samples: LiteRT's reference kernels round as it does, its fast ones (XNNPACK) otherwise.",
        "",
        *table(["model", "int8 file", "arena KiB", "same as reference kernels", "largest difference",
                "same as LiteRT", "largest difference"], micro),
    ])  # fmt: skip


def worst(told: dict) -> str:
    """The largest difference of the only output: in steps where it is quantized, else in probability."""
    (off,) = told["outputs"].values()
    return f"{off['max_abs']:.2g}" if off["max_lsb"] is None else f"{off['max_lsb']} LSB"


if __name__ == "__main__":
    try:
        main()
    except Missing as e:
        raise SystemExit(str(e)) from e
