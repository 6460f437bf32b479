"""Steering is right on every architecture of mlx-lm that a tiny model can be made of."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import architecture_checks as checks
import pytest
import tiny_models

from mlx_emotion.engine import shared
from mlx_emotion.errors import ModelError
from mlx_emotion.steering import Taps

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
PAPER = {"llama", "qwen", "qwen2", "gemma", "minicpm3"}
EXPERTS = {"mixtral", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"}
SLIDING = {"gemma2", "gemma3", "gpt_oss"}
RECURRENT = {"qwen3_next", "mamba2", "falcon_h1", "rwkv7", "lfm2"}
STREAMS = {"gemma4_text", "gemma3n"}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_path) -> Any:
    from mlx_lm.tokenizer_utils import load

    found = load(tiny_model_path)
    assert len(found) <= tiny_models.VOCABULARY
    return found


@pytest.fixture(scope="module", params=[n for n in tiny_models.ARCHITECTURES if n not in tiny_models.UNSTEERABLE])
def case(request, tokenizer) -> Any:
    """Each architecture in turn, tapped and with vectors; made once for all its tests."""
    made = shared().run(checks.Case, request.param, tokenizer)
    yield made
    shared().run(made.taps.remove)


def test_zero_is_identical(case):
    shared().run(checks.check_zero_is_identical, case)


def test_every_layer_acts(case):
    shared().run(checks.check_every_layer_acts, case)


def test_removal_is_exact(case):
    shared().run(checks.check_removal_is_exact, case)


def test_dtype_is_kept(case):
    shared().run(checks.check_dtype_is_kept, case)


def test_batch_equals_single(case):
    shared().run(checks.check_batch_equals_single, case)


@pytest.mark.parametrize("history", ["keep", "refeel"])
def test_history(case, history):
    shared().run(checks.check_history, case, history)


def test_page_is_current(case):
    """`docs/models.md` says of the architecture what is so; `scripts/models_page.py` writes it anew."""
    assert shared().run(checks.row, case) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", tiny_models.UNSTEERABLE)
def test_what_cannot_be_steered_says_why(name):
    assert "never reached" in shared().run(checks.why_not, name)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv7"])
def test_without_attention_the_residual_site_is_offered(name):
    with pytest.raises(ModelError, match=r"no attention layers.*--site residual"):
        shared().run(lambda: Taps(tiny_models.build(name), "attention"))


@pytest.mark.parametrize("name", ["gemma3n", "deepseek_v41", "gemma4_text", "qwen3_next", "falcon_h1"])
def test_residual_site(name, tokenizer):
    """Stacked streams, tuples and hybrid layers can be steered at the layers' output too."""

    def work() -> None:
        case = checks.Case(name, tokenizer, site="residual")
        checks.check_zero_is_identical(case)
        checks.check_every_layer_acts(case)
        checks.check_removal_is_exact(case)
        checks.check_batch_equals_single(case)

    shared().run(work)


def test_linear_attention_is_not_attention():
    """A hybrid model's softmax attention is tapped, its recurrent layers are not."""

    def tapped(name: str) -> tuple[int, ...]:
        return Taps(tiny_models.build(name), "attention").layers

    found = {name: shared().run(tapped, name) for name in ("qwen3_next", "kimi_linear", "plamo2", "nemotron_h", "lfm2")}
    assert found == {
        "qwen3_next": (3,),
        "kimi_linear": (1, 3),
        "plamo2": (1, 3),
        "nemotron_h": (1, 4),
        "lfm2": (1, 3),
    }


def test_enough_architectures():
    from mlx_lm import models

    steerable = set(tiny_models.ARCHITECTURES) - set(tiny_models.UNSTEERABLE)
    assert len(steerable) >= 40
    assert steerable >= PAPER | EXPERTS | SLIDING | RECURRENT | STREAMS
    files = {m.name for m in pkgutil.iter_modules(models.__path__)}
    assert set(tiny_models.ARCHITECTURES) - files == {"baichuan", "baichuan-alibi"}
    silent = files - set(tiny_models.ARCHITECTURES) - set(tiny_models.UNTESTED)
    helpers = {n for n in silent if not hasattr(importlib.import_module(f"mlx_lm.models.{n}"), "Model")}
    assert silent == helpers, f"mlx-lm has model files that neither table knows: {sorted(silent - helpers)}"
