"""Perplexity of texts under a judge model, as in arXiv 2502.04075: exp of the mean negative log-likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models import LoadedModel

BATCH = 8


def perplexities(loaded: LoadedModel, texts: Sequence[str]) -> Iterator[tuple[int, float | None]]:
    """(index, perplexity) of each text, shortest first; on the thread that owns MLX.

    A text's tokens are those the tokenizer gives it, special ones included; the first is not predicted.
    Beyond the model's context it is cut off. ``None`` for a text without a token to predict.
    """
    import mlx.core as mx
    import numpy as np
    from mlx_lm.models.cache import make_prompt_cache

    limit = loaded.context or 4096
    tokens = [loaded.tokenizer.encode(t)[:limit] for t in texts]
    order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
    while order and len(tokens[order[0]]) < 2:
        yield order.pop(0), None
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        longest = max(len(tokens[i]) for i in rows)
        # Padded on the right, where a causal model's earlier positions cannot see it.
        padded = mx.array([tokens[i] + [0] * (longest - len(tokens[i])) for i in rows])
        logits = loaded.model(padded[:, :-1], cache=make_prompt_cache(loaded.model)).astype(mx.float32)
        chosen = mx.take_along_axis(logits, padded[:, 1:, None], axis=-1)[..., 0]
        losses = mx.logsumexp(logits, axis=-1) - chosen  # (B, T - 1)
        counts = mx.array([len(tokens[i]) - 1 for i in rows])
        inside = mx.arange(longest - 1)[None] < counts[:, None]
        values = mx.exp(mx.where(inside, losses, 0).sum(-1) / counts)
        yield from zip(rows, np.array(values).tolist())
