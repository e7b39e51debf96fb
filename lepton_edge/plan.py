"""Which steps take a model from the format it has to the one wanted, with verbs applied on the way.

A shortest path over (format, verbs done): "prune in Keras, quantize, then OpenVINO" needs no special case.
"""

from __future__ import annotations

import heapq

from lepton_edge.errors import LeptonError
from lepton_edge.registry import Step, missing_of

# Keeping a conversion before quantization costs nothing; after it the scales have to be carried across.
CONVERT_QUANTIZED = 2.0
NOT_INSTALLED = 100.0


def plan(source: str, target: str, verbs: tuple[str, ...], steps: list[Step]) -> tuple[Step, ...]:
    """The cheapest sequence of steps from ``source`` to ``target`` that applies all ``verbs`` in order.

    One of them may be the name of a step ("prune_onnx"), which is then the only one that will do.

    Steps whose packages are not installed are taken only when there is no other way, so that the error that
    follows names what to install. Raises LeptonError when no sequence exists.
    """
    found = route(source, target, verbs, steps)
    if found is not None:
        return found
    doing = f" with {' and '.join(verbs)}" if verbs else ""
    sources = sorted({s.source for s in steps if {s.verb, s.name} & set(verbs) and not s.broken}) if verbs else []
    where = f"; {verbs[0]} works on: {', '.join(sources)}" if sources else ""
    raise LeptonError(f"no route from {source} to {target}{doing}", f"see 'lepton-edge list' for the steps{where}")


def route(source: str, target: str, verbs: tuple[str, ...], steps: list[Step]) -> tuple[Step, ...] | None:
    """What ``plan`` finds, or None when no sequence of steps leads there."""
    usable = [s for s in steps if not s.broken]
    goal = (target, len(verbs))
    queue: list[tuple[float, int, tuple[str, int], tuple[Step, ...]]] = [(0.0, 0, (source, 0), ())]
    done: set[tuple[str, int]] = set()
    order = 0
    while queue:
        cost, _, state, path = heapq.heappop(queue)
        if state == goal:
            return path
        if state in done:
            continue
        done.add(state)
        format_, verb = state
        for step in usable:
            if step.source != format_:
                continue
            if step.verb == "convert":
                price, following = step.cost, (step.target, verb)
                if any(done.partition("_")[0] == "quantize" for done in verbs[:verb]):
                    price *= CONVERT_QUANTIZED
            elif verb < len(verbs) and verbs[verb] in (step.verb, step.name):
                price, following = step.cost, (step.target, verb + 1)
            else:
                continue
            if missing_of(step):
                price += NOT_INSTALLED
            order += 1
            heapq.heappush(queue, (cost + price, order, following, (*path, step)))
    return None
