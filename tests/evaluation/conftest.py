"""A tiny model with a made-up pack, for the mechanics of an evaluation; tiny classifiers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlx_emotion.models import identify
from mlx_emotion.vectors import EmotionVectors, PackInfo

EMOTIONS = ("fear", "joy", "sadness")


@pytest.fixture(scope="session")
def pack_path(tiny_model_path, tmp_path_factory) -> Path:
    """A calibrated pack of random vectors for the tiny model."""
    identity, _ = identify(str(tiny_model_path))
    rng = np.random.default_rng(0)
    vectors = {e: rng.normal(0, 0.05, (identity.layers, identity.width)) for e in EMOTIONS}
    entries = {e: {"instructions": [f"Answer with {e}."], "count": 1, "scale": 2.0} for e in EMOTIONS}
    info = PackInfo(identity, "attention", entries, base_scale=2.0)
    return EmotionVectors(vectors, info).save(tmp_path_factory.mktemp("packs") / "tiny.safetensors")


@pytest.fixture(scope="session")
def queries_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("queries") / "queries.json"
    fear = ["Who is at the door?", "What was that noise in the cellar?"]
    path.write_text(json.dumps({"fear": fear, "joy": ["You won the prize!"], "neutral": ["Which bus is it?"]}))
    return path


def _word_tokenizer(folder: Path, pad: str, specials: tuple[str, ...]) -> int:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate([*specials, *alphabet])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token=pad, model_max_length=128
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


@pytest.fixture(scope="session")
def bart_path(tmp_path_factory) -> Path:
    """A random BART for inference, with the labels of facebook/bart-large-mnli."""
    torch = pytest.importorskip("torch")
    from transformers import BartConfig, BartForSequenceClassification

    folder = tmp_path_factory.mktemp("classifiers") / "tiny-bart"
    size = _word_tokenizer(folder, "<pad>", ("<s>", "<pad>", "</s>"))
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=256,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, init_std=0.5,
        id2label={0: "contradiction", 1: "neutral", 2: "entailment"},
        label2id={"contradiction": 0, "neutral": 1, "entailment": 2},
    )  # fmt: skip
    BartForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


def make_roberta(folder: Path, labels: list[str]) -> Path:
    torch = pytest.importorskip("torch")
    from transformers import RobertaConfig, RobertaForSequenceClassification

    size = _word_tokenizer(folder, "<pad>", ("<s>", "<pad>", "</s>"))
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=256, pad_token_id=1, bos_token_id=0, eos_token_id=2, initializer_range=1.0,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    RobertaForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def roberta_path(tmp_path_factory) -> Path:
    """A random RoBERTa with a few GoEmotions labels."""
    labels = ["admiration", "anger", "fear", "joy", "neutral", "sadness"]
    return make_roberta(tmp_path_factory.mktemp("classifiers") / "tiny-roberta", labels)
