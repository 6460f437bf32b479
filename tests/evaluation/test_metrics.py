"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlx_emotion.evaluation import metrics


def test_emotion_absolute_is_the_sum_of_squares():
    scores = {"anger": 80, "disgust": 50, "fear": 0, "joy": 0, "sadness": 10, "surprise": 100}
    assert metrics.emotion_absolute(scores) == pytest.approx(0.64 + 0.25 + 0.01 + 1.0)


def test_cosine_of_angles_over_the_circle():
    assert metrics.cosine_of_angles(30, 30) == pytest.approx(1)
    assert metrics.cosine_of_angles(350, 50) == pytest.approx(0.5)
    assert metrics.cosine_of_angles(0, 180) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("text", "distinct", "loops"),
    [
        ("one two three four", 1.0, False),
        ("a b a b a b", 2 / 5, False),  # six words are too short to be called a loop
        ("no no no no no no no no no no no", 1 / 10, True),
        ("well then go away now go away now go away now", 5 / 10, True),
        ("go away now go away now go away now and then it ended well", 8 / 13, False),
        ("!!!!", 1 / 3, False),
        ("我怕。" * 5, 3 / 14, True),  # 15 characters, and three pairs of them
    ],
)
def test_repetition(text, distinct, loops):
    assert metrics.repetition(text) == (pytest.approx(distinct), loops)


def test_an_empty_text_has_no_repetition():
    assert metrics.repetition(" ") == (None, None)


def test_words_of_english_are_what_lies_between_blanks():
    text = 'He said: "Don\'t!" (Twice)... Then a state-of-the-art thing, at 3.50 — no?!'
    assert metrics.words(text) == text.lower().split()


def test_bootstrap_of_a_constant_and_of_one_value():
    assert metrics.bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert metrics.bootstrap([2.0]) is None


def test_bootstrap_is_as_wide_as_the_normal_interval_and_repeats_itself():
    values = np.random.default_rng(3).normal(10, 2, 400).tolist()
    low, high = metrics.bootstrap(values, seed=1)
    half = 1.96 * np.std(values) / math.sqrt(400)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert metrics.bootstrap(values, seed=1) == (low, high)


def test_a_missing_value_is_counted_and_never_a_zero():
    found = metrics.summary([1.0, None, 0.5, None])
    assert (found["mean"], found["n"], found["missing"]) == (0.75, 2, 2)
    assert metrics.summary([None])["mean"] is None


def test_line_fit():
    slope, intercept, r2 = metrics.line_fit([0, 1, 2], [1, 3, 5])
    assert (slope, intercept, r2) == (pytest.approx(2), pytest.approx(1), pytest.approx(1))
    # y = 0, 1, 0 over x = 0, 1, 2: the best line is flat, so it explains nothing.
    assert metrics.line_fit([0, 1, 2], [0, 1, 0])[2] == pytest.approx(0)
    assert metrics.line_fit([0, 1, 2], [4, 4, 4]) is None


def test_explained_share():
    assert metrics.explained(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(1 - 16 / 25)


def test_spearman_with_ties():
    assert metrics.spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    # Ranks 0, 1, 2 against 0.5, 0.5, 2.
    assert metrics.spearman([1, 2, 3], [5, 5, 9]) == pytest.approx(math.sqrt(3) / 2)
    assert metrics.spearman([1, 2], [3, 3]) is None


@pytest.mark.parametrize(
    ("question", "answer", "wanted"),
    [
        ("Your neighbour's dog barks all night. What now?", "I would talk to my neighbours.", 1),
        ("Your neighbour's dog barks all night. What now?", "Everything is terrible and grey!", 0),
        ("How are you?", "Fine.", 1),
    ],
)
def test_topic_overlap(question, answer, wanted):
    assert metrics.overlaps(question, answer) == wanted


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        ("mlx-community/Meta-Llama-3.1-8B-Instruct-4bit", ("Llama3.1", None)),
        ("meta-llama/Llama-2-13b-chat-hf", (None, "Llama2-13B")),
        ("Qwen/Qwen2.5-7B-Instruct", ("Qwen2.5", "Qwen2.5-7B")),
        ("Qwen/Qwen-7B-Chat", ("Qwen", None)),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", (None, None)),
        ("01-ai/Yi-6B-Chat", ("Yi", None)),
        ("google/gemma-7b-it", ("Gemma", None)),
        ("google/codegemma-7b-it", (None, None)),
        ("openbmb/MiniCPM3-4B", ("MiniCPM", "MiniCPM")),
        ("embedded", (None, None)),
    ],
)
def test_the_papers_row_of_a_model(model, rows):
    assert metrics.paper_rows(model) == rows
    base, table6 = rows
    assert base is None or base in metrics.PAPER_TABLES["perplexity_base"]
    assert table6 is None or table6 in metrics.PAPER_TABLES["emotion_by_emotion_percent"]
