"""The built-in judge."""

from __future__ import annotations

import pytest

from mlx_emotion.evaluation import lexicon
from mlx_emotion.evaluation.lexicon import Lexicon

SMALL = Lexicon({"anger": {"furious": 3, "clench my fists": 3, "fist*": 1, "fed up": 2}, "joy": {"delight*": 3}})


@pytest.mark.parametrize(
    ("text", "anger", "joy"),
    [
        ("FURIOUS!", 3, 0),
        ("I clench my fists", 3, 0),  # the phrase, not its words as well
        ("I clench my fist", 1, 0),
        ("so fed-up, and furious", 5, 0),
        ("Delighted? Delightful.", 0, 6),
        ("furiously", 0, 0),  # no star, no ending
        ("I am not furious", 0, 0),
        ("I'm not at all delighted", 0, 0),
        ("I don’t agree, I am delighted", 0, 3),  # a negation ends with its clause
        ("", 0, 0),
    ],
)
def test_score(text, anger, joy):
    assert SMALL.score(text) == {"anger": anger, "joy": joy}


def test_top_needs_something_clear():
    assert SMALL.top("my fists") is None
    assert SMALL.top("my fists, my fists") == "anger"
    assert SMALL.top("delighted but fed up") == "joy"


def test_strength_halves_the_rest_with_each_strong_word():
    assert [lexicon.strength(n) for n in (0, 3, 6)] == [0, 0.5, 0.75]


def test_the_shipped_lexicon_knows_every_emotion_of_the_catalogue():
    from mlx_emotion import CATALOGUE

    assert set(lexicon.shipped().emotions) == set(CATALOGUE)
    assert lexicon.top("I am terrified, my heart is racing!") == "fear"
    assert lexicon.top("I am absolutely furious. How dare they!") == "anger"
    assert lexicon.top("The bus leaves at ten.") is None
