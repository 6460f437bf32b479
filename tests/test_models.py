"""Loading: what is done with the weights."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_emotion
from mlx_emotion import models
from mlx_emotion.cli import main
from mlx_emotion.engine import shared
from tests.conftest import make_tokenizer

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


def test_a_model_without_attention_says_which_site_to_take(tmp_path, capsys):
    from mlx.utils import tree_flatten
    from mlx_lm.models.mamba import Model, ModelArgs

    config = {
        "model_type": "mamba", "vocab_size": make_tokenizer(tmp_path), "hidden_size": 32, "intermediate_size": 64,
        "state_size": 4, "num_hidden_layers": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True,
        "time_step_rank": 4,
    }  # fmt: skip

    def write():
        weights = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters()))
        mx.save_safetensors(str(tmp_path / "model.safetensors"), weights, {"format": "mlx"})

    shared().run(write)
    (tmp_path / "config.json").write_text(json.dumps(config))
    ask = ["generate", "hi", "--model", str(tmp_path), "--max-tokens", "3"]
    assert main([*ask, "--site", "attention"]) == 1
    err = capsys.readouterr().err
    assert err == "mlx-emotion: this model has no attention layers; use --site residual\n"
    assert main([*ask, "--site", "residual"]) == 0


def test_the_quantisation_is_told_either_way(tiny_model_path):
    assert mlx_emotion.load(str(tiny_model_path)).quantization == "4-bit"


def test_a_download_tells_its_bytes_and_paints_nothing(tmp_path, monkeypatch, capsys):
    told, folder = [], tmp_path / "snapshots" / "abc"

    def snapshot_download(name, tqdm_class=None, local_files_only=False, **_):
        if local_files_only:
            raise FileNotFoundError(name)
        came = tqdm_class(desc="Downloading", total=0, unit="B", disable=False, name="hub.came")
        written = tqdm_class(desc="Reconstructing", total=0, unit="B", disable=False, name="hub.written")
        with tqdm_class(desc="Fetching 2 files", total=2, disable=False) as files:
            for size in (10, 90):
                came.total += size
                written.total += size
                came.update(size // 2)
                written.update(size)
                files.update(1)
        came.total = came.n
        written.set_description("complete")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found = models.resolve("owner/name", progress=lambda done, total: told.append((done, total)))
    assert found == ("owner/name", "abc", folder)
    assert told == [(5, 10), (10, 10), (50, 100), (100, 100)]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 64, "n_positions": 128}, 64),
        ({"n_positions": 128}, 128),
        ({"seq_length": 128}, 128),
        ({"model_max_length": 128}, 128),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"max_position_embeddings": "many"}, None),
    ],
)
def test_the_context_is_known_by_many_names(config, context):
    assert models.LoadedModel(None, None, config, None, None, None).context == context
