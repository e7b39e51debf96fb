"""The folders are the registry: what steps and runtimes there are, read with ``ast``, never imported.

Listing is instant, and a broken file can only break itself. Folders of the user's own are added through the
environment variable LEPTON_EDGE_PLUGINS (paths separated by the system's path separator), each with the
sub-folders ``converters``, ``formats``, ``passes``, ``runtimes``, ``transports``, ``estimators`` and ``devices``.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError, MissingExtra, UsageError, did_you_mean

PACKAGE = Path(__file__).resolve().parent
# Packages that are another build of the same module, for an accelerator: one of them is enough.
BUILDS = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn"),
}


@dataclass(frozen=True)
class Step:
    """One file that changes a model: ``source`` and ``target`` formats, and what it needs to run.

    With a ``python`` ("3.12") it runs in an environment of its own, made on demand (envs.py).
    """

    name: str
    file: Path
    verb: str
    source: str
    target: str
    summary: str
    requires: tuple[str, ...] = ()
    cost: float = 1.0
    environ: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    broken: str = ""
    python: str = ""


@dataclass(frozen=True)
class Runtime:
    """One file that runs models of ``formats``, on one of its ``devices``.

    A ``shared`` runtime lives in the worker of the steps: a heavy framework is then imported once. ``devices`` are as
    the file's DEVICES declares them, the one it runs on by default first; ``device`` is the one of them that is meant,
    and ``load`` the options of the file's function ``load`` that choose it.
    """

    name: str
    file: Path
    formats: tuple[str, ...]
    summary: str
    requires: tuple[str, ...] = ()
    cost: float = 1.0
    environ: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    shared: bool = False
    broken: str = ""
    devices: dict[str, dict[str, dict]] = field(default_factory=lambda: {"cpu": {}})
    device: str = "cpu"
    load: dict[str, Any] = field(default_factory=dict)

    def on(self, device: str) -> Runtime:
        """This runtime on one of its devices, under the name NAME:DEVICE; the default device adds nothing to it.

        Raises UsageError for a device that it does not have.
        """
        if device not in self.devices:
            names = [f"{self.name}:{d}" for d in self.devices]
            hint = did_you_mean(f"{self.name}:{device}", names)
            raise UsageError(f"the runtime '{self.name}' has no device '{device}'", hint)
        chosen = self.devices[device]
        environ = {**self.environ, **chosen.get("environ", {})}
        name = self.name if device == next(iter(self.devices)) else f"{self.name}:{device}"
        return replace(self, name=name, device=device, environ=environ, load=chosen.get("options", {}))


@dataclass(frozen=True)
class Estimator:
    """One file that tells what a model would take of a target that is not here."""

    name: str
    file: Path
    summary: str
    requires: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    broken: str = ""


def folder(kind: str) -> Path:
    """The project's own folder of a kind: inside the package when installed, beside it in a checkout."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def _files(kind: str) -> list[Path]:
    extra = [Path(p) / kind for p in os.environ.get("LEPTON_EDGE_PLUGINS", "").split(os.pathsep) if p]
    return [
        f for d in (folder(kind), *extra) if d.is_dir() for f in sorted(d.glob("*.py")) if not f.name.startswith("_")
    ]


@dataclass(frozen=True)
class Format:
    """One model format: how its bytes are recognised, and which files belong to a model.

    Files with a suffix in ``follow`` have the name of the main file and are renamed with it.
    """

    name: str
    suffix: str
    recognise: Callable[[Path, bytes], bool]
    files: Callable[[Path], Sequence[Path]]
    summary: str
    follow: tuple[str, ...] = ()


@cache
def _format(file: Path) -> Format:
    spec = importlib.util.spec_from_file_location(f"lepton_format_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        summary = (module.__doc__ or "").split("\n", 1)[0].rstrip(".")
        files, follow = getattr(module, "files", lambda path: [path]), getattr(module, "FOLLOW", ())
        return Format(file.stem, module.SUFFIX, module.recognise, files, summary, follow)
    except (SyntaxError, ImportError, AttributeError) as e:
        raise LeptonError(f"{file}: cannot be read as a format ({e})", "repair or remove the file") from e


def formats() -> dict[str, Format]:
    """Every format by name. These files are imported, for they are small and use the standard library only."""
    return {f.stem: _format(f) for f in _files("formats")}


def steps() -> list[Step]:
    """Every conversion and pass, broken ones included (their ``broken`` says why)."""
    found = []
    for file in _files("converters"):
        # <source>_to_<target>.py; a second way between the two is <source>_to_<target>__<name>.py
        source, _, target = file.stem.partition("__")[0].partition("_to_")
        if target:
            found.append(_step(file, "convert", source, target))
    for file in _files("passes"):
        verb, _, format_ = file.stem.partition("_")
        if format_:
            found.append(_step(file, verb, format_, format_))
    return found


def runtimes() -> list[Runtime]:
    """Every runtime, broken ones included."""
    found = []
    for file in _files("runtimes"):
        facts = _read(file, "load")
        found.append(
            Runtime(
                file.stem,
                file,
                tuple(facts.get("FORMATS", ())),
                facts["summary"],
                tuple(facts.get("REQUIRES", ())),
                float(facts.get("COST", 1.0)),
                facts.get("ENVIRON", {}),
                facts["options"],
                facts.get("SHARED", False),
                facts["broken"],
                facts.get("DEVICES") or {"cpu": {}},
            )
        )
        found[-1] = found[-1].on(next(iter(found[-1].devices)))
    return found


def targets() -> list[Runtime]:
    """Every runtime on each of its devices."""
    return [runtime.on(device) for runtime in runtimes() for device in runtime.devices]


def estimators() -> list[Estimator]:
    """Every estimator, broken ones included."""
    found = []
    for file in _files("estimators"):
        facts = _read(file, "estimate")
        requires, environ = tuple(facts.get("REQUIRES", ())), facts.get("ENVIRON", {})
        found.append(Estimator(file.stem, file, facts["summary"], requires, environ, facts["options"], facts["broken"]))
    return found


def estimator(name: str) -> Estimator:
    """The estimator of that name, installed or not. Raises UsageError for an unknown one."""
    known = {e.name: e for e in estimators()}
    if name not in known:
        raise UsageError(f"unknown estimator '{name}'", did_you_mean(name, list(known)))
    return known[name]


def runtime(name: str) -> Runtime:
    """The runtime of that name (NAME or NAME:DEVICE), installed or not. Raises UsageError for an unknown one."""
    known = {r.name: r for r in runtimes()}
    base, colon, device = name.partition(":")
    if base not in known:
        names = [r.name for r in targets()] if colon else list(known)
        raise UsageError(f"unknown runtime '{name}'", did_you_mean(name, names))
    return known[base].on(device) if colon else known[base]


def runtime_for(format_: str, name: str | None = None) -> Runtime:
    """The runtime to use for a format: the one named (NAME or NAME:DEVICE), else the installed one of the lowest cost.

    Raises UsageError for an unknown name, MissingExtra when its packages are not installed. Whether the device is
    there is another question: see ``availability.py``.
    """
    known = runtimes()
    if name is not None:
        chosen = runtime(name)
        if format_ not in chosen.formats:
            raise UsageError(f"runtime '{name}' does not run {format_} models", f"it runs: {', '.join(chosen.formats)}")
        fit = [chosen]
    else:
        fit = sorted((r for r in known if format_ in r.formats and not r.broken), key=lambda r: r.cost)
        if not fit:
            raise LeptonError(f"no runtime for {format_} models", "see 'lepton-edge list'")
    chosen = next((r for r in fit if not missing(r.requires)), fit[0])
    if chosen.broken:
        raise LeptonError(f"{chosen.file.name}: {chosen.broken}", "repair or remove the file")
    require(f"running {format_} models in the {chosen.name} runtime", chosen.requires)
    return chosen


def runtime_needs(format_: str) -> tuple[str, ...]:
    """The packages of the runtime that a format would be run in; none for a format that no runtime runs."""
    fit = sorted((r for r in runtimes() if format_ in r.formats and not r.broken), key=lambda r: r.cost)
    return next((r.requires for r in fit if not missing(r.requires)), fit[0].requires if fit else ())


def _step(file: Path, verb: str, source: str, target: str) -> Step:
    facts = _read(file, "run")
    return Step(
        file.stem,
        file,
        verb,
        source,
        target,
        facts["summary"],
        tuple(facts.get("REQUIRES", ())),
        float(facts.get("COST", 1.0)),
        facts.get("ENVIRON", {}),
        facts["options"],
        facts["broken"],
        facts.get("PYTHON", ""),
    )


@cache
def _read(file: Path, function: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"summary": "", "options": {}, "broken": ""}
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        facts["summary"] = (ast.get_docstring(tree) or "").split("\n", 1)[0].rstrip(".")
        body = None
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
                name = node.targets[0].id
                if name in ("REQUIRES", "COST", "ENVIRON", "FORMATS", "SHARED", "PYTHON", "DEVICES"):
                    facts[name] = ast.literal_eval(node.value)
            elif isinstance(node, ast.FunctionDef) and node.name == function:
                body = node
        if body is None:
            facts["broken"] = f"it has no function '{function}'"
        else:
            for arg, default in zip(body.args.kwonlyargs, body.args.kw_defaults, strict=True):
                if arg.arg != "progress":
                    facts["options"][arg.arg] = ast.literal_eval(default) if default is not None else REQUIRED
    except (SyntaxError, ValueError, OSError) as e:
        facts["broken"] = f"it cannot be read as a plug-in ({e})"
    return facts


REQUIRED = "(required)"


def missing_of(step: Step) -> list[str]:
    """What a step lacks here: packages, or the Python that its own environment is made with."""
    if not step.python:
        return missing(step.requires)
    from lepton_edge import envs

    return [] if envs.available(step.python) else [f"Python {step.python}"]


def missing(requires: tuple[str, ...]) -> list[str]:
    """Those requirements that this interpreter's environment does not meet."""
    return [r for r in requires if not _met(r)]


@cache
def _met(requirement: str) -> bool:
    from importlib import metadata

    from packaging.requirements import Requirement

    req = Requirement(requirement)
    if req.marker and not req.marker.evaluate():
        return True
    for name in (req.name, *BUILDS.get(req.name, ())):
        try:
            return req.specifier.contains(metadata.version(name), prereleases=True)
        except metadata.PackageNotFoundError:
            continue
    return False


def require(what: str, requires: tuple[str, ...]) -> None:
    """Raise MissingExtra, naming the extras to install, unless all of ``requires`` is there."""
    lacking = missing(requires)
    if lacking:
        extras, others = _extras_for(lacking)
        wanted = ([f"'lepton-edge[{','.join(extras)}]'"] if extras else []) + [f"'{r}'" for r in others]
        are = "which is" if len(lacking) == 1 else "which are"
        raise MissingExtra(f"{what} needs {', '.join(lacking)}, {are} not installed", f"pip install {' '.join(wanted)}")


def _extras_for(requirements: list[str]) -> tuple[list[str], list[str]]:
    """The fewest extras of this package, then the smallest, that bring all that extras can bring; and the rest."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    names = {r: canonicalize_name(Requirement(r).name) for r in requirements}
    by_extra = _extras()
    brought = set().union(*by_extra.values())
    wanted = {name for name in names.values() if name in brought}
    for count in range(len(by_extra) + 1):
        fit = [c for c in combinations(sorted(by_extra), count) if wanted <= set().union(*(by_extra[e] for e in c))]
        if fit:
            chosen = min(fit, key=lambda c: sum(len(by_extra[e]) for e in c))
            return list(chosen), [r for r, name in names.items() if name not in brought]
    return [], requirements


@cache
def _extras() -> dict[str, set[str]]:
    """Each extra of this package and the packages that it brings, from its own metadata."""
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        about = metadata.metadata("lepton-edge")
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, set[str]] = {}
    for line in metadata.requires("lepton-edge") or []:
        req = Requirement(line)
        for extra in about.get_all("Provides-Extra") or []:
            if req.marker and "extra" in str(req.marker) and req.marker.evaluate({"extra": extra}):
                found.setdefault(extra, set()).add(canonicalize_name(req.name))
    return found
