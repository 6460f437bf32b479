"""Calibration's criterion on replies that are made up, and what it keeps where a pack cannot be written."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import mlx_emotion
from mlx_emotion import calibration
from mlx_emotion.calibration import LARGEST, SMALLEST, Calibration
from mlx_emotion.errors import MLXEmotionError, PackError
from mlx_emotion.extraction import Plan
from mlx_emotion.files import extraction_folder
from mlx_emotion.library import make_pack
from mlx_emotion.vectors import EmotionVectors

FINE = 2 ** (1 / 2**calibration.STEPS)
PROMPTS = 8


class Scripted(Calibration):
    """``nll``, ``empty`` (how many replies) and ``distinct`` by scale; scale 0 is the model asked for the emotion."""

    def __init__(self, nll=lambda s: 0.0, empty=lambda s: 0, distinct=lambda s: True):
        self.nll, self.empty, self.distinct = nll, empty, distinct
        self.pack = {"fear": np.ones((1, 1), np.float32)}
        self.plain, self.tried = [[0]] * PROMPTS, []
        loaded = SimpleNamespace(identity=SimpleNamespace(id="it"), tokenizer=SimpleNamespace(has_thinking=True))
        self.voice = SimpleNamespace(loaded=loaded)

    def asked(self, name):
        return [[1]] * PROMPTS

    def generate(self, prompts, vector):
        scale = 0.0 if vector is None else float(vector[0, 0])
        self.tried.append(scale)
        reply = list(range(9)) if self.distinct(scale) else [5] * 9
        return [[] if i < self.empty(scale) else reply for i in range(PROMPTS)]

    def _likelihood(self, prompts, replies):
        assert all(replies)
        return np.full(len(replies), self.nll(self.tried[-1]))


@pytest.mark.parametrize("wanted", [0.004, 0.06, 0.4, 0.9, 1.0, 1.3, 5.0, 30.0])
def test_the_edge_is_found(wanted):
    for script in (
        Scripted(nll=lambda s: calibration.MARGIN * min(s / wanted, 2)),
        Scripted(distinct=lambda s: s <= wanted),
        Scripted(empty=lambda s: 1 + (s > wanted)),
    ):
        found = script.scale("fear")
        assert wanted / FINE * 0.999 <= found <= wanted * 1.001
        assert any(found == pytest.approx(tried, rel=1e-6) for tried in script.tried)


def test_fluent_at_every_scale():
    assert Scripted().scale("fear") == LARGEST
    assert Scripted(empty=lambda s: 3).scale("fear") == LARGEST


def test_fluent_at_none():
    script = Scripted(nll=lambda s: 9.0 if s else 0.0)
    assert script.scale("fear") == SMALLEST
    assert Scripted(empty=lambda s: PROMPTS if s else 1).scale("fear") == SMALLEST


@pytest.mark.parametrize("empty", [PROMPTS, PROMPTS // 2 + 1])
def test_a_model_that_says_nothing_is_refused(empty):
    script = Scripted(empty=lambda s: empty)
    with pytest.raises(MLXEmotionError, match=f"it gave {empty} of 8 empty replies when asked for fear.* thinks"):
        script.scale("fear")
    assert script.tried == [0.0]


def test_likelihood_is_that_of_each_token_after_those_before_it(tiny_model_path):
    def work(voice):
        import mlx.core as mx

        prompts, replies = [[3, 4, 5], [6], [7, 8]], [[9, 10], [11, 12, 13, 14], [15]]
        script = Calibration.__new__(Calibration)
        script.voice = voice
        found = script._likelihood(prompts, replies)
        for prompt, reply, told in zip(prompts, replies, found, strict=True):
            losses = []
            for n, token in enumerate(reply):
                logits = voice.taps.forward(mx.array([[*prompt, *reply[:n]]]), None, None, False)[0][0, -1]
                losses.append(float(mx.logsumexp(logits) - logits[token]))
            assert told == pytest.approx(np.mean(losses), rel=1e-4)
        # Of two settings the better counts, for each reply.
        settings = [[[3, 4, 5], [6, 6], [7, 8]], [[3, 3], [6], [8, 8]]]
        both = [script._likelihood(s, replies) for s in settings]
        assert script.fluency(replies, settings).nll == pytest.approx(np.minimum(*both).mean(), rel=1e-4)

    mlx_emotion.load(str(tiny_model_path)).run(work)


@pytest.fixture
def model(tiny_model_path, home, monkeypatch):
    monkeypatch.setattr(Calibration, "scale", lambda self, name: self.measured.append(name) or 2.0)
    monkeypatch.setattr(Calibration, "measured", [], raising=False)
    return mlx_emotion.load(str(tiny_model_path))


def plan():
    return Plan.make(queries={"fear": ["who is there"], "joy": ["we won"]}, max_tokens=4)


def kept():
    return list(extraction_folder().glob("calibration-*"))


def test_a_pack_that_cannot_be_written_loses_no_scale(model, monkeypatch):
    save = EmotionVectors.save

    def full(pack, path):
        if pack.calibrated:
            raise PackError(f"cannot write {path}: No space left on device")
        return save(pack, path)

    monkeypatch.setattr(EmotionVectors, "save", full)
    with pytest.raises(PackError, match="No space left"):
        make_pack(model, plan=plan())
    assert Calibration.measured == ["fear", "joy", "base"]
    assert len(kept()) == 1
    monkeypatch.setattr(EmotionVectors, "save", save)
    assert make_pack(model, plan=plan()).calibrated
    assert len(Calibration.measured) == 3
    assert kept() == []


def test_a_full_disk_is_one_line_and_what_was_found_stays(model, monkeypatch):
    replace = calibration.Path.replace

    def full(path, target):
        if path.name.startswith(".calibration-") and len(Calibration.measured) == 2:
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(calibration.Path, "replace", full)
    with pytest.raises(MLXEmotionError, match=r"cannot write .*calibration-.*: No space left on device"):
        make_pack(model, plan=plan())
    (path,) = kept()
    assert list(json.loads(path.read_text()).values()) == [2.0]
    monkeypatch.setattr(calibration.Path, "replace", replace)
    make_pack(model, plan=plan())
    assert Calibration.measured == ["fear", "joy", "joy", "base"]
