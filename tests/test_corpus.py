"""The corpus checks stop a build with file and line; the shipped text passes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import corpus  # noqa: E402


def topic_text(name="dog") -> list[str]:
    return (SCRIPTS / "topics" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def problems(tmp_path):
    """The problems of a folder with these files, lines as a list each."""

    def check(*files):
        for n, lines in enumerate(files):
            (tmp_path / f"topic{n}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        try:
            corpus.load(tmp_path)
        except ValueError as error:
            return str(error).splitlines()
        return []

    return check


def test_the_shipped_corpus_is_large_and_clean():
    topics = corpus.load()
    assert len([t for t in topics if not t.general]) >= 80
    for topic in topics:
        assert len(topic.sections["questions"]) >= 8
        assert len(topic.sections["plain"]) >= 8
        assert all(len(topic.sections[e]) >= 6 for e in corpus.EMOTIONS)


def test_a_missing_emotion(problems):
    lines = topic_text()
    cut = lines[: lines.index("== fear")] + lines[lines.index("== joy") :]
    (found,) = problems(cut)
    assert "topic0.txt:1: section 'fear' has 0 lines, wanted 6" in found


def test_a_duplicate_answer_names_both_places(problems):
    lines = topic_text()
    at = lines.index("== anger") + 1
    lines.insert(at + 3, lines[at])
    assert any("topic0.txt" in p and ": the same as " in p and f":{at + 1}" in p for p in problems(lines))
    lines[at + 3] = f"[Well, nothing at all is like|] {lines[at]}"  # one of its readings
    assert any("topic0.txt" in p and ": the same as " in p and f":{at + 1}" in p for p in problems(lines))
    assert any(
        "topic1.txt" in p and "the same as" in p and "topic0.txt" in p for p in problems(topic_text(), topic_text())
    )


@pytest.mark.parametrize(
    "bad",
    [
        "The dog {name} barks at the gate.",
        "A dog [barks at the gate.",
        "My dog [a|b barks at the gate.",
        "TODO write of a dog here.",
    ],
)
def test_a_stray_placeholder(problems, bad):
    lines = topic_text()
    at = lines.index("== plain") + 1
    lines[at] = bad
    assert [p for p in problems(lines) if f"topic0.txt:{at + 1}: stray placeholder or bracket: {bad}" in p]


def test_a_stray_placeholder_in_the_wordings(tmp_path):
    path = tmp_path / "wordings.json"
    path.write_text(
        '{\n "very": ["Be {adjective}."],\n "little": ["Be {nuon}.",\n "Be {noun."],\n "about": ["Is it {thing}?"]\n}\n'
    )
    assert [p.rpartition(":")[0].removeprefix(str(path)) for p in corpus.check_wordings(path)] == [
        ":3: stray placeholder or bracket",
        ":4: stray placeholder or bracket",
        ":5: stray placeholder or bracket",
    ]
    path.write_text('{\n "very": [\n "Be {adjective}."\n "Be sad."\n]}\n')
    assert [p.startswith(f"{path}:4: ") for p in corpus.check_wordings(path)] == [True]


def test_files_that_cannot_be_read(tmp_path, monkeypatch, capsys):
    missing, latin = tmp_path / "missing.txt", tmp_path / "latin.txt"
    latin.write_bytes("== questions\nIs the café open?\n".encode("latin-1"))
    assert corpus.main([str(missing), str(latin)]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{missing}:1: No such file or directory"
    assert second.startswith(f"{latin}:1: 'utf-8' codec")
    monkeypatch.setattr(corpus, "FOLDER", tmp_path / "empty")
    assert corpus.main([]) == 1
    assert "no topic files" in capsys.readouterr().out


def test_an_answer_without_a_keyword_and_a_learned_test_question(problems):
    lines = topic_text()
    at = lines.index("== joy") + 1
    lines[at] = "What a lovely thing to hear on such a morning, I am so glad."
    held_out = lines.index("== held out") + 1
    lines[held_out] = "Do you know how you feel about dogs?"
    lines[lines.index("== questions") + 1] = "Do you know how you feel about dogs today?"
    found = problems(lines)
    assert any(f":{at + 1}: no keyword" in p for p in found)
    assert any(f":{held_out + 1}: held-out question shares words" in p for p in found)


def test_choices_expand_to_every_combination():
    assert corpus.expand("A [b|c] d [e|].") == ["A b d e.", "A b d .", "A c d e.", "A c d ."]


def test_dialogues_are_seeded_and_use_held_out_wordings_never():
    topics = corpus.load()
    one, two = (iter(corpus.Dialogues(topics, 5)) for _ in range(2))
    held_out = {line.text for t in topics for line in t.sections["held out"]}
    systems = 0
    for _ in range(2000):
        dialogue = next(one)
        assert dialogue == next(two)
        systems += dialogue[0].role == "system"
        assert 1 <= sum(t.role == "user" for t in dialogue) <= 4
        for turn in dialogue:
            assert not any(q in turn.content for q in held_out)
            assert not corpus.STRAY.search(turn.content)
    assert 200 < systems < 1200


def test_one_seed_is_one_text_in_every_process():
    code = "import corpus, itertools; print([*itertools.islice(corpus.Dialogues(corpus.load(), 5), 300)])"
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=SCRIPTS,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(texts[0]) > 10_000
    assert texts[0] == texts[1]
