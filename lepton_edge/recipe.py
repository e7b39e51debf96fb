"""A recipe: everything about a run but the model itself, as TOML, validated key by key.

```toml
[data]
training = "train.npz"        # labelled, for the passes that train; or data.py:make, a function that gives them
calibration = "calib.npz"     # paths are relative to the recipe
evaluation = "eval.npz"
samples = 300                 # calibration samples at most

[preprocess]                  # see lepton_edge/preprocess.py; presets: imagenet, imagenet-tf, none
preset = "imagenet"

[compress]
to = ["tflite", "onnx", "openvino"]
max_drop = 1.0                # percentage points of top-1
max_latency = 5.0             # ms, p50
max_size = 4_000_000          # bytes
preset = "smallest"           # or fastest, balanced: more candidates, see lepton_edge/presets

[prune]                       # options of the prune pass; the section's presence asks for pruning
sparsity = 0.5

[factorize]                   # options of low-rank factorisation (on the ONNX form); as above
macs = 0.8

[cluster]                     # options of weight clustering (Keras models); the section's presence asks for it
clusters = 16

[qat]                         # options of quantization-aware training; as above
bits = 8
[finetune]                    # options of the finetune pass, for the command of that name
epochs = 30

[quantize]                    # options of the quantize passes
scheme = "w8a8"               # or w8a16, dynamic, w8, w4, float16: see lepton_edge/quant/schemes.py

[bench]
seconds = 3.0                 # of measuring a model
threads = 1
cpus = "0-3"                  # the processors to keep to while measuring
```
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepton_edge.errors import UsageError, did_you_mean

# What comes before quantizing, in this order: each keeps what the others made.
CHAIN = ("prune", "factorize", "cluster", "qat")
GIVEN = ("data", "teacher", "teacher_sha256")  # options of passes that the command line gives them
POSITIVE = ("samples", "evaluation_samples", "seconds", "rounds", "processes")


@dataclass(frozen=True)
class Data:
    """Where samples come from."""

    calibration: str | None = None
    evaluation: str | None = None
    training: str | None = None
    samples: int = 300
    evaluation_samples: int = 5000


@dataclass(frozen=True)
class Compress:
    """What to make and which limits it has to meet: points, bytes, milliseconds."""

    to: tuple[str, ...] = ()
    device: str = "local"
    max_drop: float = 1.0
    max_size: int | None = None
    max_latency: float | None = None
    seed: int = 0
    preset: str = ""


@dataclass(frozen=True)
class Bench:
    """How long to measure a model, in how many interleaved rounds and fresh processes (0: what the time allows), on
    how many threads (0: what the device says), on which processors ("0-3", "": all)."""

    seconds: float = 3.0
    rounds: int = 0
    processes: int = 0
    threads: int = 0
    cpus: str = ""


@dataclass(frozen=True)
class Recipe:
    """A validated recipe; tables named as the verbs hold options of the passes."""

    data: Data = Data()
    preprocess: dict[str, Any] = field(default_factory=dict)
    compress: Compress = Compress()
    prune: dict[str, Any] | None = None
    factorize: dict[str, Any] | None = None
    cluster: dict[str, Any] | None = None
    qat: dict[str, Any] | None = None
    finetune: dict[str, Any] = field(default_factory=dict)
    quantize: dict[str, Any] = field(default_factory=dict)
    bench: Bench = Bench()

    def chain(self) -> tuple[str, ...]:
        """The verbs asked for that come before quantizing."""
        return tuple(verb for verb in CHAIN if getattr(self, verb) is not None)


def load(path: Path) -> Recipe:
    """Read and validate a recipe. Raises UsageError naming the file, the section and the key."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise UsageError(f"{path}: no such recipe", "check the path") from e
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise UsageError(f"{path}: not a readable TOML file ({e})", "see https://toml.io for the syntax") from e
    return parse(tables, str(path), path.parent)


def parse(tables: dict[str, Any], where: str, base: Path) -> Recipe:
    """Build a Recipe from parsed TOML; relative data paths are taken from ``base``."""
    from lepton_edge.preprocess import from_dict

    known = [f.name for f in dataclasses.fields(Recipe)]
    for name, table in tables.items():
        if name not in known:
            raise UsageError(f"{where}: unknown section [{name}]", did_you_mean(name, known))
        if not isinstance(table, dict):
            raise UsageError(f"{where}: '{name}' has to be a section [{name}]", "see the example in the README")
    parts: dict[str, Any] = {}
    for name, cls in (("data", Data), ("compress", Compress), ("bench", Bench)):
        parts[name] = _fill(cls, tables.get(name, {}), f"{where}: [{name}]")
    if "preprocess" in tables:
        parts["preprocess"] = tables["preprocess"]
        from_dict(tables["preprocess"], f"{where}: [preprocess]")
    for verb in (*CHAIN, "finetune", "quantize"):
        if verb in tables:
            check_options(verb, tables[verb], f"{where}: [{verb}]")
            parts[verb] = tables[verb]
    data = parts["data"]
    paths = {k: str(base / v) for k in ("calibration", "evaluation", "training") if (v := getattr(data, k))}
    parts["data"] = dataclasses.replace(data, **paths)
    return Recipe(**parts)


def check_options(verb: str, options: dict[str, Any], where: str) -> None:
    """Raise UsageError unless every option is one that a pass of this verb takes, with a value of its type."""
    from lepton_edge.registry import steps

    known: dict[str, Any] = {}
    for step in steps():
        if step.verb == verb:
            known |= {k: v for k, v in step.options.items() if k not in GIVEN}
    for key, value in options.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key '{key}'", did_you_mean(key, sorted(known)))
        default = known[key]
        wanted = (int, float) if isinstance(default, float) else type(default)
        if default is not None and (
            not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool)
        ):
            raise UsageError(
                f"{where}: '{key}' has to be {_kind(type(default))}, not {value!r}",
                f"its default is {default!r}",
            )


def _fill(cls: type, table: dict[str, Any], where: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in table.items():
        if key not in fields:
            raise UsageError(f"{where}: unknown key '{key}'", did_you_mean(key, list(fields)))
        values[key] = _typed(str(fields[key].type), value, f"{where} '{key}'")
        if key in POSITIVE and not values[key]:
            raise UsageError(f"{where} '{key}' cannot be 0", "leave it out for the default")
    return cls(**values)


def _typed(kind: str, value: Any, where: str) -> Any:
    if kind.startswith("tuple"):
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise UsageError(f"{where} has to be a list of strings, not {value!r}", 'for example ["tflite", "onnx"]')
        return tuple(value)
    wanted: tuple[type, ...] = (
        (int, float) if kind.startswith("float") else (int,) if kind.startswith("int") else (str,)
    )
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise UsageError(f"{where} has to be {_kind(wanted[-1])}, not {value!r}", "correct the value")
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise UsageError(f"{where} has to be a number from 0 up, not {value!r}", "correct the value")
    return value


def _kind(type_: type) -> str:
    return {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}.get(type_, type_.__name__)


def override(recipe: Recipe, section: str, **values: Any) -> Recipe:
    """The recipe with those ``values`` of a section replaced that are not None (what the command line says wins)."""
    given = {k: v for k, v in values.items() if v is not None}
    if not given:
        return recipe
    old = getattr(recipe, section)
    _fill(type(old), given, f"[{section}]")
    return dataclasses.replace(recipe, **{section: dataclasses.replace(old, **given)})
