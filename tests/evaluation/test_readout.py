"""Reading a text: projections by token, the command, and the check of it in the report."""

from __future__ import annotations

import json

import numpy as np
import pytest

import mlx_emotion
from mlx_emotion.cli import main
from mlx_emotion.errors import UsageError
from mlx_emotion.evaluation.probes import accuracy
from mlx_emotion.readout import PromptReader


@pytest.fixture(scope="module")
def model(tiny_model_path, pack_path):
    return mlx_emotion.load(str(tiny_model_path), vectors=pack_path)


def test_a_reading_is_the_projection_of_the_activations(model):
    """Worked out by hand: <h, v> / (s <v, v>) over all layers, less the mean of the neutral questions."""
    import mlx.core as mx

    text = "Who is it?"

    def by_hand(voice, words: str) -> np.ndarray:
        template = voice.loaded.template
        ids = template.encode(template.render([{"role": "user", "content": words}]))
        _, captured = voice.taps.forward(mx.array([ids]), None, None, True)
        h = np.stack([np.array(c[0].astype(mx.float32)) for c in captured], 1).reshape(len(ids), -1)
        flat = [voice.vectors[e].reshape(-1) for e in voice.vectors]
        return np.stack([h @ v / (2.0 * (v @ v)) for v in flat], 1)

    def work(voice):
        from mlx_emotion.readout import ZERO_PROMPTS

        found = PromptReader(voice).read(f"  {text} ")
        zero = np.mean([by_hand(voice, p)[-1] for p in ZERO_PROMPTS], axis=0)
        return found, by_hand(voice, text), zero

    found, whole, zero = model.run(work)
    assert found.names == ("fear", "joy", "sadness")
    assert "".join(found.tokens) == text
    np.testing.assert_allclose(found.last, whole[-1] - zero, rtol=1e-3, atol=1e-3)
    at = "<|im_start|>user\n"
    start = 1 + len(at) - len("<|im_start|>")  # a byte a token, but for the mark
    differences = found.values - whole[start : start + len(text)]
    np.testing.assert_allclose(differences, np.broadcast_to(differences[0], differences.shape), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("text", "says"), [(" ", "empty"), ("word " * 200, "context is 512"), ("\udcff", "UTF-8")])
def test_a_text_that_cannot_be_read(model, text, says):
    with pytest.raises(UsageError, match=says):
        model.run(lambda voice: PromptReader(voice).read(text))


def test_the_command(tiny_model_path, pack_path, capsys):
    options = ["--model", str(tiny_model_path), "--vectors", str(pack_path)]
    assert main(["readout", "Boo!", "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [t["token"] for t in found["tokens"]] == list("Boo!")
    assert set(found["mean"]) == set(found["last"]) == {"fear", "joy", "sadness"}
    values = [t["readings"]["fear"] for t in found["tokens"]]
    assert found["mean"]["fear"] == pytest.approx(np.mean(values), abs=1e-3)
    assert main(["readout", "Boo!", *options]) == 0
    assert "sadness" in capsys.readouterr().out
    assert main(["readout", "  ", *options]) == 2
    assert main(["readout", "Boo!", "--model", str(tiny_model_path)]) == 1
    assert "mlx-emotion extract" in capsys.readouterr().err


def test_accuracy_by_hand():
    def row(group: str, *values: float) -> dict:
        return {"group": group, "mean": list(values)}

    # The known neutral ones (every second) have mean 0 and deviation 1 for both emotions.
    neutral = [row("neutral", 1, 1), row("neutral", 0, 0), row("neutral", -1, -1), row("neutral", 2, 2)]
    emotional = [row("fear", 5, 1), row("fear", 1, 5), row("joy", 0, 1)]
    found = accuracy({"emotions": ["fear", "joy"], "questions": [*neutral, *emotional]}, "mean")
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["by_emotion"] == {"fear": 0.5, "joy": 1.0}
    # Highest readings 5, 5, 1 against the held-out neutral 0 and 2: five of six are above.
    assert found["separation"] == pytest.approx(5 / 6)
    assert accuracy({"emotions": ["fear"], "questions": emotional}, "mean")["accuracy"] is None


def test_separation_is_as_sure_as_the_fewer_questions_make_it():
    rng = np.random.default_rng(0)

    def width(asked: int, neutral: int) -> float:
        rows = [{"group": "neutral", "mean": [x, y]} for x, y in rng.standard_normal((2 * neutral, 2))]
        rows += [{"group": "fear", "mean": [x + 1, y]} for x, y in rng.standard_normal((asked, 2))]
        found = accuracy({"emotions": ["fear", "joy"], "questions": rows}, "mean")
        assert found["separation_low"] <= found["separation"] <= found["separation_high"]
        return found["separation_high"] - found["separation_low"]

    assert width(80, 4) > 2 * width(80, 80)
    assert width(4, 80) > 2 * width(80, 80)
