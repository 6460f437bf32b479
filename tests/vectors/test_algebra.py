"""Packs side by side and put together."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from random_packs import IDENTITY, make_pack

from mlx_emotion.errors import PackError
from mlx_emotion.vectors import EmotionVectors
from mlx_emotion.vectors.algebra import diff, likeness, merge


def test_a_pack_does_not_differ_from_itself():
    found = diff(make_pack(), make_pack(created="later"))
    assert found.metadata == ()
    assert found.only_a == found.only_b == ()
    for like in found.common.values():
        assert like.cosine == pytest.approx(1)
        assert like.worst_cosine == pytest.approx(1)
        assert like.norms[0] == like.norms[1]


def test_every_difference_is_told():
    a = make_pack("joy", "fear")
    b = make_pack("joy", "calm", site="residual", seed=1, model=dataclasses.replace(IDENTITY, fingerprint="e" * 32))
    b.info.emotions["joy"]["scale"] = 3.0
    found = diff(a, b)
    assert found.metadata == (
        ("emotions.joy.scale", 1.5, 3.0),
        ("model.fingerprint", "f" * 32, "e" * 32),
        ("site", "attention", "residual"),
    )
    assert (found.only_a, found.only_b) == (("fear",), ("calm",))
    assert list(found.common) == ["joy"]


def test_packs_of_different_shape_have_no_cosine():
    found = diff(make_pack(), make_pack(model=dataclasses.replace(IDENTITY, layers=5)))
    assert found.common == {}
    assert ("model.layers", 4, 5) in found.metadata


def test_the_calibrated_one_of_two_equal_vectors_counts():
    raw, calibrated, other = make_pack("joy"), make_pack("joy"), make_pack("joy")
    raw.info.emotions["joy"]["scale"] = None
    other.info.emotions["joy"]["scale"] = 3.0
    for packs in ([raw, calibrated], [calibrated, raw]):
        assert merge(packs).info.emotions["joy"]["scale"] == 1.5
    with pytest.raises(PackError, match="both have joy, and not the same"):
        merge([calibrated, other])
    assert merge([calibrated, other], "last").info.emotions["joy"]["scale"] == 3.0


def test_likeness_by_layer():
    a = np.ones((3, 4), np.float32)
    b = a.copy()
    b[1] *= -2
    like = likeness(a, b)
    assert (like.worst_layer, like.worst_cosine) == (1, pytest.approx(-1))
    assert like.norms == (pytest.approx(12**0.5), pytest.approx(24**0.5))
    a[2] = b[2] = 0  # a layer without a tap
    assert likeness(a, a).worst_cosine == pytest.approx(1)
    b[0] = 0
    assert likeness(a, b).worst_cosine == pytest.approx(-1)


def test_merge_takes_all_in_order_and_keeps_scales():
    a, b = make_pack("joy", "fear", base_scale=2.0), make_pack("nostalgia", seed=1, base_scale=2.0, method="pca")
    b.info.emotions["nostalgia"] |= {"scale": 4.0, "valence": 0.3, "arousal": -0.4}
    c = merge([a, b])
    assert list(c) == ["joy", "fear", "nostalgia"]
    assert np.array_equal(c["joy"], a["joy"])
    assert np.array_equal(c["nostalgia"], b["nostalgia"])
    assert (c.scale("joy"), c.scale("nostalgia"), c.scale("base")) == (1.5, 4.0, 2.0)
    assert c.info.method == "mean, pca"
    assert c.info.catalogue["nostalgia"].valence == pytest.approx(0.3)
    assert a.info.method == "mean"  # the packs themselves are left as they were


def test_merge_keeps_the_scale_of_a_base_vector_that_stays_the_same():
    mine = make_pack("nostalgia", seed=1, base_scale=0.4)
    basic = make_pack(base_scale=2.0)
    assert [merge(packs).scale("base") for packs in ([basic, mine], [mine, basic])] == [2.0, 2.0]
    assert merge([make_pack("joy", base_scale=2.0), make_pack("fear", seed=1, base_scale=1.0)]).info.base_scale is None


def test_merge_of_one_emotion_twice():
    a, b = make_pack("joy", "fear"), make_pack("calm", "joy", seed=1, base_scale=1.0)
    b.info.emotions["joy"]["scale"] = 9.0
    a.samples["joy"] = np.ones((2, 4, 16), np.float16)
    with pytest.raises(PackError, match=r"both have joy, and not the same.*--prefer"):
        merge([a, b])
    first, last = merge([a, b], "first"), merge([a, b], "last")
    assert np.array_equal(first["joy"], a["joy"])
    assert np.array_equal(last["joy"], b["joy"])
    assert (first.scale("joy"), last.scale("joy")) == (1.5, 9.0)
    assert "joy" in first.samples
    assert "joy" not in last.samples  # they are not of the vector that was taken
    assert list(first) == list(last) == ["joy", "fear", "calm"]
    assert first.info.base_scale is None


def test_the_same_emotion_twice_is_no_conflict():
    assert list(merge([make_pack("joy", "fear"), make_pack("joy", "fear")])) == ["joy", "fear"]


@pytest.mark.parametrize(
    ("change", "told"),
    [({"fingerprint": "e" * 32}, "fingerprint"), ({"layers": 5}, "layers 4 and 5"), ({"width": 8}, "width 16 and 8")],
)
def test_packs_of_different_models_do_not_merge(change, told):
    with pytest.raises(PackError, match=told):
        merge([make_pack("joy"), make_pack("fear", model=dataclasses.replace(IDENTITY, **change))])


def test_sites_do_not_merge():
    with pytest.raises(PackError, match="site attention and residual"):
        merge([make_pack("joy"), make_pack("fear", site="residual")])


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlx_emotion", "vectors", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_the_commands(tiny_model_path, tmp_path):
    """Import for a real model, merge, diff and export, as a user would."""
    for seed, emotion in enumerate(("joy", "fear")):
        layers = np.random.default_rng(seed).standard_normal((3, 64))
        (tmp_path / f"x_{emotion}.json").write_text(json.dumps({str(n): [list(v)] for n, v in enumerate(layers)}))
        made = run(
            "import", tmp_path / f"x_{emotion}.json", "--model", tiny_model_path, "-o", tmp_path / f"{emotion}.pack"
        )
        assert (made.returncode, made.stdout.strip()) == (0, str(tmp_path / f"{emotion}.pack")), made.stderr
        assert "intensity 1.0 is scale 1" in made.stderr
    both = tmp_path / "both.safetensors"
    assert run("merge", tmp_path / "joy.pack", tmp_path / "fear.pack", "-o", both).returncode == 0
    assert set(EmotionVectors.load(both)) == {"joy", "fear"}
    found = json.loads(run("diff", both, tmp_path / "joy.pack", "--json").stdout)
    assert found["only_a"] == ["fear"]
    assert found["common"]["joy"]["cosine"] == pytest.approx(1)
    assert "only in A: fear" in run("diff", both, tmp_path / "joy.pack").stdout
    out = run("export", both, "--format", "json", "--output", tmp_path / "out.json")
    assert set(out.stdout.split()) == {str(tmp_path / "out_joy.json"), str(tmp_path / "out_fear.json")}
    refused = run("export", both, "--format", "gguf", "--output", tmp_path / "out.gguf")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "residual" in refused.stderr
