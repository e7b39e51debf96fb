"""Documents of bench for the tests of its reports: realistic, the same on every machine, nothing is run for them."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from lepton_edge import noise, stats

RUNTIMES = {
    "tflite": {"runtime": "ai-edge-litert", "version": "2.3.0", "delegate": "xnnpack", "threads": 1},
    "onnx": {"runtime": "onnxruntime", "version": "1.32.0", "threads": 1},
    "openvino": {"runtime": "openvino", "version": "2026.4.0", "precision": "f32", "threads": 1},
}
#: model, format, bytes, ms on the reference machine, top-1
MODELS = (
    ("resnet8.tflite", "tflite", 319_796, 0.261, 0.880),
    ("resnet8.int8.tflite", "tflite", 98_496, 0.081, 0.875),
    ("resnet8.onnx", "onnx", 317_775, 0.236, 0.880),
    ("resnet8.int8.onnx", "onnx", 112_524, 0.133, 0.875),
    ("resnet8.xml", "openvino", 377_049, 0.278, 0.880),
    ("resnet8.int8.xml", "openvino", 187_189, 0.129, 0.878),
)


def host(seed: str = "laptop", **more: Any) -> dict[str, Any]:
    """What host_info says of a machine; ``seed`` tells machines apart."""
    return {
        "machine_id": hashlib.sha256(seed.encode()).hexdigest()[:16],
        "cpu": "Example CPU 9000",
        "machine": "x86_64",
        "cores": 4,
        "cores_total": 4,
        "isa": ["avx2", "fma", "avx512_vnni"],
        "governor": "performance",
        "frequency_mhz": 2600.0,
        "temperature_c": 48.0,
        "memory_gb": 15.6,
        "os": "Debian GNU/Linux 12 (bookworm), Linux 6.1.0",
        "python": "3.11.9",
        "packages": {"numpy": "1.26.4"},
        "unknown": {},
        **more,
    }


def reading(mhz: float, celsius: float | None, governor: str = "performance") -> dict[str, Any]:
    """What readings.snapshot says, as far as reports look at it."""
    return {
        "governor": {"governor": governor, "driver": "acpi-cpufreq"},
        "frequency_mhz": [mhz, mhz - 100.0],
        "temperature_c": celsius,
        "load_average": [0.4, 0.3, 0.2],
        "unknown": {} if celsius is not None else {"temperature_c": "no thermal zone can be read"},
    }


def environment(info: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "machine_id": info["machine_id"],
        "host": info,
        "before": reading(2600.0, 48.0, info["governor"] or "performance"),
        "after": reading(2580.0, 61.0, info["governor"] or "performance"),
        "others_cores": 0.05,
        "warnings": [],
        **more,
    }


def samples(
    rng: random.Random, ms: float, rounds: int, each: int, processes: int, jitter: float = 0.02, drift: float = 0.0
) -> tuple[list[list[int]], list[int]]:
    """Rounds of nanoseconds with a tail of slow ones, and the process of each: processes differ by half of jitter."""
    of = [r * processes // rounds for r in range(rounds)]
    factor = [1 + rng.gauss(0, jitter / 2) for _ in range(processes)]
    turns = []
    for r in range(rounds):
        middle = ms * factor[of[r]] * (1 + drift * r / rounds)
        turns.append(
            [round(1e6 * middle * (1 + abs(rng.gauss(0, jitter)) + (rng.random() < 0.02) * 0.6)) for _ in range(each)]
        )
    return turns, of


def latency(
    rng: random.Random,
    ms: float,
    *,
    kind: str = "measured",
    rounds: int = 30,
    each: int = 20,
    processes: int = 6,
    **how: Any,
) -> dict[str, Any]:
    turns, of = samples(rng, ms, rounds, each, processes, **how)
    warmup = [{"runs": 200, "seconds": 0.2, "settled": True} for _ in range(processes)]
    figures = {
        "kind": kind,
        **stats.summarize(turns, of),
        "processes": processes,
        "batch": 1,
        "per_s": 1e3 / ms,
        "first_ms": ms * 1.6,
        "load_ms": 31.0,
        "warmup_runs": 200,
        "warmup": warmup,
        "settled": True,
        "peak_rss_mb": round(48 + 3 * ms, 2),
        "threads": 1,
        "cpus": [0, 1, 2, 3],
        "others_cores": 0.05,
        "involuntary_per_s": 0.3,
        "process_of_round": of,
        "samples_ns": turns,
    }
    return figures


def row(
    name: str, format_: str, size: int, device: dict[str, str], measured: dict[str, Any] | None, **more: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "format": format_,
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "size_bytes": size,
        "device": device,
        "data": {"source": "test.npz", "count": 600, "sha256": "d" * 64},
        "batch": 1,
        "runtime": RUNTIMES.get(format_),
        "latency": measured,
        "throughput": None,
        "energy": None,
        "ratio": None,
        "warnings": noise.row_doubts(measured) if measured and "samples_ns" in measured else [],
        "error": None,
        **more,
    }


def document(
    rows: list[dict], environments: dict[str, dict], created: str = "2026-11-20T09:30:00+00:00"
) -> dict[str, Any]:
    """With the ratio of each row to the first measured one of its device."""
    first: dict[str, dict] = {}
    for r in rows:
        if r["latency"] and r["latency"].get("samples_ns"):
            base = first.setdefault(r["device"]["name"], r)
            if base is not r and r["ratio"] is None:
                pair = r["latency"]["samples_ns"], base["latency"]["samples_ns"]
                r["ratio"] = {"to": base["name"], **stats.ratio(*pair, r["latency"]["process_of_round"])}
    return {
        "schema": "lepton-edge.bench/1",
        "created": created,
        "command": "bench",
        "seconds": 42.0,
        "tool": {"name": "lepton-edge", "version": "0.1.0"},
        "settings": {"seconds": 3.0},
        "environments": environments,
        "rows": rows,
    }


def device(name: str = "local", title: str = "this machine", kind: str = "measured") -> dict[str, str]:
    return {"name": name, "title": title, "kind": kind}


def accuracy(top1: float, count: int = 600) -> dict[str, Any]:
    return {"top1": top1, "count": count, "ci95": list(stats.proportion_interval(round(top1 * count), count))}


def load(rng: random.Random, ms: float) -> list[dict[str, Any]]:
    """A throughput sweep of four cores."""
    found = []
    for threads in (1, 2, 4):
        for streams in (1, 2, 4):
            if streams * threads <= 4:
                rate = 1e3 / ms * streams * threads**0.7 * (1 + rng.gauss(0, 0.01))
                ends = [rate * 0.97, rate * 1.03]
                found.append(
                    {
                        "streams": streams,
                        "threads": threads,
                        "per_s": rate,
                        "per_s_ci": ends,
                        "p50_ms": ms,
                        "p95_ms": ms,
                    }
                )
    return found


def two(scale: float = 1.0, seed: int = 1, created: str = "2026-11-20T09:30:00+00:00", **info: Any) -> dict[str, Any]:
    """Two rows on one machine; ``scale`` makes the first slower; ``info`` changes the machine."""
    rng, where = random.Random(seed), device()
    rows = [
        row("resnet8.tflite", "tflite", 319_796, where, latency(rng, 0.261 * scale)),
        row("resnet8.int8.tflite", "tflite", 98_496, where, latency(rng, 0.081)),
    ]
    return document(rows, {"local": environment(host(**info))}, created)


def six() -> dict[str, Any]:
    """Everything at once on one machine: accuracy, throughput, batches, energy, a row that failed, warnings."""
    rng, where = random.Random(2), device()
    rows = []
    for name, format_, size, ms, top1 in MODELS:
        joules = {"kind": "measured", "joules": ms * 8e-3, "ci95": [ms * 7.6e-3, ms * 8.4e-3], "watts": 12.1}
        joules |= {"idle_watts": 4.1, "source": "rapl", "of": "the processor packages", "reason": ""}
        swept = load(rng, ms) if format_ != "openvino" else None
        measured = latency(rng, ms, drift=0.06 if name == "resnet8.onnx" else 0.0)
        rows.append(row(name, format_, size, where, measured, accuracy=accuracy(top1), energy=joules, throughput=swept))
    for batch in (2, 4, 8):
        for name, format_, size, ms, _ in MODELS[2:4]:
            big = latency(rng, ms * batch**0.8) | {"batch": batch, "per_s": batch**0.2 * 1e3 / ms}
            rows.append(row(f"{name} batch {batch}", format_, size, where, big, model=name, batch=batch))
    rows[4] |= {"latency": None, "runtime": None, "throughput": None, "energy": None, "accuracy": None, "warnings": []}
    rows[4]["error"] = {
        "message": "timing resnet8.xml in openvino: the worker was killed (signal 9)",
        "hint": "it may need more memory than there is",
    }
    doubt = "other processes kept 0.9 of 4 cores busy while latency was measured: keep away from them with --cpus"
    return document(rows, {"local": environment(host(), others_cores=0.9, warnings=[doubt])})


def wide() -> dict[str, Any]:
    """Many rows with long names whose times span decades; little was measured of each."""
    rng, where, rows = random.Random(3), device("workstation-in-the-lab.example", "Workstation in the laboratory"), []
    for n in range(24):
        format_ = ("tflite", "onnx", "openvino")[n % 3]
        ms = 0.05 * 1.35**n
        name = f"mobilenet_v{n % 4}_alpha{n}_224_quantized_per_channel_pruned.{('float32', 'int8')[n % 2]}.{format_}"
        measured = latency(rng, ms, rounds=10, each=4, processes=1 + n % 2 * 2)
        rows.append(row(name, format_, 90_000 * (n + 1), where, measured, accuracy=accuracy(0.6 + 0.012 * n, 2000)))
    return document(rows, {where["name"]: environment(host("lab", governor="powersave"))})


def estimated(name: str, size: int, where: dict[str, str], ms: float, fits: bool) -> dict[str, Any]:
    """A row of estimates; one that does not fit also leaves an operator to the CPU."""
    left = [] if fits else [{"operator": "SOFTMAX", "name": "probs", "reason": "its input is float"}]
    vela = {
        "version": "4.2.0",
        "accelerator": "Ethos_U55_128",
        "system_config": "Corstone_300",
        "cycles_total": 364_500,
    }
    vela |= {"memory_mode": "Shared_Sram", "sram_bytes": 81_920, "flash_bytes": 90_112, "on_cpu": left}
    micro = {"version": "0.1", "loads": True, "arena_bytes": 53_248, "fits": fits, "samples": 8}
    return row(
        name,
        "tflite",
        size,
        where,
        {"kind": "estimated", "p50_ms": ms},
        runtime={"runtime": "vela", "version": "4.2.0"},
        estimates={
            "vela": vela | {"operators_on_npu": 1.0 if fits else 0.9},
            "tflite_micro": micro | {"reference": {"same": 8}, "litert": {"same": 7}},
        },
    )


def fleet() -> dict[str, Any]:
    """Five devices: boards that answer a little otherwise, one that was lost, an emulated and an estimated one."""
    rng = random.Random(4)
    places = (
        (device(), 1.0, host()),
        (device("pi5", "Raspberry Pi 5"), 3.1, host("pi5", cpu="Raspberry Pi 5 Cortex-A76", isa=["neon", "dotprod"])),
        (device("orin", "Jetson Orin Nano"), 1.7, host("orin", cpu="Cortex-A78AE", isa=["neon", "dotprod"], cores=6)),
        (device("pi-zero", "Raspberry Pi Zero 2 under qemu", "emulated"), 55.0, host(governor=None)),
        (device("u55", "Ethos-U55, 128 MACs", "estimated"), 9.0, None),
    )
    rows, environments = [], {}
    for where, scale, info in places:
        for name, format_, size, ms, _ in MODELS[:4]:
            parity = {
                "sqnr_db": 131.0 if "int8" not in name else 44.0 + 2 * scale,
                "max_abs": 0.01,
                "cosine": 0.9999,
                "agreement": 0.995,
                "count": 600,
            }
            more: dict[str, Any] = {"parity": parity} if where["name"] != "local" else {}
            if where["kind"] == "estimated":
                if format_ == "tflite":
                    rows.append(estimated(name, size, where, ms * scale, "int8" in name))
                continue
            rows.append(row(name, format_, size, where, latency(rng, ms * scale, kind=where["kind"]), **more))
        if info:
            environments[where["name"]] = environment(info)
    lost = next(r for r in rows if r["device"]["name"] == "orin" and r["name"] == "resnet8.int8.onnx")
    lost |= {"latency": None, "parity": None, "runtime": None, "warnings": []}
    lost["error"] = {
        "message": "orin: the connection was lost while timing resnet8.int8.onnx",
        "hint": "check its cable and power",
    }
    environments["orin"]["notes"] = ["connection lost; tried again"]
    environments["pi5"] |= {
        "after": reading(1500.0, 84.5),
        "warnings": [
            "the processor was throttled while it was measured (2 events) at 84.5 °C: cool it, or measure with pauses"
        ],
    }
    return document(rows, environments)


def hostile() -> dict[str, Any]:
    """Names and texts that would be markup, formulas or more columns anywhere but in a text."""
    rng, attack = random.Random(5), '<script>alert("x")</script>'
    where = device(f"dev|{attack}", "=cmd()|'![](http://x)\u202e")
    rows = [
        row(attack, "tflite", 1000, where, latency(rng, 1.0), warnings=[f"a\nb {attack} | c"]),
        row("=HYPERLINK(1)|$\\frac{1}$\x1b[31m", "onnx", 1000, where, latency(rng, 2.0), accuracy=accuracy(0.5)),
        row('"><img src=x onerror=alert(1)>', attack, 1000, where, None, error={"message": attack, "hint": attack}),
    ]
    rows[0]["runtime"] = {"runtime": attack, "version": "`x`", "delegate": attack}
    info = host(cpu=attack, os="[x](javascript:alert(1))")
    return document(rows, {where["name"]: environment(info, notes=[attack])})


def small() -> dict[str, Any]:
    """A row with everything, and few samples."""
    rng, where = random.Random(6), device()
    joules = {"kind": "measured", "joules": 2e-3, "ci95": [1.9e-3, 2.1e-3], "source": "rapl", "of": "the packages"}
    more = {"accuracy": accuracy(0.9), "energy": joules, "throughput": load(rng, 0.2)[:3]}
    parity = {"sqnr_db": 40.0, "max_abs": 0.1, "cosine": 0.99, "agreement": 0.99, "count": 600}
    measured = [latency(rng, ms, rounds=4, each=3, processes=2) for ms in (0.2, 0.3)]
    rows = [
        row("a.onnx", "onnx", 1000, where, measured[0], parity=parity, **more),
        row("b.onnx", "onnx", 2000, where, measured[1], accuracy=accuracy(0.8)),
    ]
    return document(rows, {"local": environment(host())})


def bare() -> dict[str, Any]:
    """Only what has to be there."""
    return {
        "schema": "lepton-edge.bench/1",
        "created": "yesterday",
        "tool": {"name": "lepton-edge", "version": "0"},
        "rows": [{"name": "m", "model": "m", "format": "onnx", "device": {"name": "local"}}],
    }
