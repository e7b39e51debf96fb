"""NNCF's pruning of MLPerf Tiny's ResNet-8, then distilled from the original: for benchmarks/trained_pruning.py.

    <environment>/bin/python benchmarks/rivals/_nncf_pruning.py --weights W.npz --train T.npz --eval E.npz --out M.onnx

NNCF 3 prunes single weights of PyTorch models by magnitude; its pruning of filters ended with version 2. Network and
training are those of _torch_pruning.py. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch  # noqa: TID253 - in an environment of its own
from _torch_pruning import Whole, distilled, loaded, read, top1


def main() -> None:
    """Prune, distil, and write the ONNX file."""
    import nncf

    parser = argparse.ArgumentParser()
    for name in ("weights", "train", "eval", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", default="x", help="the name of the input in the file")
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    (x, y), (test, truth) = read(args.train), read(args.eval)
    teacher, model = loaded(args.weights), loaded(args.weights)
    told: dict[str, Any] = {"top1_before": top1(teacher, test, truth), "nncf": nncf.__version__}
    mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
    model = nncf.prune(model, mode, ratio=args.sparsity, examples_inputs=(x[:1],))
    told["top1_pruned"] = top1(model, test, truth)
    start = time.monotonic()
    distilled(model, teacher, x, y, args.epochs, args.rate)
    told |= {"training_s": round(time.monotonic() - start, 1), "top1": top1(model, test, truth)}
    model = nncf.strip(model, strip_format=nncf.StripFormat.IN_PLACE).eval()
    sizes = [(p.numel(), int((p == 0).sum())) for p in model.parameters() if p.dim() > 1]
    told["zeros"] = sum(zeros for _, zeros in sizes) / sum(count for count, _ in sizes)
    torch.onnx.export(
        Whole(model).eval(), (torch.zeros(1, 32, 32, 3),), args.out, input_names=[args.port], output_names=["y"],
        opset_version=17, dynamo=False,
    )  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
