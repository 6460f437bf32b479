"""Baichuan and Baichuan 2 (arXiv 2309.10305), 7B and 13B, which mlx-lm 0.32.2 does not have.

Like Llama, but for: queries, keys and values in one projection; in Baichuan 2 a head whose rows are
normalised (here once, at load, which the quantised head then is made of); and in the 13B models ALiBi
in the place of RoPE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import BaseModelArgs, create_attention_mask, scaled_dot_product_attention

BAICHUAN_1_VOCABULARY = 64000
WIDTH_13B = 5120


@dataclass
class ModelArgs(BaseModelArgs):
    """The fields of Baichuan's config. ``position`` is ``rope`` or ``alibi``; without it, ``alibi`` for 13B's width."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    vocab_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    position: str | None = None

    @property
    def alibi(self) -> bool:
        return (self.position or ("alibi" if self.hidden_size == WIDTH_13B else "rope")) == "alibi"


class Attention(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        width = args.hidden_size
        self.heads = args.num_attention_heads
        self.scale = (width // self.heads) ** -0.5
        self.W_pack = nn.Linear(width, 3 * width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        if not args.alibi:
            self.rope = nn.RoPE(width // self.heads, traditional=False, base=args.rope_theta)

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        B, T, _ = x.shape
        # (B, T, 3·H·D) -> 3 x (B, H, T, D)
        queries, keys, values = (
            part.reshape(B, T, self.heads, -1).transpose(0, 2, 1, 3) for part in mx.split(self.W_pack(x), 3, axis=-1)
        )
        if "rope" in self:
            offset = 0 if cache is None else cache.offset
            queries, keys = self.rope(queries, offset=offset), self.rope(keys, offset=offset)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        output = scaled_dot_product_attention(queries, keys, values, cache=cache, scale=self.scale, mask=mask)
        return self.o_proj(output.transpose(0, 2, 1, 3).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.up_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.down_proj = nn.Linear(args.intermediate_size, args.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.self_attn = Attention(args)
        self.mlp = MLP(args)
        self.input_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class BaichuanModel(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [DecoderLayer(args) for _ in range(args.num_hidden_layers)]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self._slopes = alibi_slopes(args.num_attention_heads) if args.alibi else None

    def __call__(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        h = self.embed_tokens(tokens)
        caches = cache or [None] * len(self.layers)
        if self._slopes is None:
            mask = create_attention_mask(h, caches[0])
        else:
            mask = alibi_mask(self._slopes, create_attention_mask(h, caches[0], return_array=True), h, caches[0])
        for layer, c in zip(self.layers, caches):
            h = layer(h, mask, c)
        return self.norm(h)


def alibi_slopes(heads: int) -> list[float]:
    """One slope a head (arXiv 2108.12409): powers of 2^(-8/n) for n a power of two, else filled up from 2n's."""
    n = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / n) for i in range(n)]
    return slopes + [2 ** (-4 * (2 * i + 1) / n) for i in range(heads - n)]


def alibi_mask(slopes: list[float], allowed: mx.array | None, h: mx.array, cache: Any) -> mx.array:
    """The bias ``[1 or B, H, T, S]`` on the scores, by distance; ``allowed`` is the boolean mask, if any.

    Distances are between places in the cache, so padding in front of a row's keys does not matter.
    """
    T = h.shape[1]
    S = allowed.shape[-1] if allowed is not None else T + (0 if cache is None else cache.offset)
    distance = mx.arange(S) - mx.arange(S - T, S)[:, None]
    bias = mx.array(slopes)[:, None, None] * distance
    if allowed is not None:
        bias = mx.where(allowed, bias, -mx.inf)
    return (bias if bias.ndim == 4 else bias[None]).astype(h.dtype)


class Model(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = BaichuanModel(args)
        self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        return self.lm_head(self.model(tokens, cache))

    @property
    def layers(self) -> list[DecoderLayer]:
        return self.model.layers

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Normalise the head's rows, unless they are quantised already (and so were normalised before)."""
        weights = {name: value for name, value in weights.items() if "rotary_emb.inv_freq" not in name}
        head = weights.get("lm_head.weight")
        if head is not None and self.args.vocab_size != BAICHUAN_1_VOCABULARY and "lm_head.scales" not in weights:
            rows = head.astype(mx.float32)
            norms = mx.linalg.norm(rows, axis=-1, keepdims=True)
            weights["lm_head.weight"] = (rows / mx.maximum(norms, 1e-12)).astype(head.dtype)
        return weights


def make_tokenizer(path: Path) -> Any:
    """Baichuan's tokenizer from its ``tokenizer.model``; its own Python code fails on transformers 5."""
    from .vocabularies import from_sentencepiece

    return from_sentencepiece(path / "tokenizer.model", special=r"<reserved_\d+>")
