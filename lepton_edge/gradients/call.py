"""One node as an operator's function sees it: attributes, the version of its operator set, sizes that are constants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lepton_edge.errors import LeptonError


@dataclass
class Call:
    """`attrs` are plain values; `fixed` holds lists of integers or floats by input port, where that is a constant."""

    op: str
    name: str
    attrs: dict[str, Any]
    opset: int
    outputs: int
    fixed: dict[int, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attrs.get(name, default)

    def numbers(self, port: int, xs: tuple[Any, ...], default: Any = None) -> Any:
        """The list (or number) in an input that says sizes, axes or the like; `default` where it is left out.

        Raises LeptonError where it is computed from the samples.
        """
        if port >= len(xs) or xs[port] is None:
            return default
        if port in self.fixed:
            return self.fixed[port]
        try:
            return xs[port].tolist()
        except RuntimeError as error:  # a value that differs from sample to sample
            raise LeptonError(
                f"{self.op} '{self.name}' takes sizes that are computed from the samples, so it cannot be trained",
                "export the model with fixed sizes",
            ) from error

    def refuse(self, what: str) -> LeptonError:
        """The error of something that this operator's function does not do."""
        return LeptonError(
            f"{self.op} '{self.name}' with {what} cannot be differentiated here",
            "train the model in the framework it was made with, and give its result",
        )
