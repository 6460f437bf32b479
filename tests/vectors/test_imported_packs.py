"""An imported pack's way through the commands: imported, felt at scale 1, calibrated, felt at the scale found."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from mlx_emotion import calibration
from mlx_emotion.cli import main
from mlx_emotion.models import identify
from mlx_emotion.vectors import EmotionVectors, PackInfo
from mlx_emotion.vectors.travel import export_files

SIZES = {"joy": 0.002, "fear": 5.0}
"""How long the vectors are, so that one takes a large scale and the other a small one."""


@pytest.fixture
def quick(monkeypatch):
    """A calibration of few and short replies."""
    monkeypatch.setattr(calibration, "PROMPTS", 3)
    monkeypatch.setattr(calibration, "MAX_TOKENS", 8)
    monkeypatch.setattr(calibration, "STEPS", 2)


@pytest.fixture
def run(capsys, monkeypatch):
    """``run(*arguments, lines="")``: what the command printed; it has to end well."""

    def call(*arguments, lines=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        status = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    return call


@pytest.fixture
def files(tiny_model_path, tmp_path):
    """``files(form)``: a folder with vectors for the tiny model as others have them, without calibration."""
    identity, _ = identify(str(tiny_model_path))
    random = np.random.default_rng(0)
    shape = (identity.layers, identity.width)
    vectors = {n: np.float32(size) * random.standard_normal(shape, np.float32) for n, size in SIZES.items()}
    entries = {n: {"instructions": [], "count": 0, "scale": None} for n in vectors}

    def make(form):
        folder = tmp_path / form
        folder.mkdir()
        pack = EmotionVectors(vectors, PackInfo(identity, "residual", dict(entries), method="imported"))
        export_files(pack, form, folder / f"tiny.{form}")
        return folder

    return make


@pytest.mark.parametrize(("form", "site"), [("json", "attention"), ("gguf", "residual")])
def test_from_import_to_chat(form, site, files, run, quick, tiny_model_path, tmp_path):
    pack = tmp_path / "imported.safetensors"
    model = ("--model", tiny_model_path)
    run("vectors", "import", files(form), *model, "--output", pack)
    before = EmotionVectors.load(pack)
    assert (before.info.site, before.calibrated) == (site, False)

    def said(intensity):
        feeling = f"fear:{intensity}"
        options = (*model, "--vectors", pack, "--emotion", feeling, "--max-tokens", "4", "--seed", "1", "--no-guard")
        reply = json.loads(run("generate", "hello", *options, "--json"))
        chat = run("chat", *options, lines="hello\n")
        assert chat.strip() == "".join(c for c in reply["text"] if c.isprintable()).strip()
        return reply["scale"]["fear"]

    assert said(1) == 1.0
    assert said(0.5) == 0.5
    printed = run("calibrate", pack, *model)
    after = EmotionVectors.load(pack)
    assert after.calibrated
    assert after.info.calibration["method"] == "likelihood"
    assert all(np.array_equal(after[e], before[e]) for e in SIZES)
    assert 0 < after.scale("fear") < 1 < after.scale("joy")
    for name in (*SIZES, "base"):
        assert f"{name:12}{after.scale(name):g}" in printed.splitlines()
    assert said(1) == pytest.approx(after.scale("fear"))
    assert said(0.5) == pytest.approx(after.scale("fear") / 2)


def test_one_that_is_imported_where_packs_are_is_found(files, run, quick, tiny_model_path):
    """Without --output it is the model's own pack, for every command."""
    model = ("--model", tiny_model_path)
    path = run("vectors", "import", files("json") / "tiny_fear.json", *model).strip()
    options = ("--emotion", "fear", "--max-tokens", "2", "--seed", "1", "--json")
    assert json.loads(run("generate", "hello", *model, *options))["scale"] == {"fear": 1.0}
    run("calibrate", *model)
    scale = EmotionVectors.load(path).scale("fear")
    assert scale < 1
    assert json.loads(run("generate", "hello", *model, *options))["scale"] == {"fear": pytest.approx(scale)}
