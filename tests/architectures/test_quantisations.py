"""One checkpoint in many quantisations, and with an adapter: each loads, steers, extracts and keeps its own pack."""

from __future__ import annotations

import json

import checkpoints
import numpy as np
import pytest

import mlx_emotion
from mlx_emotion.errors import ModelError, PackError
from mlx_emotion.model import check_pack
from mlx_emotion.models import fingerprint, identify
from mlx_emotion.steering import Row

QUERIES = {"fear": ["What is it?", "Who is there?"], "joy": ["How was it?"]}
RECIPES = {
    "bf16": ({"dtype": "bfloat16"}, "bfloat16"),
    **{
        f"{bits}-bit/{size}": ({"q_bits": bits, "q_group_size": size}, f"{bits}-bit")
        for bits in (3, 4, 6, 8)
        for size in (32, 64, 128)
    },
    "mxfp4": ({"q_mode": "mxfp4"}, "mxfp4"),
    "nvfp4": ({"q_mode": "nvfp4"}, "nvfp4"),
    **{
        name: ({"quant_predicate": name, "q_group_size": 64, "q_bits": 4}, "4-bit mixed")
        for name in ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
    },
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


def check_logits(voice, vectors):
    """Nothing added changes no bit, removal neither; something added acts and keeps the dtype."""
    import mlx.core as mx

    tokens = mx.array([[5, 60, 33, 80, 41]])

    def logits(dose):
        return voice.model(tokens, cache=voice.model.cache(Row.steered(dose)))

    quiet, loud = logits(None), logits(voice.taps.dose(np.float32(8) * vectors))
    voice.taps.remove()
    plain = voice.loaded.model(tokens)
    voice.taps.attach()
    assert mx.array_equal(quiet, plain).item()
    assert not mx.allclose(loud, plain, rtol=1e-2, atol=1e-2).item()
    assert loud.dtype == plain.dtype


def works(model):
    """Extract from the model and steer it with what came out; returns the pack."""
    pack = mlx_emotion.extract(model, queries=QUERIES, max_tokens=5)
    assert all(np.isfinite(pack[e]).all() and np.abs(pack[e]).sum(1).all() for e in QUERIES)
    assert np.isfinite(pack.activation_norm).all()
    model.use(pack)
    model.run(check_logits, pack["fear"])
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
    for name in RECIPES:
        identity, _ = identify(str(recipe(name)))
        if name == "4-bit/64":
            check_pack(path, identity, "attention", force=False)
        else:
            with pytest.raises(PackError, match=r"four\.safetensors is not for this model: .*fingerprint.*--force"):
                check_pack(path, identity, "attention", force=False)


@pytest.fixture(scope="module")
def adapter(recipe, tmp_path_factory):
    return checkpoints.write_adapter(recipe("4-bit/64"), tmp_path_factory.mktemp("adapter"))


@pytest.mark.parametrize("name", ["bf16", "4-bit/64", "8-bit/128", "mxfp4", "nvfp4", "mixed_3_6"])
def test_adapter(recipe, adapter, name):
    """With an adapter on top it is another model: steered and extracted as such, the plain one's pack is refused."""
    plain = mlx_emotion.load(str(recipe(name)))
    tuned = mlx_emotion.load(str(recipe(name)), adapter=str(adapter))
    try:
        assert plain.identity.fingerprint != tuned.identity.fingerprint
        pack = works(tuned)
        assert identify(str(recipe(name)), adapter=str(adapter))[0].fingerprint == tuned.identity.fingerprint
        with pytest.raises(PackError, match="fingerprint"):
            plain.use(pack)
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


@pytest.mark.parametrize("layers", [1, 3])
def test_config_that_counts_other_layers_than_the_weights(paper_model, tmp_path, layers):
    import shutil

    folder = shutil.copytree(paper_model("wide"), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with pytest.raises(ModelError, match=rf"odd.*num_hidden_layers {layers}.*2 layers"):
        mlx_emotion.load(str(folder))
