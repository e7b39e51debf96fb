"""The shapes that a model's inputs are exported with."""

from __future__ import annotations

from lepton_edge.errors import LeptonError
from lepton_edge.tf_export.source import Source


def parse_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """`"1,64,64,3"` (the only input) or `"image=1,64,64,3;mask=1,64"` as shapes by name ('' = the only one)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        name, _, dims = part.rpartition("=")
        try:
            shapes[name.strip()] = tuple(int(dim) for dim in dims.split(","))
        except ValueError as error:
            raise LeptonError(
                f"input_shapes: '{part}' is not a shape", hint="write it as name=1,64,64,3;other=1,10"
            ) from error
    return shapes


def fixed_shapes(source: Source, fixed_batch: int, input_shapes: str, static: bool) -> list[list[int | None]]:
    """Each input's shape with the batch fixed (0: left free) and free dimensions filled from `input_shapes`.

    With `static`, a dimension that stays free is a LeptonError naming the input.
    """
    if fixed_batch < 0 or (static and fixed_batch < 1):
        raise LeptonError(f"fixed_batch={fixed_batch} is not a batch size", hint="use 1")
    given = parse_shapes(input_shapes)
    names = [port.name for port in source.inputs]
    for name in given:
        if name not in names and not (name == "" and len(names) == 1):
            raise LeptonError(f"input_shapes names '{name}', which is no input", hint=f"inputs: {', '.join(names)}")
    result = []
    for port in source.inputs:
        shape: list[int | None] = list(port.shape)
        if port.dtype in ("string", "resource", "variant"):
            raise LeptonError(
                f"input '{port.name}' is of type {port.dtype}, which edge runtimes do not take",
                hint="save the model from behind its text or lookup layers",
            )
        if shape and fixed_batch and shape[0] is None:
            shape[0] = fixed_batch
        wanted = given.get(port.name, given.get("") if len(names) == 1 else None)
        if wanted is not None:
            if len(wanted) != len(shape) or any(d not in (None, w) for d, w in zip(shape, wanted, strict=True)):
                raise LeptonError(f"input '{port.name}' is {_show(shape)}; input_shapes asks for {list(wanted)}")
            shape = list(wanted)
        if None in shape[0 if static else 1 :] and (static or fixed_batch):
            raise LeptonError(
                f"input '{port.name}' has free dimensions {_show(shape)}",
                hint=f"give them sizes: input_shapes={port.name}={','.join(str(d or 'N') for d in shape)}",
            )
        result.append(shape)
    return result


def _show(shape: list[int | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
