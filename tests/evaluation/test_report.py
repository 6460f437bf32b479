"""What the report says of numbers that are given: words, warnings, and what it leaves out."""

from __future__ import annotations

import pytest

from mlx_emotion import queries
from mlx_emotion.evaluation import conclusions, report
from mlx_emotion.evaluation.background import Background, command, overlap
from mlx_emotion.evaluation.pages import Heading, Picture, Table, Text, interval, to_html, to_markdown


def mean(value: float | None, low: float | None = None, high: float | None = None, n: int = 8) -> dict:
    return {"mean": value, "low": low, "high": high, "n": n, "missing": 0}


@pytest.fixture
def scores() -> dict:
    _, source = queries.shipped("evaluation")
    _, made_from = queries.shipped()
    condition = {"part": "tables", "kind": "steering", "emotion": "base", "n": 8}
    plain = {**condition, "id": "plain", "kind": "plain", "emotion": None, "dose": None}
    metrics = {"low_distinct": mean(0.0, 0.0, 0.3), "perplexity": mean(5.0)}
    return {
        "model": {
            "id": "some/model", "name": "some/model", "revision": "", "quantization": "4-bit", "architecture": "llama",
            "layers": 4, "width": 8, "fingerprint": "abc",
        },
        "settings": {
            "emotions": ["base", "fear"], "unit": "intensity", "doses": [0.0, 1.0], "queries": {"fear": 8},
            "source": source, "limit": 8, "parts": ["tables"], "temperature": 0.6, "top_p": 0.9, "max_tokens": 60,
            "seed": 0, "batch_size": 16, "think": "off",
        },
        "pack": {"site": "attention", "calibrated": True, "queries": made_from},
        "judges": {"eps": "built-in lexicon", "circumplex": "built-in lexicon"},
        "conditions": [
            {**plain, "metrics": metrics},
            {**condition, "id": "steering:base@1", "dose": 1.0, "metrics": metrics},
        ],
        "table6": {"fear": {"0": mean(0.1), "1": mean(0.5)}},
        "full": {"base": 1.0, "fear": 1.0},
        "answers": 16, "empty": 0,
    }  # fmt: skip


def text_of(scores: dict, background: Background | None = None, pictures: tuple[str, ...] = ()) -> str:
    return to_markdown(report.build(scores, pictures, [], background))


def with_statements(scores: dict) -> dict:
    change = mean(-0.2, -0.3, -0.1)
    curve = {
        "scores": [[0.0, mean(0.1)], [1.0, mean(0.5)]], "rank": 0.9, "rises": "yes", "topic": [[1.0, change]],
        "preserved": "no", "straight": mean(0.95, 0.92, 0.98), "is_straight": "yes",
    }  # fmt: skip
    line = {
        "steady": 0.99, "small": {**mean(0.8, 0.6, 0.95), "verdict": "not shown"},
        "whole": {**mean(0.2, 0.1, 0.3), "verdict": "no"},
    }  # fmt: skip
    added = {"small": {**mean(0.99, 0.98, 1.0), "verdict": "yes"}, "half": {**mean(0.4, 0.3, 0.5), "verdict": "no"}}
    scores["statements"] = {"curves": {"fear": curve}, "mixes": {"points": [], "r2": None}}
    scores["probes"] = {"curves": {"fear": line}, "sums": {"fear+joy": added}, "pairs": {"fear+joy": 0.4}}
    return scores


def test_each_statement_has_a_verdict(scores):
    found = {statement: verdict for statement, verdict, _ in conclusions.verdicts(with_statements(scores))}
    assert found == {
        "the emotion rises at every step": "yes",
        "the topic is preserved": "no",
        "linear while small: logits, to a quarter": "not shown",
        "linear up to intensity 1.0: logits": "no",
        "linear up to intensity 1.0: scores": "yes",
        "two add up: logits, a tenth of each": "yes",
        "two add up: logits, half of each": "no",
    }
    scores["probes"]["curves"]["fear"]["steady"] = 0.2
    assert "may be rounding" in text_of(scores)


def test_a_sum_stands_beside_one_number_for_all(scores):
    point = {"mix": "fear+joy", "emotion": "fear", "predicted": 0.4, "observed": 0.1, "off": mean(-0.3, -0.4, -0.2)}
    mixes = {"points": [point], "r2": mean(-1, -2, 0.1), "error": 0.3, "constant": 0.05, "additive": "no"}
    with_statements(scores)["statements"]["mixes"] = mixes
    text = text_of(scores)
    assert "fear +10.0 (+40.0; off by -30.0 [-40.0, -20.0])" in text
    assert "by 30.0 points on average; one number for all mixes misses it by 5.0" in text


def test_without_calibration_nothing_is_called_intensity(scores):
    assert "calibration's 1.0" in text_of(with_statements(scores), pictures=("dose_response",))
    scores["pack"]["calibrated"] = False
    text = text_of(with_statements(scores), pictures=("dose_response",))
    assert "change at raw scale 1" in text
    assert "base, scale 1" in text
    assert "intensity" not in text.partition("## How it was made")[0]
    assert "calibration's" not in text


def test_of_a_pack_that_is_calibrated_in_part_each_full_dose_is_its_own(scores):
    scores["pack"] |= {"calibrated": False, "uncalibrated": ["base"]}
    scores["settings"]["unit"] = "scale"
    text = text_of(with_statements(scores))
    assert "Of the vectors, base is not calibrated: doses are raw scales, and the full dose of these" in text
    assert "change at the full dose" in text
    assert "at raw scale 1" not in text


@pytest.mark.parametrize(
    ("made_from", "asked", "says"),
    [
        ("shipped", "Is it new?", ""),
        ("shipped", None, "1 of the 1 questions are among those"),
        ("same", "Is it new?", "this very file"),
        ("unknown", "Is it new?", "cannot be seen here"),
    ],
)
def test_questions_that_the_vectors_were_made_from(scores, made_from, asked, says):
    sets, _ = queries.shipped()
    source = {"same": scores["settings"]["source"], "unknown": {}, "shipped": scores["pack"]["queries"]}
    scores["pack"]["queries"] = source[made_from]
    found = overlap(scores, [{"part": "tables", "question": asked or f" {sets['fear'][0].upper()} "}])
    assert says in found
    assert bool(found) == bool(says)


def test_the_released_eq_plus_is_known_to_overlap(scores):
    scores["pack"]["queries"] = {}
    scores["settings"]["queries"] = {"anger": 50, "disgust": 50, "fear": 50, "joy": 50, "sadness": 50, "neutral": 150}
    assert "EQ+" in overlap(scores, [])


def test_the_embedded_model_was_written_with_its_judge_in_sight(scores):
    assert "not independent" not in text_of(scores)
    scores["model"]["id"] = "embedded"
    assert "not independent" in text_of(scores)
    scores["judges"] = {"eps": "bart-large-mnli"}
    assert "not independent" not in text_of(scores)


def test_the_foot_has_versions_and_a_command(scores):
    assert command(scores) == (
        "mlx-emotion evaluate --model=some/model --site=attention --emotions=base,fear --intensities=0,1 "
        "--limit=8 --parts=tables --temp=0.6 --top-p=0.9 --max-tokens=60 --batch-size=16 --seed=0 --output=DIR"
    )
    scores["pack"]["path"] = "/packs/my own.safetensors"
    assert "--model=some/model --vectors='/packs/my own.safetensors' --site=attention" in command(scores)
    text = text_of(scores, Background({"mlx": "1.2.3"}))
    assert command(scores) in text
    assert "Versions: mlx 1.2.3." in text


def test_vectors_say_how_many_queries_they_are_of(scores):
    other = {"part": "baselines", "id": "pca:fear@1", "kind": "pca", "emotion": "fear", "dose": 1.0, "n": 8}
    scores["conditions"].append({**other, "metrics": scores["conditions"][0]["metrics"]})
    background = Background(counts={"pca": {"fear": 16}, "mean": {"fear": 100}}, samples={"fear": 16, "joy": 8})
    text = text_of(scores, background, ("tsne", "distances"))
    assert "fear, intensity 1, pca vectors (16 queries)" in text
    assert "t-SNE of single queries' vectors (24: 16 fear, 8 joy)" in text


def test_steering_against_the_instruction_in_words(scores):
    better = {"adherence": mean(0.1, 0.02, 0.2), "asked": mean(0.0, -0.1, 0.1), "words": mean(5.0, 4.0, 6.0)}
    worse = {**better, "adherence": mean(-0.2, -0.3, -0.1)}
    scores["against_prompt"] = {"pairs": 8, "like": 4, "all": worse, "alike": better}
    said = conclusions.against_prompt(scores)
    assert "topic adherence -20.0 [-30.0, -10.0] points (less)" in said
    assert "5.0 words longer" in said
    assert "4 of 8 pairs" in said
    assert said.endswith("steering beats the instruction on one or both, and is shown worse on neither.")
    scores["length"] = {"rank": -0.6, "n": 16}
    assert "Longer answers have lower perplexity (rank correlation -0.60" in text_of(scores)


def test_fading_in_words(scores):
    scores["judges"]["classifier"] = "built-in lexicon"
    turns, gone, held = [0, 1], mean(-0.5, -0.6, -0.4, 3), mean(0.0, -0.02, 0.03, 3)
    series, start = [mean(0.5, 0.4, 0.6), mean(0.1, 0.0, 0.2)], mean(0.6, 0.5, 0.7, 3)
    ways = dict.fromkeys(("plain", "prompt", "steering"), series)
    scores["fading"] = {
        "turns": turns, "ways": ways, "repetition": ways, "conversations": dict.fromkeys(ways, 3),
        "effect": {"prompt": {"first": start, "change": gone}, "steering": {"first": start, "change": held}},
        "instructed": [1.0, 0.5],
    }  # fmt: skip
    text = text_of(scores)
    assert "instruction's effect fades: 60.0 [50.0, 70.0] points over plain in the first answer, -50.0 [-60.0" in text
    assert "Steering's effect holds" in text
    scores["fading"]["effect"]["steering"] = {"first": mean(0.0, 0.0, 0.0, 3), "change": held}
    assert "Steering's effect is not shown in the first answer" in text_of(scores)
    scores["fading"]["effect"]["steering"] = {
        "first": mean(0.04, 0.03, 0.05, 3),
        "change": mean(-0.04, -0.05, -0.03, 3),
    }
    assert "Steering's effect fades" in text_of(scores)
    assert "From turn 1 on the instruction had left the prompt" in text
    assert "| instruction still in the prompt % | 3 | 100.0 | 50.0 |" in text
    assert "| instructed once: distinct-2 &lt; 0.3 % | 3 | 50.0 | 10.0 |" in text
    scores["fading"]["instructed"] = [None, None]
    assert "do not say whether the instruction" in text_of(scores)
    scores["fading"]["instructed"] = [1.0, 1.0]
    assert conclusions.instruction_left(scores) == ""
    del scores["judges"]["classifier"]
    text = text_of(scores)
    assert "effect" not in text
    assert "| instructed once |" not in text
    assert "| instructed once: distinct-2" in text


def test_the_circumplex_beside_the_paper(scores):
    ways = {"prompt": mean(0.1, 0.0, 0.2, 5), "steering": mean(0.9, 0.8, 0.95, 9)}
    scores["circumplex"] = {w: {"states": {"0": m}, "all": m, "neutral": 0.5} for w, m in ways.items()}
    scores["labels"] = {"joy": 24.9}
    text = text_of(scores)
    assert "0.90 [0.80, 0.95] (n 9)" in text
    assert "Nearest to the asked states is steering, 0.90 [0.80, 0.95], clearly above prompt." in text
    assert "up to about 0.75" in text
    assert "0.680" in text
    assert "close to circular" in text
    scores["judges"]["circumplex"] = "roberta-base-go_emotions"
    assert "close to circular" not in text_of(scores)


@pytest.mark.parametrize(
    ("low", "value", "high", "says"),
    [
        (0.02, 0.06, 0.12, "accuracy is clearly below chance"),
        (0.1, 0.18, 0.3, "accuracy is below chance, though not clearly"),
        (0.18, 0.25, 0.3, "accuracy is not shown to be above chance"),
        (0.5, 0.6, 0.7, "accuracy is above chance"),
    ],
)
def test_a_reading_below_chance_is_said_in_words(scores, low, value, high, says):
    data = {"accuracy": value, "low": low, "high": high, "chance": 0.2, "n": 50, "by_emotion": {"fear": value}}
    scores["readout"] = {"mean": {**data, "separation": 0.6, "separation_low": 0.5, "separation_high": 0.7}}
    text = text_of(scores)
    assert says in text
    assert ("tokens of emotional replies" in text) == (value < 0.2)


def test_base_rows_with_the_papers_beside_them(scores):
    scores["model"]["id"] = "Qwen/Qwen2.5-7B-Instruct"
    rows = report.base_rows(scores, ["perplexity", "low_distinct"])
    assert [(who, scale) for who, scale, _ in rows] == [("", 0), ("", 1)]  # intensities are not the paper's scales
    scores["settings"]["unit"] = "scale"
    rows = report.base_rows(scores, ["perplexity", "low_distinct"])
    assert [(who, scale) for who, scale, _ in rows] == [("", 0), ("Qwen2.5", 0), ("", 1), ("Qwen2.5", 1)]
    assert rows[1][2] == ["5.19", report.NONE]


def test_a_rounded_nothing_has_no_sign():
    assert interval(mean(0.0, -0.0004, 0.0004, 3), percent=True) == "0.0 [0.0, 0.0]"


def test_nothing_that_is_given_can_write_into_the_markdown():
    bad = "<b>x</b> a|b ![see](http://example.org/i.png)\n# head \x1b[31m"
    text = to_markdown(
        [Heading(bad), Text(bad, True), Text("# no heading"), Table((bad,), [(bad,)]), Picture("p", bad)]
    )
    assert "<b>" not in text
    assert "\x1b" not in text
    assert "](http" not in text
    assert "\n# head" not in text
    assert "\\# no heading" in text
    assert text.count("a\\|b") == 6
    assert "<b>" not in to_html([Heading(bad), Text(bad, True)], {}).partition("<h1>")[2]
