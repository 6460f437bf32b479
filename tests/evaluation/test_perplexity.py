"""Perplexity against a direct computation in another framework."""

from __future__ import annotations

import math

import pytest

from mlx_emotion.engine import shared
from mlx_emotion.evaluation.perplexity import perplexities
from mlx_emotion.models import load_model

TEXTS = ["Who is at the door? Nobody.", "a", "What now? " + "Well, well. " * 12, "It rains. Take a coat, then."]


def test_perplexity_equals_transformers(paper_model):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = paper_model("llama-3.1")
    loaded = shared().run(load_model, str(folder))
    found = dict(shared().stream(lambda: perplexities(loaded, TEXTS)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for i, text in enumerate(TEXTS):
        ids = tokenizer(text, return_tensors="pt").input_ids
        if ids.shape[1] < 2:
            assert found[i] is None
            continue
        with torch.no_grad():
            wanted = math.exp(model(ids, labels=ids).loss.item())
        assert found[i] == pytest.approx(wanted, rel=1e-3)
