"""Quantization of an ONNX model by a scheme: one set of scales and weights for every runtime."""

from __future__ import annotations

import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError
from lepton_edge.passes._samples import Progress, Samples, one_line, silent
from lepton_edge.quant import schemes
from lepton_edge.texts import byte_count

REQUIRES = ("onnx>=1.17", "onnxruntime>=1.20", "ml-dtypes>=0.5")
COST = 0.5  # what it writes keeps its scales in TFLite and OpenVINO too, so quantizing here comes first
GROWN = 0.05
_REDUCE = ("auto", "on", "off")
_RANGES = ("auto", "minmax", "average", "percentile", "mse", "entropy")


def run(
    src: str,
    dst: str,
    *,
    scheme: str = "w8a8",
    data: str = "",
    samples: int = 300,
    seed: int = 0,
    preset: str = "default",
    ranges: str = "auto",
    reduce_range: str = "auto",
    weight_bits: int = 0,
    signed: bool = False,
    integer: bool = False,
    block: int = 32,
    memory: str = "1GB",
    rung: str = "",
    wide: float = 0.0,
    kept: float = 0.0,
    progress: Progress | None = None,
) -> dict:
    """Write a quantized `dst`. `scheme` (quant/schemes.py) says how; `data` may be left out but for w8a8 and w8a16.

    - w8a8, w8a16: QDQ form, weights int8 per channel, activations uint8, or int16 around zero, per tensor;
    - dynamic: products of activations rounded at run time, which need no samples;
    - w8, w4: weights only; w4 in blocks of `block` input features (0: per channel). Samples refine the rounding.

    `preset` is "fast" (no learned rounding, ranges by least squares), "default" or "best". `ranges` of activations are
    chosen by the error measured at the outputs ("auto") or by one method for all. On x86 without VNNI uint8 x int8
    saturates in 16-bit sums, so weights take 7 bits there ("auto"); "on" and "off" decide it for another machine.
    `weight_bits` (2 to 8) stores the weights of w8a8 as integers of fewer bits, in int8 for every runtime: the file is
    smaller once zipped. Weights that `qat` or `cluster` brought onto a grid of as many bits stay, and so do zeros.
    `signed` makes activations int8 (S8S8, which ARM is fastest at), with the same values. `integer` leaves nothing in
    float that has an integer form, as microcontrollers, NPUs and the Edge TPU want it: softmax and the outputs too,
    and in TFLite the inputs. Of a transformer only the products with weights are quantized. `memory` bounds the
    tensors that are observed at once. `rung` does no more than minmax, ranges, balance, bias or rounding of the preset;
    `wide` and `kept` give the worst layers that make this share of the noise 16-bit activations, or leave them float.

    Raises LeptonError for a scheme that ONNX has not, a model that is quantized already or has nothing to quantize, for
    no samples, and for data of other inputs.
    """
    from lepton_edge.quant import core
    from lepton_edge.tflite_writer.convert import WHOLE
    from lepton_edge.tflite_writer.load import inputs

    name = Path(src).name
    schemes.require({"scheme": scheme}, "onnx")
    _known("scheme", scheme, ("w8a8", "w8a16", "dynamic", "w8", "w4"))
    _known("preset", preset, tuple(core.PRESETS))
    _known("ranges", ranges, _RANGES)
    _known("reduce_range", reduce_range, _REDUCE)
    if block and (block < 16 or block & (block - 1)):
        raise LeptonError(f"block is {block}: runtimes take powers of two from 16 up", "set block to 32, or to 0")
    if not data and schemes.needs_data({"scheme": scheme}):
        raise LeptonError(f"scheme {scheme} needs calibration samples", "name a .npz, .npy or image folder with --data")
    if integer and not schemes.needs_data({"scheme": scheme}):
        raise LeptonError(f"scheme {scheme} computes in float: integer is for w8a8 and w8a16", "leave one of them out")
    feed = Samples(data, inputs(src), samples, seed, src) if data else None
    saturates = _saturates() if reduce_range == "auto" else reduce_range == "on"
    if weight_bits and (scheme != "w8a8" or not 2 <= weight_bits <= 8):
        raise LeptonError(
            f"weight_bits is {weight_bits} with scheme {scheme}: it is 2 to 8, for scheme w8a8", "leave it out"
        )
    options = core.Options(
        core.PRESETS[preset],
        weight_bits=min(weight_bits or 8, 7 if saturates else 8),
        signed=signed,
        whole=integer,
        ranges=ranges,
        seed=seed,
        memory=byte_count(memory),
        wide=_share("wide", wide),
        kept=_share("kept", kept),
    )
    if rung or wide or kept:
        options = _rung(scheme, rung, options)
    if feed is not None and schemes.needs_data({"scheme": scheme}):
        model, result = _static(src, feed, scheme, options, preset, progress or silent)
    else:
        model, result = _weights(src, feed, scheme, options, block, progress or silent)
    model.metadata_props.add(key="lepton_edge.scheme", value=scheme)
    if integer:
        model.metadata_props.add(key=WHOLE, value="1")
    target = Path(dst)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantize-") as folder:
        aside = Path(folder) / target.name
        _save(model, aside)
        _check_runs(str(aside), feed[0] if feed else None, name)
        aside.replace(target)
    return {"scheme": scheme, "samples": len(feed) if feed else 0, **result}


def _static(src: str, feed: Samples, scheme: str, options: Any, preset: str, told: Progress) -> tuple[Any, dict]:
    """w8a8 and w8a16: the ModelProto and what is told of it."""
    from lepton_edge.quant import core, drive_wide

    if scheme == "w8a16":
        made = drive_wide.quantize(src, feed, options, told)
        notes = [
            f"w8a16, preset {preset}: int16 activations, int8 weights per channel",
            "ONNX Runtime and OpenVINO have no int16 kernels: they compute in float between the roundings",
        ]
    else:
        made = core.quantize(src, feed, options, told)
        width = {8: "", 7: " (7 bits: no VNNI)"}.get(options.weight_bits, f" of {options.weight_bits} bits")
        kind = "int8" if options.signed else "uint8"
        notes = [f"int8, preset {preset}: {kind} activations, int8 weights per channel{width}"]
        if made.figures["whole"]:
            notes.append(f"weights of {made.figures['whole']} layers lay on such a grid already and are kept")
        if made.figures["sparse"]:
            notes.append(f"zeros of {made.figures['sparse']} pruned layers are kept")
    notes += _settled(made.figures["growth"], made.figures["observed"])
    if made.spec.placement.local:
        notes.append("attention found: only products with weights are quantized")
    return made.proto(), {
        "quantized_tensors": made.figures["layers"] + made.figures["sites"],
        "calibration_sqnr_db": made.figures["calibration_sqnr_db"],
        "notes": notes,
    }


def _settled(growth: dict[str, float], samples: int) -> list[str]:
    """Whether more samples would change the ranges: those that still grew in the second half of the samples."""
    grew = [name for name, share in growth.items() if share > GROWN]
    if not growth:
        return []
    told = f"{len(grew)} of {len(growth)} ranges still grew by over {GROWN:.0%} in the second half of {samples} samples"
    return [told + ("; more samples would widen them" if len(grew) > len(growth) / 4 else "")]


def _rung(scheme: str, rung: str, options: Any) -> Any:
    """The options of a rung of the rescue ladder. Raises LeptonError where they contradict each other or the scheme."""
    from lepton_edge.quant import core

    if scheme != "w8a8":
        raise LeptonError(f"rung, wide and kept are for scheme w8a8, not {scheme}", hint="leave them out")
    if options.wide and options.kept:
        raise LeptonError(
            "wide and kept were both given: the worst layers can be only one of them", hint="leave one out"
        )
    if not rung:
        return options
    _known("rung", rung, core.LADDER)
    return replace(
        options, preset=options.preset.limited(rung), ranges="minmax" if rung == "minmax" else options.ranges
    )


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise LeptonError(f"{name} is {value}: it is a share of the noise", hint="give a number from 0 to 1")
    return value


def _weights(src: str, feed: Samples | None, scheme: str, options: Any, block: int, told: Progress) -> tuple[Any, dict]:
    """dynamic, w8 and w4: the ModelProto and what is told of it."""
    from lepton_edge.quant import drive_weights

    made = drive_weights.quantize(
        src,
        scheme,
        feed,
        block=block,
        weight_bits=options.weight_bits if scheme == "dynamic" else 8,
        solved=options.preset.solved,
        positions=options.preset.positions,
        memory=options.memory,
        told=lambda done, total: told(done, total, "rounding weights, layer"),
    )
    blocks = f"in blocks of {block}" if block else "per channel"
    kinds = {
        "dynamic": f"{made.integer} products with int8 weights per channel and activations rounded at run time",
        "w8": f"{made.layers} layers with int8 weights per channel, activations float",
        "w4": f"{made.short} of {made.layers} layers with int4 weights {blocks}, the others int8 per channel",
    }
    notes = [f"{scheme}: {kinds[scheme]}; rounded by {'GPTQ' if feed is not None else 'nearest'}"]
    if made.tables:
        notes.append(f"{made.tables} embedding tables in int8 by row")
    if scheme != "dynamic":
        notes.append("ONNX Runtime rounds activations of MatMul to 8 bits in blocks when it computes with such weights")
    elif made.layers > made.integer:
        notes.append(f"{made.layers - made.integer} convolutions: int8 weights; ONNX Runtime computes them in float")
    figures = {} if made.sqnr_db is None else {"calibration_sqnr_db": made.sqnr_db}
    return made.proto(), {"quantized_tensors": made.layers + made.tables, **figures, "notes": notes}


def _known(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise LeptonError(f"unknown {what} '{value}'", hint=f"known: {', '.join(known)}")


def _saturates() -> bool:
    """Whether uint8 x int8 sums saturate here: x86 without the VNNI instructions."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686", "x86"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text("utf-8", "replace").split() if cpuinfo.is_file() else []
    return not {"avx512_vnni", "avx_vnni"} & set(flags)


def _save(model: Any, path: Path) -> None:
    import onnx

    from lepton_edge.quant.tap import LARGE

    if model.ByteSize() >= LARGE:
        raise LeptonError(
            f"its quantized form takes {model.ByteSize() / 1e9:.1f} GB, more than one ONNX file holds",
            "quantize a smaller part of it, or keep it float",
        )
    onnx.save(model, str(path))


def _check_runs(path: str, sample: dict | None, name: str) -> None:
    """Whether it loads in ONNX Runtime and, with a sample, answers."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        if sample is not None:
            session.run(None, sample)
    except Exception as error:  # ONNX Runtime's exceptions derive straight from Exception
        raise LeptonError(f"{name}: its quantized form does not run in ONNX Runtime: {one_line(error)}") from error
