"""Emotions and personas of a user's own: the TOML file, extraction, the circumplex, and back from the pack."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import pytest

import mlx_emotion
from mlx_emotion.cli import main
from mlx_emotion.definitions import read_definitions
from mlx_emotion.emotions import CATALOGUE, GREY, Emotion, Feeling
from mlx_emotion.errors import PackError, UsageError
from mlx_emotion.extraction import Plan
from mlx_emotion.vectors import EmotionVectors, PackInfo

GOOD = """
[[emotion]]
name = "nostalgia"
valence = 0.3
arousal = -0.4
colour = "#c58f5c"
instructions = ["Answer with nostalgia.", "Answer as if you missed the past."]
queries = ["What is your home town like these days?", "Do you keep old letters?"]

[[emotion]]
name = "sarcastic pirate"
valence = 0
arousal = 0
instructions = ["Answer as a sarcastic pirate."]
queries = ["How was work?", "What is the weather like?"]
"""


@pytest.fixture
def definitions(tmp_path):
    path = tmp_path / "emotions.toml"
    path.write_text(GOOD)
    return path


@pytest.fixture(scope="module")
def tiny(tiny_model_path):
    return mlx_emotion.load(str(tiny_model_path))


@pytest.fixture(scope="module")
def pack(tiny, tmp_path_factory):
    """A pack with a built-in emotion and two of a user's own."""
    folder = tmp_path_factory.mktemp("custom")
    (folder / "emotions.toml").write_text(GOOD)
    made = mlx_emotion.extract(
        tiny, ["joy", "nostalgia", "sarcastic pirate"], limit=2, max_tokens=4, define=folder / "emotions.toml"
    )
    return EmotionVectors.load(made.save(folder / "pack.safetensors"))


def test_a_file_is_read(definitions):
    found = read_definitions(definitions)
    assert list(found) == ["nostalgia", "sarcastic pirate"]
    nostalgia, pirate = (d.emotion for d in found.values())
    assert (nostalgia.valence, nostalgia.arousal) == (pytest.approx(0.3), pytest.approx(-0.4))
    assert nostalgia.colour == "#c58f5c"
    assert nostalgia.instructions == ("Answer with nostalgia.", "Answer as if you missed the past.")
    assert found["nostalgia"].queries == ("What is your home town like these days?", "Do you keep old letters?")
    assert (pirate.valence, pirate.arousal, pirate.colour) == (0, 0, GREY)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "nostalgia"', "", "emotion 1: field 'name' is missing"),
        ('name = "nostalgia"', 'name = "Nostalgia"', "name is 'Nostalgia', wanted"),
        ('name = "nostalgia"', 'name = "a:b"', "name is 'a:b', wanted"),
        ('name = "nostalgia"', "name = 3", "name is 3, wanted"),
        ('name = "nostalgia"', 'name = "joy"', "built-in"),
        ('name = "nostalgia"', 'name = "base"', "something else already"),
        ('name = "nostalgia"', 'name = "sarcastic pirate"', "defined twice"),
        ("valence = 0.3", "", "emotion nostalgia: field 'valence' is missing"),
        ("valence = 0.3", "valance = 0.3", "unknown field 'valance': known are name, valence"),
        ("valence = 0.3", "valence = 1.3", "valence is 1.3, wanted a number from -1 to 1"),
        ("valence = 0.3", "valence = nan", "valence is nan"),
        ("valence = 0.3", 'valence = "high"', "valence is 'high'"),
        ("arousal = -0.4", "arousal = true", "arousal is True"),
        ('colour = "#c58f5c"', 'colour = "brown"', "colour is 'brown', wanted #rrggbb"),
        ("instructions = [\"Answer with", "# [\"Answer with", "'instructions' is missing"),
        ('["Answer as a sarcastic pirate."]', "[]", "sarcastic pirate: instructions is empty"),
        ('instructions = ["Answer as a sarcastic pirate."]', 'instructions = "x"', "wanted a list of texts"),
        ('queries = ["How was work?", "What is the weather like?"]', 'queries = ["", "x"]', "queries is"),
        ("[[emotion]]", "[[emotions]]", "unknown key 'emotions'"),
        ("[[emotion]]", "[emotion]", "not TOML"),
        ("arousal = -0.4", "arousal = ", "not TOML"),
    ],
)  # fmt: skip
def test_a_typo_is_one_line_that_names_file_and_field(old, new, told, tmp_path):
    assert old in GOOD
    path = tmp_path / "emotions.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=told) as error:
        read_definitions(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"x = 1", b"emotion = 3", b"emotion = [1]", b"\xff\xfe", b"emotion = []"])
def test_a_file_of_something_else(content, tmp_path):
    path = tmp_path / "emotions.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"emotions\.toml"):
        read_definitions(path)
    with pytest.raises(UsageError, match="No such file"):
        read_definitions(tmp_path / "none.toml")


def test_a_plan_asks_its_queries_with_its_wordings(definitions):
    plan = Plan.make(["nostalgia", "joy"], limit=2, define=definitions)
    assert plan.queries["nostalgia"] == ["What is your home town like these days?", "Do you keep old letters?"]
    assert plan.wordings["nostalgia"] == ("Answer with nostalgia.", "Answer as if you missed the past.")
    assert "joyful" in " ".join(plan.wordings["joy"])
    assert list(plan.defined) == ["nostalgia"]
    assert plan.source != Plan.make(["joy"]).source
    assert set(Plan.make(define=definitions).queries) == {*Plan.make().queries, "nostalgia", "sarcastic pirate"}


def test_without_queries_anywhere(definitions):
    definitions.write_text(GOOD.replace("queries", "# queries"))
    with pytest.raises(UsageError, match=r"no queries for nostalgia.*queries generate --emotion 'nostalgia'"):
        Plan.make(define=definitions)
    assert list(Plan.make(["joy"], define=definitions).queries) == ["joy"]
    plan = Plan.make(["nostalgia"], queries={"nostalgia": ["Why do you ask?"]}, define=definitions)
    assert plan.queries == {"nostalgia": ["Why do you ask?"]}


def test_the_pack_brings_the_definition_back(pack):
    found = pack.info.catalogue
    assert found["joy"] == CATALOGUE["joy"]
    assert (found["nostalgia"].valence, found["nostalgia"].arousal) == (pytest.approx(0.3), pytest.approx(-0.4))
    assert found["nostalgia"].colour == "#c58f5c"
    assert found["nostalgia"].instructions == ("Answer with nostalgia.", "Answer as if you missed the past.")
    assert found["sarcastic pirate"].radius == 0


@pytest.mark.parametrize(
    "entry",
    [
        {"valence": 2},
        {"valence": "x"},
        {"arousal": None},
        {"colour": "red"},
        {"instructions": 3},
        {"instructions": [3]},
    ],
)
def test_a_pack_with_a_broken_definition_is_refused(entry, pack):
    content = json.loads(pack.info.to_json())
    content["emotions"]["nostalgia"].update(entry)
    with pytest.raises(ValueError, match=f"{next(iter(entry))} of nostalgia"):
        PackInfo.from_json(json.dumps(content))


def test_a_model_feels_it(tiny, pack):
    tiny.use(pack)
    assert tiny.emotions == list(pack)
    assert tiny.catalogue["nostalgia"].colour == "#c58f5c"
    felt = tiny.generate("hello", "sarcastic pirate:0.5, nostalgia", seed=1, max_tokens=6)
    assert felt.scale == {"sarcastic pirate": 0.5, "nostalgia": 1.0}
    raw = tiny.generate("hello", "nostalgia", seed=1, max_tokens=12, scale=8.0, temperature=0.0)
    assert raw.text != tiny.generate("hello", seed=1, max_tokens=12, temperature=0.0).text
    chat = tiny.chat("nostalgia")
    assert chat.feeling.point == (pytest.approx(0.3), pytest.approx(-0.4))
    with pytest.raises(UsageError, match="did you mean 'nostalgia'"):
        chat.feel("nostalgie")


def test_the_command_line_knows_it_before_the_model_is_loaded(pack, home, tiny_model_path):
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mlx_emotion", "generate", "hi", "--emotion", "nostalgia", "--max-tokens", "2"]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").write_text(f"model = {json.dumps(str(tiny_model_path))}\n")
    unknown = run()
    assert unknown.returncode == 2
    assert "unknown emotion 'nostalgia'" in unknown.stderr
    pack.save(home / "data" / "packs" / "mine.safetensors")
    assert run().returncode == 0


def test_extract_on_the_command_line(definitions, tiny_model_path, tmp_path, capsys):
    path = tmp_path / "mine.safetensors"
    command = ["extract", "--model", str(tiny_model_path), "--limit", "1", "--max-tokens", "3", "--no-calibrate"]
    command += ["--define", str(definitions), "--output", str(path), "--emotions"]
    assert main([*command, "joy, sarcastic pirate", "--method", "last"]) == 0
    found = EmotionVectors.load(path).info
    assert (set(found.emotions), found.method) == ({"joy", "sarcastic pirate"}, "last")
    assert main([*command, "joy, pirate"]) == 2
    assert "unknown emotion 'pirate': did you mean 'sarcastic pirate'?" in capsys.readouterr().err


# The circumplex.

NOSTALGIA = Emotion.custom("nostalgia", 0.3, -0.4)


def test_a_feeling_carries_its_definitions():
    known = {**CATALOGUE, "nostalgia": NOSTALGIA}
    feeling = Feeling.of("joy:0.5,nostalgia:0.5", known)
    assert feeling.defined == (NOSTALGIA,)
    assert feeling == Feeling((("joy", 0.5), ("nostalgia", 0.5)))
    joy = CATALOGUE["joy"]
    assert feeling.point == (pytest.approx(joy.valence / 2 + 0.15), pytest.approx(joy.arousal / 2 - 0.2))
    assert feeling.scaled(0.5).point[1] == pytest.approx(feeling.point[1] / 2)
    assert Feeling.of(feeling, known).defined == (NOSTALGIA,)


def test_one_near_the_middle_is_not_taken_where_others_reach_further():
    known = {**CATALOGUE, "nostalgia": NOSTALGIA}
    for degrees in range(0, 360, 5):
        v, a = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        assert str(Feeling.at(v, a, known)) == str(Feeling.at(v, a))


def test_it_fills_a_gap_that_the_others_leave():
    known = {"joy": CATALOGUE["joy"], "anger": CATALOGUE["anger"], "nostalgia": NOSTALGIA}
    feeling = Feeling.at(0.4, -0.2, known)
    assert {n for n, _ in feeling.weights} == {"joy", "nostalgia"}
    assert feeling.point == (pytest.approx(0.4), pytest.approx(-0.2))


def test_a_persona_without_a_place_is_never_part_of_a_point():
    pirate = Emotion.custom("sarcastic pirate")
    assert Feeling.at(0.5, 0.5, {**CATALOGUE, "sarcastic pirate": pirate}) == Feeling.at(0.5, 0.5)
    assert Feeling.of("sarcastic pirate", {"sarcastic pirate": pirate}).point == (0, 0)
    with pytest.raises(UsageError, match="has a place"):
        Feeling.at(0.5, 0.5, {"sarcastic pirate": pirate})


def test_loading_needs_no_definition_file(pack, tmp_path):
    assert pack.path is not None
    with pytest.raises(PackError):
        EmotionVectors.load(pack.path.with_name("emotions.toml"))
    alone = shutil.copy(pack.path, tmp_path)
    assert EmotionVectors.load(alone).info.catalogue == pack.info.catalogue
    assert pack.info.catalogue["nostalgia"].arousal == pytest.approx(-0.4)
