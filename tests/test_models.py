"""Loading: what is done with the weights."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_emotion
from mlx_emotion import models

on_cpu = mx.default_device() == mx.Device(mx.cpu)


def logits_and_kinds(path):
    def work(voice):
        model = voice.loaded.model
        kinds = {type(m) for m in model.modules() if hasattr(m, "weight")}
        return np.array(model(mx.array([[5, 6, 7]]))), kinds

    return mlx_emotion.load(str(path)).run(work)


@pytest.mark.skipif(not on_cpu, reason="on a GPU packed weights are quicker")
def test_on_a_cpu_a_small_models_weights_are_unpacked_and_say_the_same(tiny_model_path, monkeypatch):
    plain, kinds = logits_and_kinds(tiny_model_path)
    assert nn.Linear in kinds
    assert nn.QuantizedLinear not in kinds
    monkeypatch.setattr(models, "UNPACKED_MOST", 0)
    packed, kinds = logits_and_kinds(tiny_model_path)
    assert nn.QuantizedLinear in kinds
    np.testing.assert_allclose(plain, packed, rtol=1e-4, atol=1e-4)


def test_the_quantisation_is_told_either_way(tiny_model_path):
    assert mlx_emotion.load(str(tiny_model_path)).quantization == "4-bit"
