"""Where a model's decoder layers are, and the attention in each."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.nn as nn

from .errors import ModelError

KERNEL = "scaled_dot_product_attention"

# Model files (mlx-lm 0.32.2) whose attention computes its softmax by other means than KERNEL, and its class there.
WRITTEN_OUT = {
    ("mlx_lm.models.gemma2", "Attention"),  # soft-capped scores
    ("mlx_lm.models.deepseek_v41", "Attention"),  # sparse, gathered keys
}


def find_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers. ``model.layers`` may be a copy: change the layers, never the list. Raises ``ModelError``."""
    layers = getattr(model, "layers", None)
    if not isinstance(layers, list | tuple) or not layers:
        raise ModelError(f"cannot find the decoder layers of {type(model).__module__}; it cannot be steered")
    return list(layers)


def find_attention(layer: nn.Module) -> nn.Module | None:
    """The self-attention module of a decoder layer; ``None`` for a layer that has none.

    It is known by what it does, not by its name: its code calls ``scaled_dot_product_attention``. Names
    would not do: rwkv7's ``attn`` is recurrent, kimi_linear's ``self_attn`` is linear attention in most
    layers, and plamo2 and nemotron_h call everything ``mixer``. Of several in one layer
    (longcat_flash has two), the first.
    """
    for child in _children(layer):
        if _attends(type(child)):
            return child
        if (found := find_attention(child)) is not None:
            return found
    return None


def _attends(kind: type) -> bool:
    if (kind.__module__, kind.__name__) in WRITTEN_OUT:
        return True
    functions = (f for base in kind.__mro__ for f in vars(base).values())
    return any(KERNEL in f.__code__.co_names for f in functions if hasattr(f, "__code__"))


def _children(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children().values():
        for item in child if isinstance(child, list | tuple) else [child]:
            if isinstance(item, nn.Module):
                yield item
