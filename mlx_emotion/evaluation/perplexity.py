"""Perplexity of texts under a judge model, as in arXiv 2502.04075: exp of the mean negative log-likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models import LoadedModel

BATCH = 8
MOST_LOGITS = 1 << 26
"""Held at once, each of four bytes: a large vocabulary is gone through in pieces of the texts."""


def perplexities(loaded: LoadedModel, texts: Sequence[str]) -> Iterator[tuple[int, float | None]]:
    """(index, perplexity) of each text, shortest first; on the thread that owns MLX.

    A text's tokens are those the tokenizer gives it, special ones included; the first is not predicted.
    Beyond the model's context it is cut off. ``None`` for a text without a token to predict, and where the
    perplexity is no finite number.
    """
    import math

    import mlx.core as mx
    import numpy as np
    from mlx_lm.models.cache import make_prompt_cache

    limit = loaded.context or 4096
    vocabulary = len(loaded.tokenizer.get_vocab())
    tokens = [loaded.tokenizer.encode(t)[:limit] if t else [] for t in texts]
    order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
    while order and len(tokens[order[0]]) < 2:
        yield order.pop(0), None
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        longest = max(len(tokens[i]) for i in rows)
        # Padded on the right, where a causal model's earlier positions cannot see it.
        padded = mx.array([tokens[i] + [0] * (longest - len(tokens[i])) for i in rows])
        cache, piece = make_prompt_cache(loaded.model), max(1, MOST_LOGITS // (len(rows) * vocabulary))
        parts = []
        for at in range(0, longest - 1, piece):
            end = min(at + piece, longest - 1)
            logits = loaded.model(padded[:, at:end], cache=cache).astype(mx.float32)
            chosen = mx.take_along_axis(logits, padded[:, at + 1 : end + 1, None], axis=-1)[..., 0]
            parts.append(mx.logsumexp(logits, axis=-1) - chosen)  # (B, piece)
            mx.eval(parts[-1])
        counts = mx.array([len(tokens[i]) - 1 for i in rows])
        inside = mx.arange(longest - 1)[None] < counts[:, None]
        values = mx.exp(mx.where(inside, mx.concatenate(parts, axis=1), 0).sum(-1) / counts)
        yield from ((i, v if math.isfinite(v) else None) for i, v in zip(rows, np.array(values).tolist()))
