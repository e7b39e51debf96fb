"""Shapes of inputs: what a sample is, which sizes the samples give to free dimensions, and how steps are told them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lepton_edge.errors import LeptonError

Shapes = Mapping[str, tuple[int, ...]]


def is_whole(shape: Sequence[int | None], sample: Sequence[int] | None = None) -> bool:
    """Whether a sample of an input of this ``shape`` is the whole tensor, for its first axis counts no samples.

    So it is of a scalar, and of a first size other than 1, such as a recurrent state [2, 1, 128]. A free or single
    first axis is the batch, unless the ``sample`` has it already: [1, 1, 128], or a wave [16000] where [?] is taken.
    """
    if not shape or shape[0] not in (None, 1):
        return True
    return sample is not None and len(sample) == len(shape) and (len(shape) == 1 or sample[0] == 1)


def from_samples(specs: Iterable[Mapping[str, Any]], arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The whole shapes, at batch 1, of those inputs that have free dimensions besides their batch.

    ``specs`` are the model's inputs ({"name", "shape"}), ``arrays`` its samples [count, *shape], the batch left out.
    """
    found = {}
    for spec in specs:
        shape, sample = spec["shape"], tuple(arrays[spec["name"]].shape[1:])
        whole = len(sample) == len(shape)
        if None in shape[0 if whole else 1 :]:
            found[spec["name"]] = sample if whole else (shape[0] or 1, *sample)
    return found


def to_text(shapes: Shapes) -> str:
    """Shapes as the option ``input_shapes`` of a step takes them; "" for none."""
    return ";".join(f"{name}={','.join(map(str, shape))}" for name, shape in shapes.items())


def note(sizes: Mapping[str, Sequence[int | None]]) -> list[str]:
    """What a step that fixed these inputs says of it: a line for its notes, or none."""
    return [f"fixed to {', '.join(f'{name} {list(shape)}' for name, shape in sizes.items())}"] if sizes else []


def parse(text: str, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shapes that ``text`` gives the inputs ``names``; one without a name is for the only input.

    Raises LeptonError for what is no shape, and for a name that is no input.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        name, _, sizes = part.rpartition("=")
        name = name.strip() or (names[0] if len(names) == 1 else "")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError as error:
            raise LeptonError(
                f"input_shapes: '{part}' is not a shape", "write it as name=1,64,64,3;other=1,10"
            ) from error
        if name not in names:
            raise LeptonError(f"input_shapes names '{name}', which is no input", f"inputs: {', '.join(names)}")
    return shapes


def set_free(name: str, shape: Sequence[int | None], given: Sequence[int] | None) -> list[int | None]:
    """``shape`` with its free sizes (None) taken from ``given``. Raises LeptonError where fixed sizes differ."""
    if given is None:
        return list(shape)
    if len(given) != len(shape) or any(old not in (None, new) for old, new in zip(shape, given, strict=False)):
        shown = ", ".join("any" if size is None else str(size) for size in shape)
        raise LeptonError(
            f"input '{name}' is [{shown}], and input_shapes asks for {list(given)}", "only free sizes can be set"
        )
    return list(given)
