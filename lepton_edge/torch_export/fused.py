"""PyTorch's fused inference operators, written out: exporters have no form of them.

nn.TransformerEncoderLayer calls one operator for the whole layer in evaluation mode; what it computes is in the
layer's own documentation (Vaswani et al. 2017, post-norm or pre-norm).
"""

from __future__ import annotations

import math
from typing import Any


def written_out(program: Any) -> Any:
    """The exported program with its fused operators as core ones; the program itself where it has none."""
    import torch

    aten = torch.ops.aten
    table = {
        aten._transformer_encoder_layer_fwd.default: _encoder_layer,
        aten._native_multi_head_attention.default: _attention,
    }
    used = {n.target for n in program.graph.nodes if n.op == "call_function"}
    return program.run_decompositions(table) if used & set(table) else program


def _encoder_layer(
    src: Any, embed_dim: int, heads: int, in_weight: Any, in_bias: Any, out_weight: Any, out_bias: Any, gelu: bool,
    norm_first: bool, eps: float, norm1_weight: Any, norm1_bias: Any, norm2_weight: Any, norm2_bias: Any,
    first_weight: Any, first_bias: Any, second_weight: Any, second_bias: Any, mask: Any = None, mask_type: Any = None,
) -> Any:  # fmt: skip
    """src [batch, tokens, embed_dim] through attention and the two dense layers."""
    import torch
    from torch.nn import functional as F

    if mask is not None:
        raise NotImplementedError("a masked encoder layer")

    def attend(x: Any) -> Any:
        return _attend(x, heads, in_weight, in_bias, out_weight, out_bias)

    def feed(x: Any) -> Any:
        x = F.linear(x, first_weight, first_bias)
        return F.linear(F.gelu(x) if gelu else torch.relu(x), second_weight, second_bias)

    def norm1(x: Any) -> Any:
        return F.layer_norm(x, [embed_dim], norm1_weight, norm1_bias, eps)

    def norm2(x: Any) -> Any:
        return F.layer_norm(x, [embed_dim], norm2_weight, norm2_bias, eps)

    if norm_first:
        src = src + attend(norm1(src))
        return src + feed(norm2(src))
    src = norm1(src + attend(src))
    return norm2(src + feed(src))


def _attend(x: Any, heads: int, in_weight: Any, in_bias: Any, out_weight: Any, out_bias: Any) -> Any:
    from torch.nn import functional as F

    batch, tokens, width = x.shape
    q, k, v = (
        part.reshape(batch, tokens, heads, -1).transpose(1, 2) for part in F.linear(x, in_weight, in_bias).chunk(3, -1)
    )
    weights = (q @ k.transpose(2, 3) / math.sqrt(width // heads)).softmax(-1)
    return F.linear((weights @ v).transpose(1, 2).reshape(batch, tokens, width), out_weight, out_bias)


def _attention(
    query: Any, key: Any, value: Any, embed_dim: int, heads: int, in_weight: Any, in_bias: Any, out_weight: Any,
    out_bias: Any, mask: Any = None, need_weights: bool = True, average: bool = True, mask_type: Any = None,
) -> tuple[Any, Any]:  # fmt: skip
    if mask is not None or need_weights or query is not key:
        raise NotImplementedError("masked or cross attention, or its weights asked for")
    return _attend(query, heads, in_weight, in_bias, out_weight, out_bias), query.new_zeros(0)
