"""Writing queries with a model: what is asked, what is taken from the answers, what is kept."""

from __future__ import annotations

import itertools
import json

import pytest

import mlx_emotion
from mlx_emotion.cli import main
from mlx_emotion.queries import read
from mlx_emotion.queries.generate import ATTEMPTS, SHAPES, TOPICS, Distinct, asker, generate, prompts, question

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]


def speaker():
    """Answers with a question of five words that is new each time; the same ones for each speaker."""
    words = ("".join(pair) for pair in itertools.product(SYLLABLES, repeat=2))
    return lambda texts: (f"Why {' '.join(itertools.islice(words, 4))}?" for _ in texts)


def test_the_questions_asked_for_vary():
    texts = list(itertools.islice(prompts("nostalgia"), len(TOPICS) * len(SHAPES)))
    assert len(set(texts)) == len(texts)
    assert all("nostalgia" in t for t in texts)


@pytest.mark.parametrize(
    ("answer", "taken"),
    [
        ("What was your first home like?", "What was your first home like?"),
        ('"What was your first home like?"', "What was your first home like?"),
        ("1. What was your first home like?", "What was your first home like?"),
        ("- **What was your first home like?**", "What was your first home like?"),
        ("Question: What was your\tfirst home like?", "What was your first home like?"),
        ("Here is one.\n\nYour school closes. What do you think?\nEnjoy!", "Your school closes. What do you think?"),
        ("I like my home.", None),
        ("Why?", None),
        ("", None),
        ("Does this fill you with Nostalgia or not?", None),
        ("word " * 80 + "?", None),
    ],
)  # fmt: skip
def test_the_question_in_an_answer(answer, taken):
    assert question(answer, "nostalgia") == taken


def test_the_same_question_in_other_words_is_kept_once():
    found = Distinct()
    for text in (
        "What was your first home like?",
        "what was your first home like ?",
        "So what was your first home like?",
        "Who taught you to swim?",
    ):
        found.add(text)
    assert found.questions == ["What was your first home like?", "Who taught you to swim?"]


def test_as_many_as_asked_for_and_no_prompt_more():
    asked = []

    def ask(texts):
        return speaker()(asked.append(t) or t for t in texts)

    found = generate("nostalgia", 20, ask)
    assert len(found) == len(set(found)) == 20
    assert len(asked) == 20


def test_going_on_keeps_what_is_there():
    found = generate("nostalgia", 5, speaker(), known=["Who taught you to swim?", "who taught you to swim?"])
    assert len(found) == 5
    assert found[:2] == ["Who taught you to swim?", "who taught you to swim?"]


def test_a_model_that_repeats_itself_is_not_asked_for_ever():
    asked = []
    found = generate(
        "nostalgia", 3, lambda texts: ("What was your first home like?" for t in texts if not asked.append(t))
    )
    assert found == ["What was your first home like?"]
    assert len(asked) == 3 * ATTEMPTS


@pytest.fixture
def replies(monkeypatch):
    """Lets the command's model say what ``speaker`` says."""
    monkeypatch.setattr("mlx_emotion.queries.generate.asker", lambda *_: speaker())


def test_the_command_writes_a_set_that_extract_reads(replies, tiny_model_path, tmp_path, capsys):
    path = tmp_path / "set.json"
    command = ["queries", "generate", "--model", str(tiny_model_path), "--output", str(path)]
    assert main([*command, "--emotion", "nostalgia", "-n", "4"]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    assert main([*command, "--emotion", "sarcastic pirate", "-n", "2"]) == 0
    first, _ = read(path)
    assert {k: len(v) for k, v in first.items()} == {"nostalgia": 4, "sarcastic pirate": 2}
    assert main([*command, "--emotion", "nostalgia", "-n", "6"]) == 0
    grown, _ = read(path)
    assert grown["nostalgia"][:4] == first["nostalgia"]
    assert len(set(grown["nostalgia"])) == 6
    assert grown["sarcastic pirate"] == first["sarcastic pirate"]


def test_what_is_written_is_kept_whatever_happens(monkeypatch, tiny_model_path, tmp_path):
    """And what another program has added to the file meanwhile."""
    path = tmp_path / "set.json"

    def asker(*_):
        def ask(texts):
            for n, answer in enumerate(speaker()(texts)):
                if n == 2:
                    assert len(read(path)[0]["nostalgia"]) == 2
                    path.write_text(json.dumps({"joy": ["Who has won?"]}))
                if n == 3:
                    raise RuntimeError("the machine is out of everything")
                yield answer

        return ask

    monkeypatch.setattr("mlx_emotion.queries.generate.asker", asker)
    monkeypatch.setattr("mlx_emotion.cli.queries.SAVE_SECONDS", 0.0)
    with pytest.raises(RuntimeError):
        main(["queries", "generate", "-m", str(tiny_model_path), "-o", str(path), "-e", "nostalgia", "-n", "9"])
    assert {k: len(v) for k, v in read(path)[0].items()} == {"joy": 1, "nostalgia": 3}


def test_a_model_that_cannot_is_told(tiny_model_path, tmp_path, capsys):
    path = tmp_path / "set.json"
    command = ["queries", "generate", "-m", str(tiny_model_path), "-o", str(path), "-e", "nostalgia", "-n", "1"]
    assert main(command) == 1
    assert "does not write enough different questions for nostalgia: it wrote none" in capsys.readouterr().err
    assert not path.exists()


def test_the_embedded_model_ends_properly_with_what_it_can(tmp_path, capsys, monkeypatch):
    """It is no writer of questions: what it wrote is kept, each once, and the line says how many there are."""
    monkeypatch.setattr("mlx_emotion.queries.generate.ATTEMPTS", 1)
    path = tmp_path / "set.json"
    assert main(["queries", "generate", "-m", "embedded", "-o", str(path), "-e", "nostalgia", "-n", "16"]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    last = captured.err.splitlines()[-1]
    found = read(path)[0]["nostalgia"] if path.exists() else []
    counted = f"{path} has {len(found)} of 16" if found else "it wrote none, and no file was made"
    assert last == f"mlx-emotion: embedded does not write enough different questions for nostalgia: {counted}"
    assert Distinct(found).questions == found
    assert all(question(q, "nostalgia") == q for q in found)


@pytest.mark.parametrize("emotion", ["base", "No", "a,b"])
def test_a_wrong_name_is_told_before_a_model_is_loaded(emotion, tmp_path, capsys):
    assert main(["queries", "generate", "-e", emotion, "-m", "/nowhere", "-o", str(tmp_path / "x")]) == 2
    assert "--emotion" in capsys.readouterr().err


def test_a_file_of_something_else_is_not_overwritten(tmp_path, capsys):
    path = tmp_path / "set.json"
    path.write_text(json.dumps(["not", "a", "set"]))
    assert main(["queries", "generate", "-e", "nostalgia", "-m", "/nowhere", "-o", str(path)]) == 1
    assert "wanted one JSON object" in capsys.readouterr().err
    assert json.loads(path.read_text()) == ["not", "a", "set"]


def test_the_model_is_asked_unsteered_and_in_batches(tiny_model_path, monkeypatch):
    tiny = mlx_emotion.load(str(tiny_model_path))
    passes = []

    def work(voice):
        forward = voice.taps.forward

        def seen(tokens, cache, deltas, *rest, **named):
            passes.append((tokens.shape[0], deltas))
            return forward(tokens, cache, deltas, *rest, **named)

        monkeypatch.setattr(voice.taps, "forward", seen)
        return list(asker(voice, 2, 1.0, lambda: False)(iter(["one", "two", "three"])))

    answers = tiny.run(work)
    assert len(answers) == 3
    assert all(isinstance(a, str) for a in answers)
    assert max(rows for rows, _ in passes) == 2
    assert all(deltas is None for _, deltas in passes)
