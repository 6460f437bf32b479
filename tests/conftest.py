"""Shared fixtures: a home of its own and no network for every test, a tiny random model, the embedded one."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it once, when it is imported

import mlx_emotion

LOCAL = ("127.0.0.1", "localhost", "::1")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """The user's files go to a new folder, and nothing leaves the machine."""
    folder = tmp_path / "home"
    monkeypatch.setenv("MLX_EMOTION_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in LOCAL:
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    return folder


def make_tokenizer(folder: Path) -> int:
    """Write a byte-level tokenizer with ChatML marks and template; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet])}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    from mlx_emotion.templates import CHATML

    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def make_llama(folder: Path, bits: int | None = 4, seed: int = 0, width: int = 64, layers: int = 3) -> Path:
    """A tiny random llama checkpoint in mlx-lm's layout, as its own converter writes it."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.models.llama import Model, ModelArgs
    from mlx_lm.utils import quantize_model

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": 2 * width,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "vocab_size": make_tokenizer(folder),
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }

    def work() -> None:
        nonlocal config
        mx.random.seed(seed)
        model = Model(ModelArgs.from_dict(config))
        larger = [(k, v * 3 if v.ndim == 2 else v) for k, v in tree_flatten(model.parameters())]
        model.update(tree_unflatten(larger))
        if bits:
            model, config = quantize_model(model, config, group_size=32, bits=bits)
        weights = dict(tree_flatten(model.parameters()))
        mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
        (folder / "config.json").write_text(json.dumps(config))

    from mlx_emotion.engine import shared

    shared().run(work)
    return folder


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory) -> Path:
    """A random 3-layer, 64-wide llama, 4-bit, with a byte tokenizer: for mechanics."""
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def embedded() -> mlx_emotion.Model:
    """The model that ships, with its pack: for behaviour."""
    return mlx_emotion.load()


@pytest.fixture(scope="session")
def paper_model(tmp_path_factory):
    """``paper_model(name)``: the folder of a tiny checkpoint of that model (`checkpoints.ALL`)."""
    import checkpoints

    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            if checkpoints.ALL[name].kind:
                pytest.importorskip("torch")
            made[name] = checkpoints.write(name, tmp_path_factory.mktemp("paper") / name)
        return made[name]

    return make
