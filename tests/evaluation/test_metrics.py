"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlx_emotion.evaluation import effects, metrics, statistics


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
    assert statistics.bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert statistics.bootstrap([2.0]) is None


def test_bootstrap_is_as_wide_as_the_normal_interval_and_repeats_itself():
    values = np.random.default_rng(3).normal(10, 2, 400).tolist()
    low, high = statistics.bootstrap(values, seed=1)
    half = 1.96 * np.std(values) / math.sqrt(400)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert statistics.bootstrap(values, seed=1) == (low, high)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_interval_of_few_values_holds_the_mean_as_often_as_it_says(count):
    rng = np.random.default_rng(count)
    intervals = [statistics.bootstrap(rng.normal(0, 1, count).tolist(), n) for n in range(300)]
    held = sum(low <= 0 <= high for low, high in intervals) / len(intervals)
    assert 0.9 < held < 0.99


def test_quantiles_of_student():
    for count, quantile in ((2, 12.706), (5, 2.776), (6, 2.571), (9, 2.306), (31, 2.042), (1001, 1.962)):
        assert statistics.wider(count) == pytest.approx(quantile / 1.96 * math.sqrt(count / (count - 1)), rel=2e-3)


def test_pairs_that_never_differ_have_a_width():
    few, many = (statistics.paired_share([0.0] * n) for n in (2, 100))
    assert (few["mean"], statistics.preserved(few)) == (0, "not shown")
    assert statistics.preserved(many) == "yes"
    found = statistics.paired_share([1.0, -1.0, -1.0, 0.0, None])
    assert (found["mean"], found["n"], found["missing"]) == (-0.25, 4, 1)
    assert found["low"] < -0.25 < found["high"]
    assert statistics.paired_share([None])["mean"] is None


def test_a_missing_value_is_counted_and_never_a_zero():
    found = statistics.summary([1.0, None, 0.5, None])
    assert (found["mean"], found["n"], found["missing"]) == (0.75, 2, 2)
    assert statistics.summary([None])["mean"] is None


def test_line_fit():
    slope, intercept, r2 = statistics.line_fit([0, 1, 2], [1, 3, 5])
    assert (slope, intercept, r2) == (pytest.approx(2), pytest.approx(1), pytest.approx(1))
    # y = 0, 1, 0 over x = 0, 1, 2: the best line is flat, so it explains nothing.
    assert statistics.line_fit([0, 1, 2], [0, 1, 0])[2] == pytest.approx(0)
    assert statistics.line_fit([0, 1, 2], [4, 4, 4]) is None


def test_explained_share():
    assert statistics.explained(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(1 - 16 / 25)


def test_wilson_has_a_width_where_all_answers_agree():
    low, high = statistics.wilson(0, 10)
    assert (low, high) == (0, pytest.approx(0.2775, abs=1e-4))  # z² / (n + z²)
    assert statistics.wilson(10, 10) == (pytest.approx(1 - 0.2775, abs=1e-4), 1)
    assert statistics.wilson(5, 10) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert statistics.wilson(0, 0) is None
    found = statistics.share([1, 1, None, 1])
    assert (found["mean"], found["high"], found["n"], found["missing"]) == (1.0, 1.0, 3, 1)
    assert found["low"] < 0.5


def test_whole_clusters_are_resampled():
    """Ten answers to each of two questions tell as much as two answers."""
    pairs = [("a", 0.0)] * 10 + [("b", 1.0)] * 10
    found = statistics.clustered([*pairs, ("b", None)])
    assert (found["mean"], found["low"], found["high"]) == (0.5, *statistics.bootstrap([0.0, 1.0]))
    assert (found["n"], found["missing"]) == (20, 1)
    assert statistics.clustered([("a", 0.0), ("a", 1.0)])["low"] is None  # one question has no interval
    assert statistics.clustered([("a", None)])["mean"] is None


DOSES = (0.25, 0.5, 0.75, 1.0)


def shifts(power: int, questions: int = 6) -> np.ndarray:
    """Shifts ``[Q, doses, V]`` that go with a power of the dose, each question's in a direction of its own."""
    directions = np.random.default_rng(0).normal(size=(questions, 1, 5))
    return directions * (np.array(DOSES) ** power)[None, :, None]


def test_a_line_is_linear_and_a_parabola_is_not():
    line, parabola = (statistics.straight(DOSES, shifts(p)) for p in (1, 2))
    assert line["mean"] == pytest.approx(1)
    assert statistics.reaches(line, statistics.LINEAR) == "yes"
    # The tangent says s / 4 where s² is seen: 1 - (1/64 + 9/64 + 9/16) / (1/16 + 81/256 + 1).
    assert parabola["mean"] == pytest.approx(1 - (1 / 64 + 9 / 64 + 9 / 16) / (1 / 16 + 81 / 256 + 1))
    assert statistics.reaches(parabola, statistics.LINEAR) == "no"
    # A line through 0 that is fitted to the same parabola explains nearly all of it.
    slope = np.einsum("f,qfv->qv", np.array(DOSES), shifts(2)) / np.square(DOSES).sum()
    assert statistics.explained(shifts(2), np.array(DOSES)[None, :, None] * slope[:, None]) > 0.9


def test_no_shift_at_all_is_not_shown_to_be_linear():
    found = statistics.straight(DOSES, np.zeros((4, 4, 5)))
    assert found["mean"] is None
    assert statistics.reaches(found, statistics.LINEAR) == "not shown"


def test_a_sum_must_do_better_than_one_number():
    seen = np.array([0.4, 0.5, 0.6])
    assert statistics.centred(seen, seen) == pytest.approx(1)
    assert statistics.centred(seen, np.full(3, 0.5)) == pytest.approx(0)
    assert statistics.explained(seen, np.full(3, 0.5)) > 0.97  # uncentred, one number for all looks good
    assert math.isnan(statistics.centred(np.full(3, 0.5), seen))


def change(low: float, high: float) -> dict:
    return {"mean": (low + high) / 2, "low": low, "high": high, "n": 9, "missing": 0}


@pytest.mark.parametrize(
    ("steps", "whole", "verdict"),
    [
        ([change(0.1, 0.2), change(0.05, 0.3)], change(0.2, 0.4), "yes"),
        ([change(0, 0), change(0.1, 0.3)], change(0.1, 0.3), "not shown"),  # a flat step is no rise
        ([change(-0.1, 0.1), change(0.1, 0.3)], change(0.1, 0.3), "not shown"),
        ([change(-0.2, -0.1), change(0.3, 0.5)], change(0.1, 0.4), "no"),
        ([change(0, 0), change(0, 0)], change(0, 0), "no"),
        ([], None, "not shown"),
    ],
)
def test_rises_at_every_step(steps, whole, verdict):
    assert statistics.rises(steps, whole) == verdict


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (change(-0.05, 0.1), "yes"),
        (change(-0.3, -0.05), "no"),
        (change(-0.3, 0.1), "not shown"),
        (None, "not shown"),
    ],
)
def test_topic_preserved(found, verdict):
    assert statistics.preserved(found) == verdict


def test_one_verdict_of_several():
    assert statistics.together(["yes", "yes"]) == "yes"
    assert statistics.together(["yes", "no", "not shown"]) == "no"
    assert statistics.together(["yes", "not shown"]) == statistics.together([]) == "not shown"


# What is computed from judged answers.


def answer(condition: str, question: int, fear: float, **more) -> dict:
    kind, _, rest = condition.partition(":")
    emotion, _, dose = rest.partition("@")
    row = {"condition": condition, "kind": kind, "emotion": emotion, "dose": float(dose) if dose else None}
    row |= {"part": "tables", "group": "neutral", "question": f"q{question}", "words": 10}
    row["id"] = f"{condition}|neutral/{question}"
    return row | {"emotions": {"fear": fear, "joy": more.pop("joy", 0.0)}} | more


def test_table_6_is_the_mean_over_all_answers():
    rows = [answer("plain", q, p) for q, p in enumerate((0.1, 0.3))]
    rows += [answer("steering:fear@1", q, p) for q, p in enumerate((0.5, 0.9))]
    rows += [answer("steering:fear@2", 0, 1.0), {**answer("steering:fear@2", 1, 0), "emotions": None}]
    found = effects.table6(rows, ["base", "fear"], 0)
    assert {d: s["mean"] for d, s in found["fear"].items()} == pytest.approx({"0": 0.2, "1": 0.7, "2": 1.0})
    assert found["fear"]["2"]["missing"] == 1
    assert list(found) == ["fear"]


def test_emotional_answers_and_adherence_are_shares_with_a_width():
    rows = [answer("plain", q, 0, emotional=int(q < 3), adherence=1) for q in range(4)]
    rows.append(answer("plain", 4, 0, emotional=None, adherence=1))
    (found,) = effects.conditions(rows, 0)
    eps, adherence = found["metrics"]["eps"], found["metrics"]["adherence"]
    assert (eps["mean"], eps["n"], eps["missing"]) == (0.75, 4, 1)
    assert (eps["low"], eps["high"]) == statistics.wilson(3, 4)
    assert (adherence["mean"], adherence["high"]) == (1.0, 1.0)
    assert adherence["low"] == pytest.approx(1 - 3.8415 / (5 + 3.8415), abs=1e-4)


def test_a_dose_of_the_tables_is_no_step():
    """Next to one of the statements' own it would hardly differ from that."""
    doses = (0.25, 0.5, 0.75, 0.99, 1.0)
    rows = [answer("plain", q, 0.02 * (q % 2)) for q in range(8)]
    for n, dose in enumerate(doses):
        rows += [answer(f"steering:fear@{dose:g}", q, 0.8 * dose + 0.02 * ((q + n) % 2)) for q in range(8)]
    curve = effects.statements(rows, {"fear": 1.0}, 0)["curves"]["fear"]
    assert len(curve["steps"]) == 4
    assert curve["rises"] == "yes"
    assert len(curve["scores"]) == 6


def test_without_the_statements_own_doses_their_verdicts_are_open():
    rows = [answer("plain", q, 0.02 * (q % 2)) for q in range(8)]
    for dose in (-1, 0.5, 1.0):
        rows += [answer(f"steering:fear@{dose:g}", q, max(0, 0.8 * dose) + 0.02 * (q % 2)) for q in range(8)]
    curve = effects.statements(rows, {"fear": 1.0}, 0)["curves"]["fear"]
    assert (curve["rises"], curve["straight"], curve["is_straight"]) == ("not shown", None, "not shown")
    assert [dose for dose, _ in curve["scores"]] == [-1, 0, 0.5, 1]


def test_a_question_that_stands_twice_is_answered_twice():
    rows = [{**answer("plain", n, 0, adherence=1), "question": "again"} for n in range(2)]
    rows += [{**answer("steering:fear@1", n, 0.5, adherence=n), "question": "again"} for n in range(2)]
    curve = effects.statements(rows, {"fear": 1.0}, 0)["curves"]["fear"]
    assert curve["topic"][0][1]["mean"] == -0.5


@pytest.mark.parametrize(("power", "straight"), [(1, "yes"), (3, "no")])
def test_scores_that_rise_as_a_line_or_late(power, straight):
    doses = (0.25, 0.5, 0.75, 1.0)
    rows = [answer("plain", q, 0.01 * (q % 2), adherence=1) for q in range(8)]
    for dose in doses:
        rows += [answer(f"steering:fear@{dose:g}", q, 0.01 * (q % 2) + 0.8 * dose**power, adherence=q % 2)
                 for q in range(8)]  # fmt: skip
    curve = effects.statements(rows, {"fear": 1.0}, 0)["curves"]["fear"]
    assert curve["rises"] == "yes"
    assert curve["rise"]["mean"] == pytest.approx(0.8)
    assert curve["is_straight"] == straight
    assert curve["preserved"] == "no"


def mixed(fear_alone: dict[str, float], seen: dict[str, float]) -> dict:
    """Answers of three mixes of fear with another emotion, which alone brings no fear; six questions each."""
    rows = [answer("plain", q, 0.1) for q in range(6)]
    for number, (name, value) in enumerate(seen.items()):
        jitter = [0.001 * (q % 3) for q in range(6)]
        # A fear of its own each mix, so that what is predicted differs.
        rows += [answer(f"steering:fear{number}@0.5", q, 0.1) for q in range(6)]
        rows += [answer(f"steering:{name}@0.5", q, 0.1) for q in range(6)]
        rows += [answer(f"mix:fear{number}+{name}", q, 0.1) for q in range(6)]
        for row in rows:
            row["emotions"].setdefault(f"fear{number}", 0.1)
            row["emotions"].setdefault(name, 0.1)
        for q in range(6):
            at = {r["condition"]: r for r in rows if r["question"] == f"q{q}"}
            at[f"steering:fear{number}@0.5"]["emotions"][f"fear{number}"] = 0.1 + fear_alone[name] + jitter[q]
            at[f"mix:fear{number}+{name}"]["emotions"][f"fear{number}"] = 0.1 + value + jitter[q]
    full = {**{f"fear{n}": 1.0 for n in range(len(seen))}, **dict.fromkeys(seen, 1.0)}
    for row in rows:
        if row["kind"] in ("mix", "steering"):
            row["emotion"] = row["condition"].partition(":")[2].partition("@")[0]
    return effects.mixes(effects.by_condition(rows), full, 0)


def test_effects_that_add_up():
    alone = {"joy": 0.2, "anger": 0.4, "disgust": 0.6}
    found = mixed(alone, alone)
    assert [p["predicted"] for p in found["points"][::2]] == pytest.approx([0.201, 0.401, 0.601])
    assert found["error"] == pytest.approx(0, abs=1e-9)
    assert found["r2"]["mean"] == pytest.approx(1)
    assert found["additive"] == "yes"


def test_effects_that_do_not_add_up():
    """Whatever the single effects are, the mix is seen at 40 or 45 points: one number tells as much."""
    found = mixed({"joy": 0.1, "anger": 0.4, "disgust": 0.7}, {"joy": 0.45, "anger": 0.4, "disgust": 0.1})
    assert found["points"][0]["off"]["mean"] == pytest.approx(0.35)
    # Off by 35, 0 and 60 points, and the other emotion of each mix by nothing.
    assert found["error"] == pytest.approx((0.35 + 0 + 0.6) / 6)
    assert found["r2"]["mean"] < 0.5
    assert found["additive"] == "no"


def turn(way: str, conversation: int, number: int, fear: float, **more) -> dict:
    name = {"plain": "fading:plain"}.get(way, f"fading:{way}:fear")
    row = {"condition": name, "way": way, "group": f"conversation-{conversation}", "turn": number, "emotion": "fear"}
    return row | {"emotions": {"fear": fear}, "low_distinct": 0} | more


def test_fading_by_turn_and_by_conversation():
    series = {"plain": (0.0, 0.0, 0.0, 0.0), "prompt": (0.9, 0.5, 0.1, 0.1), "steering": (0.6, 0.6, 0.6, 0.6)}
    rows = [
        turn(way, c, n, value + 0.02 * c, low_distinct=int(way == "steering" and c == 0))
        for way, values in series.items()
        for c in range(2)
        for n, value in enumerate(values)
    ]
    found = effects.fading(rows, ["fear"], 0)
    assert [s["mean"] for s in found["ways"]["prompt"]] == pytest.approx([0.91, 0.51, 0.11, 0.11])
    assert found["conversations"] == {"plain": 2, "prompt": 2, "steering": 2}
    first = found["ways"]["steering"][0]
    assert (first["low"], first["high"]) == pytest.approx(statistics.bootstrap([0.6, 0.62]))
    effect = found["effect"]
    assert (effect["prompt"]["first"]["mean"], effect["prompt"]["change"]["mean"]) == pytest.approx((0.9, -0.8))
    assert (effect["steering"]["first"]["mean"], effect["steering"]["change"]["mean"]) == pytest.approx((0.6, 0))
    for row in rows:  # what everybody does by the end is no effect
        row["emotions"]["fear"] += 0.1 * row["turn"]
    assert effects.fading(rows, ["fear"], 0)["effect"]["steering"]["change"]["mean"] == pytest.approx(0)
    assert [s["mean"] for s in found["repetition"]["steering"]] == [0.5] * 4
    assert found["instructed"] == [None] * 4
    for row in rows:
        if row["way"] == "prompt":
            row["instruction_in_prompt"] = row["turn"] < 2 or row["group"] == "conversation-0"
    assert effects.fading(rows, ["fear"], 0)["instructed"] == [1, 1, 0.5, 0.5]


def test_a_plain_conversation_is_one_whatever_emotions_it_is_held_against():
    rows = [{**turn("plain", c, 0, 0.2), "emotions": {"fear": 0.1, "joy": 0.3}} for c in range(3)]
    found = effects.fading(rows, ["fear", "joy"], 0)["ways"]["plain"][0]
    assert (found["mean"], found["n"]) == (pytest.approx(0.2), 6)
    assert found["low"] == found["high"] == pytest.approx(0.2)  # the conversations are alike


def test_cosines_resample_questions():
    def row(question: int, angle: int, cosine: float | None) -> dict:
        direction = None if cosine is None else 0.0
        return {"way": "prompt", "angle": angle, "question": f"q{question}", "top": "joy", "direction": direction,
                "cosine": cosine}  # fmt: skip

    rows = [row(q, angle, float(q)) for q in (0, 1) for angle in range(0, 360, 30)]
    rows.append(row(2, 0, None))
    found = effects.circumplex(rows, 0)["prompt"]
    two = statistics.bootstrap([0.0, 1.0])  # questions, not 24 answers
    assert (found["all"]["low"], found["all"]["high"]) == two
    assert found["states"]["0"]["n"] == 2


def test_steering_against_the_instruction_at_like_length():
    rows = [answer("prompt:fear", q, 0, adherence=1, asked=0.5) for q in range(4)]
    rows += [answer("steering:fear@1", q, 0, adherence=0, asked=0.7, words=30) for q in (0, 1)]
    rows += [answer("steering:fear@1", q, 0, adherence=1, asked=0.5, words=12) for q in (2, 3)]
    found = effects.against_prompt(rows, {"fear": 1.0}, 0)
    assert (found["pairs"], found["like"]) == (4, 2)
    assert found["all"]["adherence"]["mean"] == -0.5
    assert found["alike"]["adherence"]["mean"] == 0
    assert found["all"]["words"]["mean"] == 11
    assert effects.against_prompt(rows[:4], {"fear": 1.0}, 0) is None


def test_longer_answers_of_lower_perplexity():
    rows = [answer("plain", q, 0, words=q, perplexity=100.0 - q) for q in range(5)]
    assert effects.length(rows) == {"rank": pytest.approx(-1), "n": 5}
    assert effects.length([answer("plain", 0, 0)]) is None


def test_spearman_with_ties():
    assert statistics.spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    # Ranks 0, 1, 2 against 0.5, 0.5, 2.
    assert statistics.spearman([1, 2, 3], [5, 5, 9]) == pytest.approx(math.sqrt(3) / 2)
    assert statistics.spearman([1, 2], [3, 3]) is None


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
        ("lmsys/vicuna-7b-v1.5", ("Vicuna", None)),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", ("Qwen2.5", "Qwen2.5-7B")),
        ("mlx-community/quantized-gemma-7b-it", ("Gemma", None)),
        ("mlx-community/MiniCPM3-4B-8bit", ("MiniCPM", "MiniCPM")),
        # Base models and what others made of theirs.
        ("Qwen/Qwen2.5-7B", (None, None)),
        ("meta-llama/Llama-3.1-8B", (None, None)),
        ("google/gemma-7b", (None, None)),
        ("Qwen/Qwen2.5-7B-Instruct-1M", (None, None)),
        ("huihui-ai/Qwen2.5-7B-Instruct-abliterated", (None, None)),
        ("mlabonne/Meta-Llama-3.1-8B-Instruct-abliterated-4bit", (None, None)),
        ("lmsys/vicuna-7b-v1.5-16k", (None, None)),
        ("01-ai/Yi-6B-200K", (None, None)),
    ],
)
def test_the_papers_row_of_a_model(model, rows):
    assert metrics.paper_rows(model) == rows
    base, table6 = rows
    assert base is None or base in metrics.PAPER_TABLES["perplexity_base"]
    assert table6 is None or table6 in metrics.PAPER_TABLES["emotion_by_emotion_percent"]
