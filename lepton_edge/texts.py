"""Numbers as text, the same on the terminal and in reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lepton_edge.errors import LeptonError

DASH, MINUS = "–", "−"


def decimals(x: float, digits: int = 3) -> int:
    """Decimal places that show `digits` significant digits of x, never more than 6."""
    if not x or not math.isfinite(x):
        return 0
    rounded = float(f"{abs(x):.{digits - 1}e}")  # 9.996 has the digits of 10.0
    return min(6, max(0, digits - 1 - math.floor(math.log10(rounded))))


def number(x: float, places: int | None = None) -> str:
    """A number with three significant digits (or `places` decimals) and a true minus sign."""
    if x and abs(x) < 1e-6 and places is None:
        return f"{x:.1e}".replace("-", MINUS)
    text = f"{x:,.{decimals(x) if places is None else places}f}"
    return text.replace("-", MINUS) if float(text.replace(",", "")) else text.lstrip("-")


def size(count: float | None) -> str:
    """Bytes in decimal units: 98.5 kB, 1.23 MB."""
    if count is None:
        return DASH
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale * 0.9995:
            return f"{number(count / scale)} {unit}"
    return f"{count:,.0f} B"


def byte_count(text: str) -> int:
    """Bytes from "1GB", "512MB" or a plain number. Raises LeptonError for anything else, and for less than 1 MB."""
    kind = text.strip().upper().removesuffix("B")
    scale = {"G": 10**9, "M": 10**6, "K": 10**3}.get(kind[-1:], 1)
    try:
        count = int(float(kind[:-1] if kind[-1:] in "GMK" else kind) * scale)
    except (ValueError, OverflowError):
        count = 0
    if count < 10**6:
        raise LeptonError(f"'{text}' is not an amount of memory", "write it as 1GB or 512MB")
    return count


def ms(value: float | None) -> str:
    """Milliseconds, or a dash for a percentile that the sample count does not support."""
    return DASH if value is None else number(value)


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def shorten(name: str, limit: int = 40) -> str:
    """The end of a long tensor or layer name, which is the telling part; JSON has the whole."""
    return name if len(name) <= limit else "…" + name[-limit + 1 :]


def db(figures: dict) -> str:
    """The SQNR of parity figures in dB: "exact" for equal outputs, a dash where it is not defined."""
    if figures["sqnr_db"] is not None:
        return number(figures["sqnr_db"], 1)
    return "exact" if figures["max_abs"] == 0 else DASH


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 12 s, 1 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def interval(pair: Sequence[float] | None, scale: float = 1.0, places: int | None = None) -> str:
    """A 95 % interval in brackets, with `places` decimals or those of its larger end; empty when there is none."""
    if pair is None or not all(math.isfinite(v) for v in pair):
        return ""
    if places is None:
        places = decimals(max(abs(v) for v in pair) * scale)
    return f"[{number(pair[0] * scale, places)}, {number(pair[1] * scale, places)}]"


def runtime_name(info: Mapping[str, Any]) -> str:
    """A runtime with its version, and its device where that is not the CPU."""
    name = f"{info.get('runtime', '')} {info.get('version', '')}".strip()
    return name if info.get("device", "cpu") == "cpu" else f"{name} on {info['device']}"
