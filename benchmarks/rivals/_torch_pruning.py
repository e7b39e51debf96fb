"""torch-pruning on MLPerf Tiny's ResNet-8, then distilled from the original: for benchmarks/versus_torch_pruning.py.

    <environment>/bin/python benchmarks/rivals/_torch_pruning.py --weights W.npz --train T.npz --eval E.npz --out M.onnx

W.npz holds the weights of the Keras model by layer and name; the network is written out here, for torch-pruning takes
a torch.nn.Module, nothing else. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this is torch's own script, in its own environment
from torch import nn  # noqa: TID253


class Same(nn.Conv2d):
    """A convolution padded as Keras pads it: at the end, where strides leave an odd row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sizes = zip(x.shape[2:], self.stride, self.kernel_size, strict=True)
        around = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in sizes]
        pads = [around[1] // 2, around[1] - around[1] // 2, around[0] // 2, around[0] - around[0] // 2]
        return self._conv_forward(nn.functional.pad(x, pads), self.weight, self.bias)


class ResNet8(nn.Module):
    """Three stages of 16, 32 and 64 channels, as in MLPerf Tiny's reference (ic_resnet8.h5)."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(3, 16, 3, 1), (16, 16, 3, 1), (16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (16, 32, 1, 2)]
        widths += [(32, 64, 3, 2), (64, 64, 3, 1), (32, 64, 1, 2)]
        self.convs = nn.ModuleList([Same(i, o, k, s) for i, o, k, s in widths])
        self.norms = nn.ModuleList([nn.BatchNorm2d(c, eps=1e-3) for c in (16, 16, 16, 32, 32, 64, 64)])
        self.dense = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        conv, norm, relu = self.convs, self.norms, torch.relu
        x = relu(norm[0](conv[0](x)))
        x = relu(x + norm[2](conv[2](relu(norm[1](conv[1](x))))))
        x = relu(conv[5](x) + norm[4](conv[4](relu(norm[3](conv[3](x))))))
        x = relu(conv[8](x) + norm[6](conv[7](relu(norm[5](conv[6](x))))))
        return self.dense(x.mean((2, 3)))


def loaded(path: str) -> ResNet8:
    """The network with the weights of the Keras model."""
    model, given = ResNet8().eval(), np.load(path)

    def put(target: torch.Tensor, name: str, order: tuple[int, ...] = ()) -> None:
        value = given[name]
        target.data.copy_(torch.from_numpy(value.transpose(order) if order else value))

    for k, conv in enumerate(model.convs):
        name = f"conv2d_{k}" if k else "conv2d"
        put(conv.weight, f"{name}/kernel", (3, 2, 0, 1))
        put(conv.bias, f"{name}/bias")
    for k, norm in enumerate(model.norms):
        name = f"batch_normalization_{k}" if k else "batch_normalization"
        for own, keras in (("weight", "gamma"), ("bias", "beta"), ("running_mean", "moving_mean")):
            put(getattr(norm, own), f"{name}/{keras}")
        put(norm.running_var, f"{name}/moving_variance")
    put(model.dense.weight, "dense/kernel", (1, 0))
    put(model.dense.bias, "dense/bias")
    return model


def pruned(model: ResNet8, x: torch.Tensor, y: torch.Tensor, share: float) -> tuple[float, float]:
    """Prune by Taylor importance until at most ``share`` of the MACs is left; MACs and ratio of channels."""
    import torch_pruning as tp

    example = x[:1]
    before = tp.utils.count_ops_and_params(model, example)[0]
    steps = 40
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.GroupTaylorImportance(), pruning_ratio=0.8,
        iterative_steps=steps, ignored_layers=[model.dense], round_to=8,
    )  # fmt: skip
    for step in range(steps):
        model.zero_grad()
        for k in range(0, 512, 64):
            nn.functional.cross_entropy(model(x[k : k + 64]), y[k : k + 64]).backward()
        pruner.step()
        left = tp.utils.count_ops_and_params(model, example)[0] / before
        if left <= share:
            return left, 0.8 * (step + 1) / steps
    raise SystemExit(f"torch-pruning: {left:.2f} of the MACs are left at 80 % of the channels")


def distilled(model: ResNet8, teacher: ResNet8, x: torch.Tensor, y: torch.Tensor, epochs: int, rate: float) -> None:
    """Adam, cosine rates, flipped and shifted images: 0.7 of the loss is the KL divergence to the original's answers at
    temperature 4, the rest that to the labels, as `lepton-edge prune` has it."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    batch, steps = 32, epochs * (len(x) // 32)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for k in range(0, len(x) - batch + 1, batch):
            chosen = order[k : k + batch]
            rows = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, x[chosen].flip(3), x[chosen])
            top, left = torch.randint(0, 5, (2,)).tolist()
            rows = nn.functional.pad(rows, (2, 2, 2, 2), mode="reflect")[:, :, top : top + 32, left : left + 32]
            with torch.no_grad():
                wanted = torch.softmax(teacher(rows) / 4, 1)
            answers = model(rows)
            near = 16 * nn.functional.kl_div(torch.log_softmax(answers / 4, 1), wanted, reduction="batchmean")
            loss = 0.7 * near + 0.3 * nn.functional.cross_entropy(answers, y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


class Whole(nn.Module):
    """The network as the Keras model has its ports: images NHWC in, probabilities out."""

    def __init__(self, model: ResNet8) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.model(images.permute(0, 3, 1, 2)), 1)


def read(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 NCHW and labels int64 of an .npz."""
    given = np.load(path)
    return torch.from_numpy(given["x"].astype(np.float32)).permute(0, 3, 1, 2), torch.from_numpy(given["y"])


def top1(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of labels that a network gives."""
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def main() -> None:
    """Prune, distil, and write the ONNX file."""
    parser = argparse.ArgumentParser()
    for name in ("weights", "train", "eval", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    import torch_pruning

    (x, y), (test, truth) = read(args.train), read(args.eval)
    teacher, model = loaded(args.weights), loaded(args.weights)

    told: dict[str, Any] = {"top1_before": top1(teacher, test, truth), "torch_pruning": torch_pruning.__version__}
    told["macs"], told["channels"] = pruned(model, x, y, args.macs)
    told["top1_pruned"] = top1(model, test, truth)
    start = time.monotonic()
    distilled(model, teacher, x, y, args.epochs, args.rate)
    told |= {"seconds": round(time.monotonic() - start, 1), "top1": top1(model, test, truth)}
    told["widths"] = [conv.out_channels for conv in model.convs]
    torch.onnx.export(
        Whole(model).eval(), (torch.zeros(1, 32, 32, 3),), args.out, input_names=["x"], output_names=["y"],
        opset_version=17, dynamo=False,
    )  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
