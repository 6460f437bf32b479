"""Packs for the tests of this folder: random vectors of a model that needs no weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlx_emotion.emotions import BASIC
from mlx_emotion.vectors import EmotionVectors, Identity, PackInfo

IDENTITY = Identity("somebody/model-4bit", "r1", "f" * 32, "llama", 4, 16)


def make_pack(
    *emotions: str, site: str = "attention", seed: int = 0, model: Identity = IDENTITY, **metadata: Any
) -> EmotionVectors:
    """A calibrated pack of random vectors, of the basic five where no emotion is named."""
    random = np.random.default_rng(seed)
    names = emotions or BASIC
    entries = {n: {"instructions": [f"Answer with {n}."], "count": 7, "scale": 1.5} for n in names}
    info = PackInfo(model, site, entries, **{"queries": {"name": "set", "sha256": "0"}, "created": "then", **metadata})
    shape = (model.layers, model.width)
    vectors = {n: random.standard_normal(shape, dtype=np.float32) for n in names}
    return EmotionVectors(vectors, info, np.arange(1, model.layers + 1, dtype=np.float32))
