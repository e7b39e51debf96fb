"""Train the sample model and cut the sample data: a small Fashion-MNIST CNN that ships with the package.

    python samples/train_fashion.py --data /usr/share/datasets/fashion-mnist --out samples

Reads the four IDX files of Fashion-MNIST (Debian package dataset-fashion-mnist, or the upstream release) and
writes fashion_cnn.keras, fashion_{calib,train,eval}.npz, and prints the measured figures.
Deterministic for one seed, one machine type and one TensorFlow version. Test images never steer the training:
the number of epochs and the learning-rate schedule are fixed beforehand and the last weights are kept.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SLICES = {"calib": 256, "train": 4000, "eval": 1000}


def read_idx(path: Path) -> np.ndarray:
    """One IDX file (gzip or plain) of unsigned bytes, as an array of the shape its header declares.

    Raises ValueError where the header or the length is not that of an unsigned-byte IDX file.
    Format: http://yann.lecun.com/exdb/mnist/
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    rank = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    body = raw[4 + 4 * rank :]
    if len(body) != math.prod(shape):
        raise ValueError(f"{path} holds {len(body)} bytes where its header says {math.prod(shape)}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def load_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N,28,28,1] and labels int64 [N] of the split "train" or "t10k"."""

    def find(stem: str) -> Path:
        for name in (f"{stem}.gz", stem):
            if (folder / name).is_file():
                return folder / name
        raise FileNotFoundError(f"{folder / stem}.gz is missing; on Debian: apt install dataset-fashion-mnist")

    x = read_idx(find(f"{split}-images-idx3-ubyte"))
    y = read_idx(find(f"{split}-labels-idx1-ubyte"))
    if x.shape[1:] != (28, 28) or len(x) != len(y):
        raise ValueError(f"{folder}: split {split} has images {x.shape} and labels {y.shape}")
    return x[..., None], y.astype(np.int64)


def pick(y: np.ndarray, count: int, rng: np.random.Generator, taken: np.ndarray | None = None) -> np.ndarray:
    """Indices of `count` samples, equally many of every class (the first ones get the remainder)."""
    free = np.ones(len(y), bool)
    if taken is not None:
        free[taken] = False
    share, rest = divmod(count, len(CLASSES))
    chosen = [
        rng.choice(np.flatnonzero(free & (y == c)), share + (c < rest), replace=False) for c in range(len(CLASSES))
    ]
    return rng.permutation(np.concatenate(chosen))


def build() -> Any:
    """The untrained network: input float32 [n,28,28,1] in 0..1, output softmax [n,10].

    Convolution + BatchNorm + ReLU, depthwise-separable downsampling, and two residual Adds.
    """
    from keras import Model, layers

    def conv(x: Any, width: int, name: str, act: bool = True) -> Any:
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x) if act else x

    def separable(x: Any, width: int, name: str) -> Any:
        x = layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False, name=f"{name}_dw")(x)
        x = layers.BatchNormalization(name=f"{name}_dw_bn")(x)
        x = layers.ReLU(name=f"{name}_dw_relu")(x)
        x = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_pw")(x)
        x = layers.BatchNormalization(name=f"{name}_pw_bn")(x)
        return layers.ReLU(name=f"{name}_pw_relu")(x)

    def residual(x: Any, width: int, name: str) -> Any:
        y = conv(conv(x, width, f"{name}a"), width, f"{name}b", act=False)
        return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))

    image = layers.Input((28, 28, 1), name="image")
    x = conv(image, 16, "stem")
    x = residual(separable(x, 32, "down1"), 32, "res1")
    x = residual(separable(x, 64, "down2"), 64, "res2")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="drop")(x)
    x = layers.Dense(len(CLASSES), activation="softmax", name="probabilities")(x)
    return Model(image, x, name="fashion_cnn")


def augment(x: np.ndarray, rng: np.random.Generator, shift: int = 2) -> np.ndarray:
    """Images uint8 [n,28,28,1], flipped at random and moved by up to `shift` pixels, as float32 in 0..1."""
    n, h, w, _ = x.shape
    padded = np.pad(x[..., 0], ((0, 0), (shift, shift), (shift, shift)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(1, 2))
    top, left = rng.integers(0, 2 * shift + 1, (2, n))
    out = windows[np.arange(n), top, left]
    flip = rng.random(n) < 0.5
    out[flip] = out[flip, :, ::-1]
    return out[..., None].astype(np.float32) / 255


def train(model: Any, x: np.ndarray, y: np.ndarray, epochs: int, seed: int, batch: int = 128) -> None:
    """Fit `model` in place: AdamW, warm-up and cosine decay, one line of progress an epoch on stderr."""
    import keras

    steps = len(x) // batch
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-4, (epochs - 1) * steps, warmup_target=4e-3, warmup_steps=steps, alpha=1e-3
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=1e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        begin = time.monotonic()
        order = rng.permutation(len(x))
        history = []
        for i in range(steps):
            rows = order[i * batch : (i + 1) * batch]
            history.append(model.train_on_batch(augment(x[rows], rng), y[rows]))
        loss, accuracy = np.mean(np.asarray(history, np.float64), axis=0)
        print(
            f"epoch {epoch + 1}/{epochs}  loss {loss:.4f}  accuracy {accuracy:.4f}  {time.monotonic() - begin:.0f} s",
            file=sys.stderr,
            flush=True,
        )


def top1(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Share of images uint8 [N,28,28,1] whose most likely class is the label."""
    out = model.predict(x.astype(np.float32) / 255, batch_size=500, verbose=0)
    return float(np.mean(out.argmax(1) == y))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the Fashion-MNIST sample and cut its data slices.")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error("--epochs must be at least 2 (the first one warms the learning rate up)")

    x, y = load_split(args.data, "train")
    test_x, test_y = load_split(args.data, "t10k")
    rng = np.random.default_rng(args.seed)
    calib = pick(y, SLICES["calib"], rng)
    tune = pick(y, SLICES["train"], rng, taken=calib)
    held = pick(test_y, SLICES["eval"], rng)

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(args.seed)
    tf.config.experimental.enable_op_determinism()
    model = build()
    train(model, x, y, args.epochs, args.seed)
    bare = build()  # a copy that was never compiled: no optimizer state in the file
    bare.set_weights(model.get_weights())
    figures = {
        "parameters": int(bare.count_params()),
        "epochs": args.epochs,
        "seed": args.seed,
        "top1_test": top1(bare, test_x, test_y),
        "count_test": len(test_y),
        "top1_eval": top1(bare, test_x[held], test_y[held]),
        "count_eval": len(held),
        "classes": list(CLASSES),
    }

    args.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out / "fashion_calib.npz", x=x[calib], y=y[calib])
    np.savez_compressed(args.out / "fashion_train.npz", x=x[tune], y=y[tune])
    np.savez_compressed(args.out / "fashion_eval.npz", x=test_x[held], y=test_y[held])
    bare.save(args.out / "fashion_cnn.keras")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
