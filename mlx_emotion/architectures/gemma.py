"""Gemma as its reference computes it: mlx-lm 0.32.2 takes the exact GELU, Gemma was trained with the tanh form."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gemma
from mlx_lm.models.gemma import ModelArgs

__all__ = ["Model", "ModelArgs"]


class MLP(gemma.MLP):
    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.gelu_approx(self.gate_proj(x)) * self.up_proj(x))


class Model(gemma.Model):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        for layer in self.layers:
            layer.mlp = MLP(args.hidden_size, args.intermediate_size)
