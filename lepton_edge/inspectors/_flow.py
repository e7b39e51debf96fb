"""Fills in free leading dimensions for a batch of one.

A Dense layer on a sequence is stored as reshape to [-1, K], then a matrix product: there -1 is batch times
steps, and taking it for the batch would undercount. So sizes are followed from the inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lepton_edge.inspectors._common import Shape, size_of


class Flow:
    """Shapes with the batch set to one, for tensors fed in execution order."""

    def __init__(self, reshaping: Iterable[str]) -> None:
        self.reshaping = frozenset(reshaping)  # operators whose output holds the elements of their first input
        self.shapes: dict = {}
        self.free: dict = {}  # tensor -> the size its free leading dimension stands for
        self.sizes: dict = {}  # tensor -> its number of elements, where a reshape hides the dimensions

    def feed(self, key: object, shape: Shape | None) -> None:
        """A model input or a constant: a free leading dimension is the batch, so 1."""
        self.shapes[key] = shape
        if shape and shape[0] is None:
            self._settle(key, shape, 1)

    def step(self, op: str, inputs: Sequence[object], outputs: Sequence[tuple[object, Shape | None]]) -> None:
        """One operator: outputs are (tensor, shape as stored)."""
        for key, shape in outputs:
            self.shapes[key] = shape
            if op in self.reshaping and inputs and self.size(inputs[0]) is not None:
                self.sizes[key] = self.size(inputs[0])
            if shape and shape[0] is None:
                self._settle(key, shape, self._leading(op, inputs, shape))

    def shape(self, key: object) -> Shape | None:
        """The shape for a batch of one; dimensions that stay unknown are None."""
        return self.shapes.get(key)

    def size(self, key: object) -> int | None:
        """Number of elements for a batch of one, None if it cannot be known."""
        return self.sizes.get(key, size_of(self.shape(key)))

    def settle(self, key: object, leading: int | None) -> None:
        """What the caller worked out for a leading dimension that is still free."""
        shape = self.shapes.get(key)
        if shape and shape[0] is None:
            self._settle(key, shape, leading)

    def _settle(self, key: object, shape: Shape, leading: int | None) -> None:
        self.shapes[key] = [leading, *shape[1:]]
        if leading is not None:
            self.free[key] = leading

    def _leading(self, op: str, inputs: Sequence[object], shape: Shape) -> int | None:
        if op in self.reshaping:
            total, rest = self.size(inputs[0]) if inputs else None, size_of(shape[1:])
            return total // rest if total is not None and rest and total % rest == 0 else None
        return next((self.free[key] for key in inputs if key in self.free), None)
