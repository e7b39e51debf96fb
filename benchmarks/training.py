"""The training benchmark: Keras models pruned, clustered and trained for quantization by our command line, and rivals.

    python benchmarks/training.py [--tasks NAME ...] [--variants NAME ...] [--rivals | --no-rivals]

A task is a float Keras model with training, calibration and test samples. A variant of it is a chain of our commands,
the last of which quantizes into TFLite; top-1 is measured on the test samples in LiteRT, files are zipped (deflate).
tensorflow-model-optimization alone, on a tf_keras copy of the same model and with the same samples, epochs and rate, is
the rival; what it says to the Keras 3 model itself is told too. Results: benchmarks/results/training/<task>.json.

Fashion-MNIST comes from the Debian package dataset-fashion-mnist (MIT); FASHION_MNIST names the folder of its four
files where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, RESULTS, ROOT, Missing, cache, cli, last_words, shared
from page import table, update
from quantization import stamp

FOLDER = RESULTS / "training"
FASHION = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
RIVALS = ("prune", "cluster", "qat", "pcqat")


@dataclass(frozen=True)
class Task:
    """`prepare` gives the folder that holds model (file name), train.npz, calib.npz and eval.npz."""

    title: str
    prepare: Callable[[], Path]
    model: str
    effort: Effort
    sparsity: float
    preprocess: str = ""

    @property
    def variants(self) -> dict[str, tuple[str, Chain]]:
        """The chains, by name."""
        return _common(self.effort, self.sparsity)


@dataclass(frozen=True)
class Effort:
    """Epochs and learning rate of each verb, and the share of the loss that is the original's answers."""

    prune: tuple[int, float]
    cluster: tuple[int, float]
    qat: tuple[int, float]
    qat4: tuple[int, float]
    distil: float
    augment: str = ""
    batch: int = 32

    def of(self, verb: str, **more: Any) -> dict:
        """The options of a verb."""
        epochs, rate = getattr(self, verb)
        own = {"epochs": epochs, "learning_rate": rate, "batch_size": self.batch}
        return {**own, "distil": self.distil, "augment": self.augment, **more}

    def on_onnx(self, **more: Any) -> dict:
        """The options of QAT on the ONNX form: its own defaults but for these."""
        return {"epochs": 10, "batch_size": self.batch, "augment": self.augment.replace("mix", "shift"), **more}


Chain = list[tuple[str, dict]]
INT8: tuple[str, dict] = ("quantize", {})
BITS4: tuple[str, dict] = ("quantize", {"weight_bits": 4})
BITS2: tuple[str, dict] = ("quantize", {"weight_bits": 2})
ONNX: tuple[str, dict] = ("convert", {})


def _common(effort: Effort, sparsity: float) -> dict[str, tuple[str, Chain]]:
    prune = ("prune", effort.of("prune", sparsity=sparsity))
    cluster, qat = ("cluster", effort.of("cluster")), ("qat", effort.of("qat"))
    share = f"{sparsity:.0%}"
    return {
        "int8": ("int8", [INT8]),
        "qat-int8": ("QAT, int8", [qat, INT8]),
        "w4": ("int8, weights of 4 bits", [BITS4]),
        "qat-w4": ("QAT, weights of 4 bits", [("qat", effort.of("qat4", bits=4)), BITS4]),
        "onnx-qat-int8": ("QAT on the ONNX form, int8", [ONNX, ("qat", effort.on_onnx()), INT8]),
        "onnx-qat-w4": ("QAT on the ONNX form, weights of 4 bits", [ONNX, ("qat", effort.on_onnx(bits=4)), BITS4]),
        "w2": ("int8, weights of 2 bits", [BITS2]),
        "onnx-qat-w2": (
            "QAT on the ONNX form, weights of 2 bits",
            [ONNX, ("qat", effort.on_onnx(bits=2, epochs=30)), BITS2],
        ),
        "pruned-int8": (f"{share} zeros, int8", [prune, INT8]),
        "clustered-int8": ("16 values, int8", [cluster, INT8]),
        "pqat-int8": (f"{share} zeros, QAT, int8", [prune, qat, INT8]),
        "cqat-int8": ("16 values, QAT, int8", [cluster, qat, INT8]),
        "pruned-clustered-int8": (f"{share} zeros, 16 values, int8", [prune, cluster, INT8]),
        "pcqat-int8": (f"{share} zeros, 16 values, QAT, int8", [prune, cluster, qat, INT8]),
    }


def _resnet8() -> Path:
    folder = cache("training", "ic_resnet8")
    _link(shared("mlperf_tiny/ic_resnet8.h5"), folder / "model.h5")
    for name in ("train", "calib", "eval"):
        _link(shared(f"cifar10/{name}.npz"), folder / f"{name}.npz")
    return folder


def _fashion_cnn() -> Path:
    folder = cache("training", "fashion_cnn")
    _link(ROOT / "samples" / "fashion_cnn.keras", folder / "model.keras")
    _link(ROOT / "samples" / "fashion_train.npz", folder / "train.npz")
    _fashion(folder, flat=False)
    return folder


def _fashion_mlp() -> Path:
    folder = cache("training", "fashion_mlp")
    _fashion(folder, flat=True)
    if not (folder / "model.keras").exists():
        _child("mlp", folder)
    return folder


def _fashion(folder: Path, *, flat: bool) -> None:
    """All of Fashion-MNIST: 60,000 training images, 10,000 test images, 512 of the first for calibration."""
    if (folder / "eval.npz").exists():
        return
    sys.path.append(str(ROOT / "samples"))
    import train_fashion

    try:
        parts = {"train": train_fashion.load_split(FASHION, "train"), "eval": train_fashion.load_split(FASHION, "t10k")}
    except FileNotFoundError as error:
        raise Missing(f"{error} (or set FASHION_MNIST)") from error
    rows = train_fashion.pick(parts["train"][1], 512, np.random.default_rng(0))
    parts["calib"] = tuple(a[rows] for a in parts["train"])
    for name, (x, y) in parts.items():
        if (folder / f"{name}.npz").exists():
            continue
        np.savez(folder / f"{name}.npz", x=x.reshape(len(x), -1) if flat else x, y=y)


def _link(source: Path, target: Path) -> None:
    if not target.exists():
        target.symlink_to(source.resolve())


TASKS = {
    "ic_resnet8": Task(
        "ic_resnet8 (MLPerf Tiny), CIFAR-10: 4,148 training, 600 test images",
        _resnet8,
        "model.h5",
        Effort((18, 1e-3), cluster=(6, 3e-4), qat=(4, 1e-4), qat4=(12, 1e-3), distil=1.0, augment="flip,mix"),
        0.75,
    ),
    "fashion_cnn": Task(
        "the sample CNN, Fashion-MNIST: 4,000 training, 10,000 test images",
        _fashion_cnn,
        "model.keras",
        Effort((20, 1e-3), cluster=(10, 5e-4), qat=(6, 1e-4), qat4=(20, 1e-3), distil=1.0, augment="flip,mix"),
        0.75,
        "[preprocess]\nscale = 0.00392156862745098\n",
    ),
    "fashion_mlp": Task(
        "MLP 784-64-64-10, Fashion-MNIST: 60,000 training, 10,000 test images",
        _fashion_mlp,
        "model.keras",
        Effort(prune=(8, 1e-3), cluster=(5, 5e-4), qat=(3, 1e-4), qat4=(6, 1e-3), distil=0.5, batch=128),
        0.8,
        "[preprocess]\nscale = 0.00392156862745098\n",
    ),
}


def main() -> None:
    """Run the tasks asked for and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--variants", nargs="*", default=None, help="(all)")
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=list(RIVALS), help="(all)")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        train_mlp(Path(args.child[1]))
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in args.tasks:
        try:
            run(name, args)
        except Missing as error:
            print(f"{name}: left out: {error}")
    write_section()


def run(name: str, args: argparse.Namespace) -> None:
    """Make and judge the variants of a task; each result is kept as soon as it is there."""
    task, path = TASKS[name], FOLDER / f"{name}.json"
    record = json.loads(path.read_text()) if path.is_file() else {"rows": {}, "rivals": {}}
    folder = task.prepare()
    (folder / "base.toml").write_text(task.preprocess)
    record |= {"task": name, "title": task.title, **stamp()}
    record["float"] = evaluated(folder / task.model, folder)
    for variant, (title, chain) in task.variants.items():
        if args.variants is None or variant in args.variants:
            record["rows"][variant] = {"title": title, **ours(task, folder, variant, chain)}
            _keep(path, record)
    if not args.no_rivals:
        for what in args.rivals:
            record["rivals"][what] = rival(task, folder, what)
            _keep(path, record)
        record["refused"] = rival(task, folder, "keras3")
    _keep(path, record)


def _keep(path: Path, record: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)


def evaluated(model: Path, folder: Path) -> dict:
    """Top-1 on all the test samples, bytes and zipped bytes of a model."""
    told = cli("evaluate", model, "--data", folder / "eval.npz", "--samples", "10000", "--recipe", folder / "base.toml")
    return {"top1": told["accuracy"]["top1"], "count": told["accuracy"]["count"], **sizes(model)}


def sizes(path: Path) -> dict:
    """Bytes of a file, as it is and zipped."""
    from lepton_edge.artifact import open_artifact

    art = open_artifact(path)
    return {"bytes": art.size_bytes, "zip_bytes": art.zip_bytes()}


def ours(task: Task, folder: Path, variant: str, chain: Chain) -> dict:
    """A chain of our commands; finished steps come from the store. What failed is told."""
    at, start, notes, facts = folder / task.model, time.monotonic(), [], {}
    try:
        for k, (verb, options) in enumerate(chain):
            last = k == len(chain) - 1
            form = ".onnx" if chain[0][0] == "convert" else ".keras"
            out = folder / f"{variant}.{k}{'.tflite' if last else form}"
            recipe = folder / f"{variant}.{k}.toml"
            section = "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
            section = f"[{verb}]\n{section}" if options else ""
            recipe.write_text(f"{section}{task.preprocess}[data]\nevaluation_samples = 200\n")
            data = ["--data", folder / "calib.npz"] if last or verb == "convert" else ["--train", folder / "train.npz"]
            to = ["--to", {".tflite": "tflite", ".onnx": "onnx"}[out.suffix]] if last or verb == "convert" else []
            told = cli(verb, at, *data, "--eval", folder / "eval.npz", "--recipe", recipe, *to, "-o", out)
            at = out
            if verb == "convert":
                continue
            step = next(s for s in told["steps"] if s["step"].startswith(verb))
            notes += step["notes"]
            if "result" in step and not last:
                facts[verb] = {k: step["result"].get(k) for k in ("epochs", "best_epoch", "training_s", "sparsity")}
        found = evaluated(at, folder)
    except Missing as error:
        print(f"{variant}: {error}", flush=True)
        return {"error": str(error)}
    seconds = round(time.monotonic() - start, 1)
    print(f"{folder.name} {variant}: {found} in {seconds} s", flush=True)
    return {**found, "seconds": seconds, "steps": facts, "notes": notes, "chain": [[v, o] for v, o in chain]}


def rival(task: Task, folder: Path, what: str) -> dict:
    """tensorflow-model-optimization alone, in a process of its own: what it makes, or the error it gives."""
    effort = task.effort
    out = folder / f"tfmot-{what}.tflite"
    options = {"prune": effort.prune, "cluster": effort.cluster, "qat": effort.qat, "sparsity": task.sparsity}
    options |= {"batch": effort.batch, "scale": 1 / 255 if task.preprocess else 1.0}
    command = [sys.executable, str(HERE / "rivals" / "_tfmot_alone.py"), what, str(folder), task.model, str(out)]
    start = time.monotonic()
    done = subprocess.run([*command, json.dumps(options)], capture_output=True, text=True, check=False)
    told = {"seconds": round(time.monotonic() - start, 1)}
    if done.returncode or not out.exists():
        print(f"tfmot {what}: {last_words(done.stderr)}", flush=True)
        return {**told, "error": last_words(done.stderr)}
    try:
        found = evaluated(out, folder)
    except Missing as error:
        return {**told, "error": str(error)}
    print(f"tfmot {what}: {found} in {told['seconds']} s", flush=True)
    return {**told, **found}


def _child(what: str, folder: Path) -> None:
    command = [sys.executable, __file__, "--child", what, str(folder)]
    if subprocess.run(command, check=False).returncode:
        raise Missing(f"{what} could not be trained")


def train_mlp(folder: Path) -> None:
    """784-64-64-10, ReLU and softmax, Adam, on all 60,000 training images; the last weights are kept."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    keras.utils.set_random_seed(0)
    layers, epochs, batch = keras.layers, 40, 128
    with np.load(folder / "train.npz") as data:
        x, y = data["x"].astype(np.float32) / 255, data["y"]
    model = keras.Sequential(
        [keras.Input((784,), name="image"), layers.Dense(64, "relu"), layers.Dense(64, "relu"),
         layers.Dense(10, "softmax")], name="fashion_mlp",
    )  # fmt: skip
    rate = keras.optimizers.schedules.CosineDecay(1e-3, epochs * (len(x) // batch), alpha=0.01)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
    bare = keras.Sequential.from_config(model.get_config())
    bare.set_weights(model.get_weights())
    part = folder / ".part.keras"
    bare.save(part)
    part.replace(folder / "model.keras")


def write_section() -> None:
    """Generate the section of BENCHMARKS.md."""
    lines = [
        "# Pruning, clustering and training for quantization",
        "",
        "Generated by `make bench-train` (benchmarks/training.py) from benchmarks/results/training/. Every file is",
        "made by our command line and quantized to int8; top-1 is *measured* in LiteRT on test samples that no step",
        "has seen, zip is the deflated TFLite file. The rival is tensorflow-model-optimization alone on a tf_keras",
        "copy of the same float model, with the same samples, epochs, rates and batches, made int8 by TFLiteConverter;",
        "it learns from the labels, as its guides have it, ours from the original's answers as far as `distil` says.",
    ]
    for file in sorted(FOLDER.glob("*.json")):
        record = json.loads(file.read_text())
        base = record["rows"].get("int8", {})
        lines += ["", f"## {record['title']}", "", f"Float top-1 {record['float']['top1']:.4f}.", ""]
        rows = [_cells("ours", r["title"], r, record["float"], base) for r in record["rows"].values()]
        names = {"prune": "zeros, int8", "cluster": "16 values, int8", "qat": "QAT, int8", "pcqat": "PCQAT, int8"}
        rows += [_cells("tfmot alone", names[k], r, record["float"], base) for k, r in record["rivals"].items()]
        lines += table(["by", "variant", "top-1", "drop, points", "bytes", "zip", "zip / int8"], rows)
        if refused := record.get("refused", {}).get("error"):
            lines += ["", f"The same Keras 3 model given to tensorflow-model-optimization: ``{refused}``"]
    update("training", lines)


def _cells(by: str, title: str, row: dict, float_: dict, base: dict) -> list[str]:
    if "error" in row:
        return [by, title, row["error"][:160], "", "", "", ""]
    ratio = row["zip_bytes"] / base["zip_bytes"] if base.get("zip_bytes") else float("nan")
    drop = 100 * (float_["top1"] - row["top1"])
    return [
        by,
        title,
        f"{row['top1']:.4f}",
        f"{drop:.2f}",
        f"{row['bytes']:,}",
        f"{row['zip_bytes']:,}",
        f"{ratio:.2f}",
    ]


if __name__ == "__main__":
    main()
