"""LiteRT latency of float files of one model: our writer's, onnx2tf's and litert-torch's, interleaved.

    python benchmarks/convert_latency.py [--seconds S] [--rounds N]

MobileNetV2 and an EfficientNet-like network; one thread, fresh processes that take turns (lepton_edge/bench.py).
Results: benchmarks/results/convert/latency.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
RESULT = HERE / "results" / "convert" / "latency.json"
MAKERS = {"ours": ("onnx", "onnx_to_tflite"), "onnx2tf": ("onnx", "onnx_to_tflite__onnx2tf"),
          "litert-torch": ("pt2", "pt2_to_tflite")}  # fmt: skip


def build(sources: dict[str, Path], folder: Path) -> dict[str, Path]:
    """One file a maker; a maker that fails is named and left out."""
    from lepton_edge import registry, stages
    from lepton_edge.artifact import copy_artifact
    from lepton_edge.errors import LeptonError
    from lepton_edge.progress import Silent

    files = {}
    for maker, (format_, name) in MAKERS.items():
        step = next(s for s in registry.steps() if s.name == name)
        try:
            with stages.road(folder, Silent()) as road:
                made = stages.apply(road, stages.load_source(road, sources[format_]).model(), step, {})
                files[maker] = copy_artifact(made.art, folder / f"{maker}.tflite").path
        except LeptonError as error:
            print(f"{maker}: {error.message}")
    return files


def main() -> None:
    """Measure and keep."""
    from convert_models import from_shared, made
    from convert_table import write_section

    from lepton_edge import api
    from lepton_edge.recipe import Recipe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    models = {
        "MobileNetV2": {"onnx": from_shared("models/mobilenet_v2.onnx"), "pt2": from_shared("models/mobilenet_v2.pt2")},
        "EfficientNet-like": {"onnx": made("torch", "effnet", ".onnx"), "pt2": made("torch", "effnet", ".pt2")},
    }
    recipe = Recipe()
    recipe = replace(recipe, bench=replace(recipe.bench, seconds=args.seconds, rounds=args.rounds, threads=1))
    rows = []
    for name, finds in models.items():
        sources = {k: find() for k, find in finds.items()}
        if None in sources.values():
            print(f"{name}: left out, its files cannot be had")
            continue
        with tempfile.TemporaryDirectory() as folder:
            files = build(sources, Path(folder))
            result = api.bench(list(files.values()), recipe)
        for maker, found in zip(files, result["rows"], strict=True):
            row = {"model": name, "maker": maker, "p50_ms": found["latency"]["p50_ms"], "ratio": found["ratio"]}
            rows.append(row | {"size_bytes": found["size_bytes"]})
            print(row, flush=True)
    host = result["environments"]["local"]["host"]
    note = (
        f"{host['cpu']}, one thread, {args.rounds} rounds in turn; the ratio is the time of a file by ours, "
        "paired: above 1, ours is faster."
    )
    RESULT.write_text(json.dumps({"note": note, "rows": rows}, indent=1) + "\n")
    write_section(HERE.parent / "BENCHMARKS.md", RESULT.parent)


if __name__ == "__main__":
    main()
