"""One checkpoint in many quantisations, and with an adapter: each loads, steers, extracts and keeps its own pack."""

from __future__ import annotations

import json

import checkpoints
import numpy as np
import pytest

import mlx_emotion
from mlx_emotion.engine import shared
from mlx_emotion.errors import ModelError, PackError

QUERIES = {"fear": ["What is it?", "Who is there?"], "joy": ["How was it?"]}
RECIPES = {
    "bf16": ({"dtype": "bfloat16"}, "bfloat16"),
    "3-bit/64": ({"q_bits": 3, "q_group_size": 64}, "3-bit"),
    "4-bit/32": ({"q_bits": 4, "q_group_size": 32}, "4-bit"),
    "4-bit/64": ({"q_bits": 4, "q_group_size": 64}, "4-bit"),
    "4-bit/128": ({"q_bits": 4, "q_group_size": 128}, "4-bit"),
    "6-bit/128": ({"q_bits": 6, "q_group_size": 128}, "6-bit"),
    "8-bit/32": ({"q_bits": 8, "q_group_size": 32}, "8-bit"),
    "mxfp4": ({"q_mode": "mxfp4"}, "mxfp4"),
    "nvfp4": ({"q_mode": "nvfp4"}, "nvfp4"),
    "mixed_3_6": ({"quant_predicate": "mixed_3_6", "q_group_size": 64, "q_bits": 4}, "4-bit mixed"),
}


@pytest.fixture(scope="module")
def recipe(paper_model, tmp_path_factory):
    """``recipe(name)``: the folder of the checkpoint in that quantisation."""
    made = {}

    def make(name):
        if name not in made:
            options, _ = RECIPES[name]
            folder = tmp_path_factory.mktemp("quantised") / name.replace("/", "-")
            made[name] = checkpoints.convert(paper_model("wide"), folder, quantize=name != "bf16", **options)
        return made[name]

    return make


def works(model):
    """Extract from the model and steer it with what came out; returns the pack."""
    pack = mlx_emotion.extract(model, queries=QUERIES, max_tokens=5)
    assert all(np.isfinite(pack[e]).all() and np.abs(pack[e]).sum(1).all() for e in QUERIES)
    model.use(pack)
    texts = {model.generate("Hi", feeling=f, scale=30, temperature=0, max_tokens=8).text for f in (None, "fear", "joy")}
    assert len(texts) > 1
    return pack


@pytest.mark.parametrize("name", RECIPES)
def test_quantisation(recipe, name):
    model = mlx_emotion.load(str(recipe(name)))
    try:
        assert model.quantization == RECIPES[name][1]
        works(model)
    finally:
        model.close()


def test_each_has_a_fingerprint_of_its_own(recipe):
    from mlx_emotion.models import fingerprint

    assert len({fingerprint(recipe(name)) for name in RECIPES}) == len(RECIPES)


def test_a_pack_of_another_quantisation_is_refused(recipe, tmp_path):
    four, eight = (mlx_emotion.load(str(recipe(name))) for name in ("4-bit/64", "8-bit/32"))
    try:
        path = works(four).save(tmp_path / "four.safetensors")
        with pytest.raises(PackError, match=r"not for this model: .*fingerprint.*--force"):
            eight.use(path)
        eight.use(path, force=True)
        assert eight.emotions == list(QUERIES)
    finally:
        four.close()
        eight.close()


@pytest.fixture(scope="module")
def adapter(recipe, tmp_path_factory):
    """A LoRA adapter, as mlx-lm's trainer leaves it, with weights that matter."""
    folder = tmp_path_factory.mktemp("adapter")
    settings = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0},
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))

    def work():
        import mlx.core as mx
        from mlx.utils import tree_flatten
        from mlx_lm.tuner.utils import linear_to_lora_layers
        from mlx_lm.utils import load_model

        model, _ = load_model(recipe("4-bit/64"))
        model.freeze()
        linear_to_lora_layers(model, settings["num_layers"], settings["lora_parameters"])
        mx.random.seed(3)
        weights = {k: 0.1 * mx.random.normal(v.shape) for k, v in tree_flatten(model.trainable_parameters())}
        mx.save_safetensors(str(folder / "adapters.safetensors"), weights)

    shared().run(work)
    return folder


def test_adapter(recipe, adapter):
    """With an adapter on top it is another model: steered and extracted as such, the plain one's pack is refused."""
    plain = mlx_emotion.load(str(recipe("4-bit/64")))
    tuned = mlx_emotion.load(str(recipe("4-bit/64")), adapter=str(adapter))
    try:
        assert plain.identity.fingerprint != tuned.identity.fingerprint
        with pytest.raises(PackError, match="fingerprint"):
            tuned.use(works(plain))
        works(tuned)
        plain.use(None)
        tuned.use(None)
        said = [m.generate("Hi", temperature=0, max_tokens=8).text for m in (plain, tuned)]
        assert said[0] != said[1]
    finally:
        plain.close()
        tuned.close()


def test_adapter_that_is_not_there(recipe, tmp_path):
    with pytest.raises(ModelError, match="adapter path does not exist"):
        mlx_emotion.load(str(recipe("4-bit/64")), adapter=str(tmp_path / "none"))


def test_unknown_model_type(paper_model, tmp_path):
    import shutil

    folder = shutil.copytree(paper_model("wide"), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    with pytest.raises(ModelError, match=r"odd.*unheard_of not supported"):
        mlx_emotion.load(str(folder))


@pytest.mark.parametrize("layers", [3, 5])
def test_config_that_counts_other_layers_than_the_weights(paper_model, tmp_path, layers):
    import shutil

    folder = shutil.copytree(paper_model("wide"), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with pytest.raises(ModelError, match=rf"odd.*num_hidden_layers {layers}.*4 layers"):
        mlx_emotion.load(str(folder))
