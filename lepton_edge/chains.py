"""Chains of steps that a compress run makes candidates of: those of a recipe, or of a preset.

A preset is a TOML file in ``presets/``:

```toml
summary = "what it is for"
goal = "size"                           # what choose.py minimises: latency, size or balanced

[[chain]]
name = "sparse-70"                      # its scheme is "sparse-70-int8"
steps = ["prune_onnx", "quantize"]      # verbs, or the name of a step where only that one will do
prune = { sparsity = 0.7 }              # options by verb; those of the user's recipe are beneath them
train = true                            # only where there are labelled samples to train on
after = "sparse-50"                     # not made where the chain of that name already loses too much
```

A chain that cannot be made of a model here (a step that is not there, packages, samples, a format that it does not
work on) is left out, with the reason.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lepton_edge import registry, stages
from lepton_edge.errors import LeptonError, MissingExtra, UsageError, did_you_mean
from lepton_edge.plan import route
from lepton_edge.quant import schemes
from lepton_edge.recipe import Recipe

GOALS = ("latency", "size", "balanced")
KEYS = ("name", "steps", "train", "after")
DONE = {
    "prune": "pruned",
    "factorize": "lowrank",
    "cluster": "clustered",
    "qat": "qat",
}  # what a model is called after a verb


@dataclass(frozen=True)
class Chain:
    """One way to make candidates: ``steps`` are verbs or names of steps, ``options`` are by verb.

    ``needed``: a failure of it is a row of the run; else, where no format comes out, it is left out with the reason.
    """

    scheme: str
    steps: tuple[str, ...] = ()
    options: Mapping[str, dict] = field(default_factory=dict)
    train: bool = False
    after: str = ""
    needed: bool = True

    @property
    def verbs(self) -> tuple[str, ...]:
        """What is done, by verb."""
        return tuple(step.partition("_")[0] for step in self.steps)

    @property
    def learns(self) -> bool:
        """Whether its pruning on the ONNX form is followed by training."""
        return "prune_onnx" in self.steps and bool(self.options.get("prune", {}).get("epochs"))

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Steps with their options as text: what makes two chains the same in part."""
        return tuple((s, repr(sorted(self.options.get(s.partition("_")[0], {}).items()))) for s in self.steps)


def presets() -> dict[str, Path]:
    """The presets by name."""
    return {f.stem: f for f in sorted(registry.folder("presets").glob("*.toml"))}


def goal(recipe: Recipe) -> str:
    """What is minimised: the latency, unless a preset says otherwise."""
    return _tables(recipe.compress.preset)["goal"] if recipe.compress.preset else "latency"


def of(recipe: Recipe) -> list[Chain]:
    """The chains of a recipe, gentler ones before those that come after them; float32 is the first.

    Raises UsageError for an unknown preset.
    """
    found = [Chain("float32")]
    if recipe.compress.preset:
        tables = _tables(recipe.compress.preset)["chain"]
        found += [_chain(table, recipe, tables) for table in tables]
    else:
        found.append(_own(recipe, ()))
    if before := recipe.chain():
        options = {verb: getattr(recipe, verb) for verb in before}
        found += [Chain("-".join([*(DONE[v] for v in before), "float32"]), before, options), _own(recipe, before)]
    return list({chain.scheme: chain for chain in reversed(found)}.values())[::-1]


def _own(recipe: Recipe, before: tuple[str, ...]) -> Chain:
    """Quantization as the recipe asks, after other steps of its own."""
    scheme = "-".join([*(DONE[verb] for verb in before), schemes.label(recipe.quantize)])
    options = {"quantize": recipe.quantize} | {verb: getattr(recipe, verb) for verb in before}
    return Chain(scheme, (*before, schemes.verb(recipe.quantize)), options)


def _chain(table: dict[str, Any], recipe: Recipe, tables: Sequence[dict[str, Any]]) -> Chain:
    verbs = [step.partition("_")[0] for step in table["steps"]]
    options = {v: {**(recipe.quantize if v == "quantize" else {}), **table.get(v, {})} for v in verbs}
    steps = tuple(schemes.verb(options["quantize"]) if s == "quantize" else s for s in table["steps"])
    after = next((t for t in tables if t.get("name") == table.get("after") and t["steps"] == table["steps"]), None)
    return Chain(
        _scheme(table, recipe),
        steps,
        options,
        table.get("train", False),
        _scheme(after, recipe) if after and "after" in table else "",
        needed=verbs == ["quantize"] and "quantize" not in table,
    )


def _scheme(table: dict[str, Any], recipe: Recipe) -> str:
    rounding = {**recipe.quantize, **table.get("quantize", {})}
    last = schemes.label(rounding) if "quantize" in table["steps"] else "float32"
    return "-".join(part for part in (table.get("name", ""), last) if part)


@cache
def _tables(name: str) -> dict[str, Any]:
    files = presets()
    if name not in files:
        raise UsageError(f"unknown preset '{name}'", did_you_mean(name, list(files)))
    return tomllib.loads(files[name].read_text(encoding="utf-8"))


def possible(
    found: Sequence[Chain], source: str, formats: Sequence[str], recipe: Recipe
) -> tuple[list[Chain], list[dict[str, str]]]:
    """Those chains that can be made of a model of the format ``source``; and what is left out: scheme and reason.

    A chain that is needed stays, whatever is missing: what it lacks is an error of its own.
    """
    left = [{"scheme": c.scheme, "reason": why} for c in found if (why := _obstacle(c, source, formats, recipe))]
    out = {row["scheme"] for row in left}
    return [c for c in found if c.scheme not in out], left


def _obstacle(chain: Chain, source: str, formats: Sequence[str], recipe: Recipe) -> str:
    if chain.needed:
        return ""
    known = registry.steps()
    for step in chain.steps:
        if not any(step in (s.verb, s.name) and not s.broken for s in known):
            return f"there is no step '{step}' in this installation"
    early = tuple(s for s in chain.steps if s not in stages.LAST)
    for step in early:
        works = sorted({s.source for s in known if step in (s.verb, s.name)})
        if not any(format_ == source or route(source, format_, (), known) for format_ in works):
            return f"{step} works on {', '.join(works)} models, and no step makes one of {source}"
    ways = [way for f in formats if (way := route(source, f, early, known)) is not None]
    if not ways:
        return f"no way from {source} through {', '.join(early)} to {', '.join(formats)}"
    if chain.train and recipe.data.training is None:
        return "it trains, and there are no labelled samples to train on: name them with --train"
    try:
        for taken in min(ways, key=lambda way: sum(len(registry.missing_of(s)) for s in way)):
            registry.require(taken.name, taken.requires)
    except MissingExtra as e:
        return f"{e.message}: {e.hint}"
    return ""


def verbs_of(found: Sequence[Chain]) -> tuple[str, ...]:
    """All steps of these chains, each once."""
    return tuple(dict.fromkeys(step for chain in found for step in chain.steps))


def check(name: str) -> None:
    """Raise LeptonError where a preset's file is not what this module reads: for the tests of the project."""
    tables = _tables(name)
    if tables.get("goal") not in GOALS or not tables.get("summary") or not tables.get("chain"):
        raise LeptonError(f"preset {name}: needs a goal of {', '.join(GOALS)}, a summary and chains")
    for table in tables["chain"]:
        verbs = [step.partition("_")[0] for step in table["steps"]]
        unknown = [key for key in table if key not in (*KEYS, *verbs)]
        if unknown or (table.get("after") and not any(t.get("name") == table["after"] for t in tables["chain"])):
            raise LeptonError(f"preset {name}: chain {table}: unknown keys {unknown}, or 'after' names no chain")
