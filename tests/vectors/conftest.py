"""Packs for the tests of this folder: random vectors of a model that needs no weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mlx_emotion.vectors import EmotionVectors, Identity, PackInfo

BASIC = ("anger", "disgust", "fear", "joy", "sadness")


@pytest.fixture
def identity() -> Identity:
    return Identity("somebody/model-4bit", "r1", "f" * 32, "llama", 4, 16)


@pytest.fixture
def make_pack(identity) -> Callable[..., EmotionVectors]:
    """``make_pack(*emotions, site=, seed=, **metadata)``: a calibrated pack of random vectors."""

    def make(*emotions: str, site: str = "attention", seed: int = 0, **metadata) -> EmotionVectors:
        random = np.random.default_rng(seed)
        names = emotions or BASIC
        entries = {n: {"instructions": [f"Answer with {n}."], "count": 7, "scale": 1.5} for n in names}
        model = metadata.pop("model", identity)
        info = PackInfo(
            model, site, entries, **{"queries": {"name": "set", "sha256": "0"}, "created": "then", **metadata}
        )
        shape = (model.layers, model.width)
        vectors = {n: random.standard_normal(shape, dtype=np.float32) for n in names}
        return EmotionVectors(vectors, info, np.arange(1, model.layers + 1, dtype=np.float32))

    return make
