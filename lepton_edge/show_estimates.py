"""Printing estimates on a terminal."""

from __future__ import annotations

from lepton_edge.show import _console, _line, _table
from lepton_edge.texts import DASH, ms, percent, size


def table(result: dict) -> None:
    """One row a model and estimator, then what does not run on the accelerator, and why."""
    console = _console()
    _line(console, f"{result['title']} (estimated)", style="bold")
    told = {name for m in result["models"] for name, e in m["estimates"].items() if "error" not in e}
    if "vela" in told:
        rows = _table("model", ">ms", ">cycles", ">SRAM", ">DRAM", ">flash", ">MACs on NPU", ">operators on NPU")
        for m in result["models"]:
            if "cycles_total" in (e := m["estimates"]["vela"]):
                rows.add_row(
                    m["name"], ms(e["inference_ms"]), f"{e['cycles_total']:,}", size(e["sram_bytes"]),
                    size(e["dram_bytes"]), size(e["flash_bytes"]), _share(e["macs_on_npu"]),
                    f"{_share(e['operators_on_npu'])} of {e['operators']}",
                )  # fmt: skip
                setting = f"Vela {e['version']}, {e['system_config']}, {e['memory_mode']}, {e['clock_mhz']:g} MHz"
        console.print(rows)
        _line(console, f"{setting}; the time of what is left to the CPU is not in it", style="dim")
    if "tflite_micro" in told:
        rows = _table("model", ">arena", "fits", ">as reference kernels", ">off by", ">as LiteRT", ">off by ")
        for m in result["models"]:
            if "loads" in (e := m["estimates"]["tflite_micro"]):
                setting = f"TensorFlow Lite Micro {e['version']} against {e['against']}, on {m['data']}"
                if e["loads"]:
                    fits = {True: "yes", False: "no", None: DASH}[e["fits"]]
                    same = [f"{e[k]['same']} of {e['samples']}" for k in ("reference", "litert")]
                    off = [_worst(e[k]["outputs"]) for k in ("reference", "litert")]
                    rows.add_row(m["name"], size(e["arena_bytes"]), fits, same[0], off[0], same[1], off[1])
                else:
                    rows.add_row(m["name"], DASH, f"does not load: {e['reason']}")
        console.print(rows)
        _line(console, setting, style="dim")
    for m in result["models"]:
        for left in m["estimates"].get("vela", {}).get("on_cpu", ()):
            reason = f": {left['reason']}" if left["reason"] else ""
            _line(console, f"{m['name']}: {left['operator']} {left['name']} runs on the CPU{reason}")
        for name, e in m["estimates"].items():
            if "error" in e:
                _line(console, f"{m['name']}: {name}: {e['error']}", style="red")


def _share(value: float | None) -> str:
    return DASH if value is None else percent(value)


def _worst(outputs: dict) -> str:
    parts = []
    for name, off in outputs.items():
        text = f"{off['max_abs']:.2g}" if off["max_lsb"] is None else f"{off['max_lsb']} LSB"
        parts.append(text if len(outputs) == 1 else f"{name} {text}")
    return ", ".join(parts)
