"""What estimators say of a row: cycles, memory, what is left to the CPU. See estimators/."""

from __future__ import annotations

from typing import Any

from lepton_edge.bench_report.documents import Entry
from lepton_edge.report_cells import Cell, missing
from lepton_edge.report_schema import finite
from lepton_edge.texts import percent, size


def told(e: Entry, estimator: str) -> dict[str, Any]:
    """The answer of an estimator; {} where it gave none."""
    return (e.row.get("estimates") or {}).get(estimator) or {}


def cycles_cell(e: Entry) -> Cell:
    """Cycles of an inference by Vela, and the share of operators that the NPU takes."""
    vela = told(e, "vela")
    if not finite(vela.get("cycles_total")):
        return missing("not estimated")
    share = vela.get("operators_on_npu")
    setting = ", ".join(str(vela[key]) for key in ("accelerator", "system_config", "memory_mode") if vela.get(key))
    sub = f"{percent(share)} of operators on the NPU" if finite(share) else ""
    return Cell(f"{vela['cycles_total']:,.0f}", sub, f"estimated by Vela: {setting}", vela["cycles_total"])


def sram_cell(e: Entry) -> Cell:
    """SRAM that Vela plans with, and flash."""
    vela = told(e, "vela")
    if not finite(vela.get("sram_bytes")):
        return missing("not estimated")
    flash = f"flash {size(vela['flash_bytes'])}" if finite(vela.get("flash_bytes")) else ""
    return Cell(size(vela["sram_bytes"]), flash, "estimated by Vela", vela["sram_bytes"])


def arena_cell(e: Entry) -> Cell:
    """The arena that TensorFlow Lite Micro needs, and whether the device has it."""
    micro = told(e, "tflite_micro")
    if micro.get("loads") is False:
        return Cell("does not load", title=str(micro.get("reason") or ""))
    if not finite(micro.get("arena_bytes")):
        return missing("not estimated")
    fits = {True: "fits", False: "does not fit"}.get(micro.get("fits"), "")  # type: ignore[arg-type]
    same = (micro.get("reference") or {}).get("same")
    title = "estimated with TensorFlow Lite Micro"
    if finite(same) and finite(micro.get("samples")):
        title += f"; the same answers as reference kernels on {same:,} of {micro['samples']:,} samples"
    return Cell(size(micro["arena_bytes"]), fits, title, micro["arena_bytes"])


def doubts(e: Entry) -> list[str]:
    """What does not run where it should: operators left to the CPU, a model that does not load or fit."""
    micro = told(e, "tflite_micro")
    said = [
        f"{left.get('operator') or 'an operator'} {left.get('name') or ''} is left to the CPU".replace("  ", " ")
        + (f": {left['reason']}" if left.get("reason") else "")
        for left in told(e, "vela").get("on_cpu") or []
    ]
    if micro.get("loads") is False:
        said.append(f"does not load in TensorFlow Lite Micro: {micro.get('reason') or 'it gave no reason'}")
    if micro.get("fits") is False:
        said.append(f"needs an arena of {arena_cell(e).text}, more than the device has")
    return said
