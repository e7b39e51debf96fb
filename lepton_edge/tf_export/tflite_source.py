"""TFLite files as sources of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError, first_line
from lepton_edge.tf_export.check import LOW, LOW_DB, LOW_INT8_DB


@dataclass(frozen=True)
class TfliteSource:
    """A TFLite file to convert: names as the LiteRT runtime gives them, and the tensors' own (`raw`) names."""

    session: Any
    inputs: list[str]
    outputs: list[str]
    raw_inputs: list[str]
    raw_outputs: list[str]
    operations: list[str]
    quantized: bool

    def check(self, decibels: float, target: str) -> None:
        """LeptonError where a float model's conversion does not give its numbers on the self-check."""
        if not self.quantized and decibels < LOW_DB:
            raise LeptonError(
                f"the {target} made of this TFLite file gives other numbers ({decibels:.0f} dB, want {LOW_DB:.0f})",
                hint="convert the model this file was made from",
            )

    def probe(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """One seeded input in the file's order, free dimensions at 1, and the outputs for it."""
        random = np.random.default_rng(0)
        feeds = []
        for port in self.session.inputs:
            shape, dtype = [dim or 1 for dim in port["shape"]], np.dtype(port["dtype"])
            if np.issubdtype(dtype, np.floating):
                values: np.ndarray = random.standard_normal(shape)
            else:  # quantized inputs take the whole range, indices only 0 and 1
                low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if "quantization" in port else (0, 1)
                values = random.integers(low, high, shape, endpoint=True)
            feeds.append(np.asarray(values).astype(dtype))
        results = self.session.run(dict(zip(self.inputs, feeds, strict=True)))
        return feeds, [results[name] for name in self.outputs]

    def mapping(self, inputs: list[str], outputs: list[str], decibels: float) -> dict[str, Any]:
        """What a step returns: where the new names come from, and a note where the self-check came out low."""
        return {
            "inputs": [{"name": n, "source": s, "perm": None} for n, s in zip(inputs, self.inputs, strict=True)],
            "outputs": [{"name": n, "source": s, "perm": None} for n, s in zip(outputs, self.outputs, strict=True)],
            "notes": [LOW.format(decibels)] if decibels < (LOW_INT8_DB if self.quantized else LOW_DB) else [],
        }


def open_tflite(path: str) -> TfliteSource:
    """Open a TFLite file in LiteRT; LeptonError for a damaged one and one with strings or custom operations."""
    from ai_edge_litert.interpreter import Interpreter

    from lepton_edge.runtimes import litert

    try:
        session = litert.load(path)
        bare = Interpreter(model_path=path)
    except (ValueError, RuntimeError) as error:
        raise LeptonError(first_line(error), hint="the file may be damaged, or made for another runtime") from error
    ports = [*session.inputs, *session.outputs]
    for port in ports:
        if port["dtype"] == "str":
            raise LeptonError(f"'{path}' takes or returns strings ('{port['name']}'), which only TFLite can")
    return TfliteSource(
        session,
        [port["name"] for port in session.inputs],
        [port["name"] for port in session.outputs],
        [str(detail["name"]) for detail in bare.get_input_details()],
        [str(detail["name"]) for detail in bare.get_output_details()],
        [str(op["op_name"]) for op in bare._get_ops_details()],
        any(len(detail["quantization_parameters"]["scales"]) for detail in bare.get_tensor_details()),
    )
