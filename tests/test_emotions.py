"""Feelings: what a user may write, and the circumplex."""

import math
import re

import pytest

from mlx_emotion.emotions import BASIC, CATALOGUE, Feeling, instructions
from mlx_emotion.errors import UsageError


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("fear", {"fear": 1.0}),
        ("fear:0.5", {"fear": 0.5}),
        (" fear:0.8 , joy:0.2 ", {"fear": 0.8, "joy": 0.2}),
        ("FEAR", {"fear": 1.0}),
        ("base", {"base": 1.0}),
        ("base:1.5", {"base": 1.5}),
        ("neutral", {}),
        ("Neutral", {}),
        ({"NEUTRAL": 1}, {}),
        ({"Fear": 0.5}, {"fear": 0.5}),
        ("fear:0", {}),
    ],
)
def test_specs(spec, weights):
    assert dict(Feeling.of(spec).weights) == pytest.approx(weights)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("feer", "did you mean 'fear'"),
        ("afraid", "did you mean 'fear'"),
        ("fear:x", "cannot read 'fear:x'"),
        ("fear:1.6", "wanted 0 to 1.5"),
        ("fear:-1", "wanted 0 to 1.5"),
        ("fear:1e999", "wanted 0 to 1.5"),
        ("fear,fear", "given twice"),
        ("fear,neutral", "neutral cannot be mixed"),
        ("fear,Neutral", "neutral cannot be mixed"),
        ({"neutral": 1, "fear": 0.5}, "neutral cannot be mixed"),
        ({"fear": 1, "FEAR": 0.5}, "fear is given twice"),
        ("", "empty feeling"),
        ("fear,,joy", "cannot read ''"),
        ("valence=2", "wanted -1 to 1"),
        ("valence=nan", "wanted -1 to 1"),
        ("valence=0.1,valence=0.2", "cannot read"),
        ("valence=x", "'x' is not a number"),
        ("valence=0.1,fear", "cannot read 'fear'"),
    ],
)
def test_wrong_specs_say_what_is_wrong(spec, says):
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        Feeling.of(spec)
    assert "\n" not in str(caught.value)


def test_an_emotion_the_pack_lacks_is_unknown():
    with pytest.raises(UsageError, match=r"unknown emotion 'joy'.*known are fear"):
        Feeling.of("joy", ["fear"])


def test_a_point_is_the_weighted_sum_of_its_neighbours():
    for degrees in range(0, 360, 7):
        v, a = 0.6 * math.cos(math.radians(degrees)), 0.6 * math.sin(math.radians(degrees))
        feeling = Feeling.at(v, a)
        assert 1 <= len(feeling.weights) <= 2
        assert feeling.point == pytest.approx((v, a), abs=1e-6)


def test_a_point_at_an_emotion_is_that_emotion():
    for e in CATALOGUE.values():
        assert dict(Feeling.at(e.valence, e.arousal).weights) == pytest.approx({e.name: 1.0}, abs=1e-6)


def test_the_middle_is_neutral_and_the_outside_is_the_rim():
    assert Feeling.at(0, 0).neutral
    assert Feeling.at(1, 1).point == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))


def test_a_point_with_few_emotions_known():
    assert dict(Feeling.at(-1, 0, ["sadness"]).weights) == pytest.approx({"sadness": math.cos(math.radians(27.5))})
    assert Feeling.at(1, 0, ["sadness"]).neutral
    with pytest.raises(UsageError, match=r"no|none"):
        Feeling.at(1, 0, ["nostalgia"])


def test_feeling_text_reads_back():
    for spec in ("fear", "fear:0.8,joy:0.2", "neutral", "base:0.5"):
        assert str(Feeling.of(spec)) == spec
        assert Feeling.of(str(Feeling.of(spec))) == Feeling.of(spec)


def test_the_basic_five_and_their_instructions():
    assert BASIC == ("anger", "disgust", "fear", "joy", "sadness")
    texts = instructions(CATALOGUE["fear"])
    assert len(set(texts)) == len(texts) >= 3
    assert all("fear" in t or "afraid" in t for t in texts)
