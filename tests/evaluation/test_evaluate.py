"""A whole evaluation of a tiny model: plan, answers, scores, report; killed and resumed."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import checkpoints
import pytest

import mlx_emotion
from mlx_emotion.cli import main
from mlx_emotion.engine import shared
from mlx_emotion.errors import EvaluationError, Interrupted, MLXEmotionError, QueryError, UsageError
from mlx_emotion.evaluation import probes, report
from mlx_emotion.evaluation.generate import ANSWER
from mlx_emotion.evaluation.judges import read_labels
from mlx_emotion.evaluation.perplexity import perplexities
from mlx_emotion.evaluation.plan import EQ_PLUS, Plan, Settings, circumplex_data, read_queries
from mlx_emotion.evaluation.run import Judging, Run, make_answers, make_report, plan_for, score
from mlx_emotion.evaluation.score import Verdicts, _circumplex, _statements
from mlx_emotion.files import extraction_folder
from mlx_emotion.models import load_model
from mlx_emotion.vectors import EmotionVectors

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce_paper.py"
SMALL = {"emotions": ["base", "fear", "joy"], "intensities": [0, 1], "max_tokens": 5, "batch_size": 2, "limit": 2}
FAST = ("tables", "statements", "probes", "readout")
RESULTS = ("answers.jsonl", "scores.json", "scores.csv", "report.html", "report.md")


@pytest.fixture(scope="module")
def model(tiny_model_path, pack_path):
    return mlx_emotion.load(str(tiny_model_path), vectors=pack_path)


@pytest.fixture(scope="module")
def pack(pack_path):
    return EmotionVectors.load(pack_path)


@pytest.fixture(scope="module")
def done(model, tiny_model_path, queries_path, tmp_path_factory) -> Run:
    """A finished run with every part that needs no extraction."""
    run = Run(tmp_path_factory.mktemp("runs") / "whole")
    plan = plan_for(model, queries=queries_path, parts=[*FAST, "circumplex", "fading"], **SMALL)
    make_answers(model, str(tiny_model_path), plan, run)
    score(run, Judging())
    make_report(run)
    return run


# The plan.


def test_no_condition_is_asked_twice_and_rows_differ_in_feeling(pack, queries_path):
    plan = Plan(Settings.make(pack, queries=queries_path, **SMALL), pack)
    ids = [t.id for t in plan.tasks]
    assert len(ids) == len(set(ids))
    first = [t.condition.id for t in plan.tasks[: len(plan.conditions)]]
    assert first == [c.id for c in plan.conditions]
    assert {"plain", "steering:base@1", "steering:fear@0.25", "prompt:joy", "last:fear@1", "mix:fear+joy"} <= set(first)


def test_intensities_are_calibrated_and_scales_are_raw(pack, queries_path):
    by_intensity = Plan(Settings.make(pack, queries=queries_path, emotions=["fear"], intensities=[0.5]), pack)
    by_scale = Plan(Settings.make(pack, queries=queries_path, emotions=["fear"], scales=[0.5]), pack)
    assert dict(by_intensity.conditions[1].scales) == {"fear": 1.0}  # 1.0 is scale 2 in this pack
    assert dict(by_scale.conditions[1].scales) == {"fear": 0.5}
    assert by_scale.full("fear") == 2.0


def test_the_twelve_states_in_three_ways(pack, queries_path):
    plan = Plan(Settings.make(pack, queries=queries_path, parts=["circumplex"], limit=1), pack)
    tasks = plan.tasks
    assert len(tasks) == 12 * 3
    at_zero = {t.condition.way: t for t in tasks if t.condition.angle == 0}
    assert "valence +1.00" in at_zero["prompt"].text
    assert not at_zero["prompt"].condition.scales
    assert at_zero["steering"].text == at_zero["steering"].query.text
    assert at_zero["both"].condition.scales == at_zero["steering"].condition.scales != ()


def test_a_list_of_400_is_read_as_eq_plus(tmp_path):
    path = tmp_path / "eq+.json"
    path.write_text(json.dumps([f"question {i}" for i in range(400)]))
    queries, _ = read_queries(path)
    assert [(g, len(q)) for g, q in queries.items()] == list(EQ_PLUS)
    assert queries["neutral"][0] == "question 250"
    path.write_text(json.dumps(["one", "two"]))
    assert read_queries(path)[0] == {"all": ["one", "two"]}
    path.write_text(json.dumps(["one", "\ud800"]))
    with pytest.raises(QueryError, match="question 1 has half a character"):
        read_queries(path)


def test_every_group_of_ones_own_queries_is_asked(pack, tmp_path):
    path = tmp_path / "queries.json"
    path.write_text(json.dumps({"fear": ["Boo?"], "weather": ["Will it rain?"]}))
    settings = Settings.make(pack, queries=path, emotions=["fear"])
    assert set(settings.queries) == set(settings.read) == {"fear", "weather"}
    assert "weather" not in Settings.make(pack, emotions=["fear"]).queries


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"emotions": ["faer"]}, UsageError, "did you mean 'fear'"),
        ({"scales": [1], "intensities": [1]}, UsageError, "not both"),
        ({"scales": [float("nan")]}, UsageError, "numbers"),
        ({"parts": ["tabels"]}, UsageError, "known are tables"),
        ({"limit": 0}, UsageError, "limit is 0"),
        ({"max_tokens": 0}, UsageError, "max-tokens is 0"),
        ({"batch_size": 257}, UsageError, "batch-size is 257"),
        ({"queries": "no-such.json"}, QueryError, "no-such.json"),
    ],
)
def test_wrong_settings(pack, given, error, says):
    with pytest.raises(error, match=says):
        Settings.make(pack, **given)


def uncalibrated(pack: EmotionVectors, *without: str) -> EmotionVectors:
    entries = {e: {**v, "scale": None if e in without else v["scale"]} for e, v in pack.info.emotions.items()}
    return EmotionVectors(dict(pack), dataclasses.replace(pack.info, emotions=entries))


def test_without_calibration_intensities_are_called_scales(pack, model, tmp_path):
    raw, few = uncalibrated(pack, "fear", "joy"), {"emotions": ["fear", "joy"], "intensities": [0.5]}
    plan = Plan(Settings.make(raw, **few), raw)
    assert plan.settings.unit == "scale"
    assert dict(plan.conditions[1].scales) == {"fear": 0.5}
    run = Run(tmp_path)
    run.begin("tiny", model.identity, model.quantization, plan)
    assert run.read()["pack"]["calibrated"] is False
    assert run.read()["pack"]["uncalibrated"] == ["fear", "joy"]
    half = uncalibrated(pack, "fear")
    with pytest.raises(UsageError, match="fear not calibrated, others are"):
        Settings.make(half, **few)
    with pytest.raises(UsageError, match="fear not calibrated, others are"):
        Settings.make(half, emotions=["fear", "joy"])
    assert Settings.make(half, emotions=["fear", "joy"], scales=[1]).unit == "scale"
    assert Settings.make(half, emotions=["joy"], intensities=[0.5]).unit == "intensity"


# A whole run.


def test_the_folder_has_its_fixed_names(done):
    assert {*RESULTS, "run.json", "figures"} <= {p.name for p in done.folder.iterdir()}
    names = {p.stem for p in done.figures.iterdir()}
    assert {"dose_response", "circumplex", "fading", "linearity", "addition"} <= names
    assert all((done.figures / f"{n}{s}").stat().st_size for n in names for s in (".png", ".svg"))


def test_scores_are_those_of_the_answers(done):
    answers, scores = done.read_answers(), json.loads(done.scores.read_text())
    assert scores["answers"] == len(answers) == done.read()["answers"]
    with open(done.table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["id"] for r in rows] == [a["id"] for a in answers]
    for condition in scores["conditions"]:
        words = [int(r["words"]) for r in rows if r["condition"] == condition["id"]]
        assert condition["n"] == len(words)
        assert condition["metrics"]["words"]["mean"] == pytest.approx(sum(words) / len(words))


def test_the_report_needs_no_other_file_and_says_who_judged(done):
    page = done.report.read_text()
    assert "<img" in page
    assert 'src="figures' not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "built-in lexicon" in page
    assert "topic-word overlap" in done.markdown.read_text()


def test_a_steered_row_answers_otherwise_than_the_plain_one(done):
    answers = {a["id"]: a["answer"] for a in done.read_answers() if a["part"] == "tables"}
    plain = {i.split("|")[1]: a for i, a in answers.items() if i.startswith("plain|")}
    steered = {i.split("|")[1]: a for i, a in answers.items() if i.startswith("steering:fear@1|")}
    assert plain.keys() == steered.keys()
    assert plain != steered


def test_the_logit_shift_is_linear_at_doses_near_zero(model, tiny_model_path, queries_path, tmp_path):
    """A smaller full dose is nearer to the tangent: R² goes to 1, and so does the sum of two shifts."""
    found = []
    for factor in (1.0, 0.05):
        pack = model.vectors
        entries = {e: {**v, "scale": v["scale"] * factor} for e, v in pack.info.emotions.items()}
        info = type(pack.info)(**{**vars(pack.info), "emotions": entries})
        plan = Plan(
            Settings.make(pack, queries=queries_path, parts=["probes"], emotions=["fear", "joy"]),
            EmotionVectors(dict(pack), info),
        )
        run = Run(tmp_path / str(factor))
        make_answers(model, str(tiny_model_path), plan, run)
        found.append(json.loads(run.probes.read_text()))
    large, small = found
    assert small["curves"]["fear"]["r2"] > max(0.999, large["curves"]["fear"]["r2"])
    assert small["pairs"]["fear+joy"] > 0.999


def test_a_loop_counts_as_repetition_beside_its_emotion(done, tmp_path):
    """98 % "anger" of a looping text: the table shows both."""
    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    run.judgements.unlink()
    lines = [json.loads(line) for line in run.answers.read_text().splitlines()]
    for line in lines:
        if line["condition"] == "steering:fear@1":
            line["answer"] = "I am terrified. " * 20
    run.answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {c["id"]: c["metrics"] for c in score(run, Judging(metrics=("classifier", "eas")))["conditions"]}
    fear = metrics["steering:fear@1"]
    assert fear["classifier"]["mean"] > 0.98
    assert fear["low_distinct"]["mean"] == fear["looping"]["mean"] == 1
    assert "perplexity" not in fear


def test_a_conversation_says_whether_its_instruction_was_still_in_the_prompt(done):
    rows = [a for a in done.read_answers() if a["part"] == "fading"]
    found = {(a["way"], a["turn"]): a.get("instruction_in_prompt") for a in rows}
    assert found["prompt", 0] is True
    assert found["prompt", 10] is False  # eleven turns of bytes are more than this model's context
    assert {v for (way, _), v in found.items() if way != "prompt"} == {None}


def test_a_turn_is_as_long_as_the_whole_conversation_allows(model, pack, queries_path):
    from mlx_emotion.evaluation.generate import SHORTEST_TURN, TURN_TOKENS, turn_limit

    plan = Plan(Settings.make(pack, queries=queries_path, parts=["fading"], limit=1), pack)
    tasks = plan.chunks[0].tasks

    def work(voice):
        return turn_limit(voice, tasks[:1], 128), turn_limit(voice, tasks[:6], 128), turn_limit(voice, tasks, 128)

    one, six, eleven = model.run(work)
    assert one == TURN_TOKENS > six > eleven == SHORTEST_TURN


# Again, from where it was.


def compare(a: Run, b: Run) -> None:
    for name in RESULTS:
        assert (a.folder / name).read_bytes() == (b.folder / name).read_bytes(), name
    for path in a.figures.iterdir():
        assert path.read_bytes() == (b.figures / path.name).read_bytes(), path.name


def test_stopped_and_torn_it_ends_as_an_undisturbed_run(done, model, tiny_model_path, queries_path, tmp_path):
    run = Run(tmp_path / "again")
    plan = plan_for(model, queries=queries_path, parts=[*FAST, "circumplex", "fading"], **SMALL)
    steps = 0

    def stopped() -> bool:
        nonlocal steps
        steps += 1
        return steps > 90

    with pytest.raises(Interrupted, match="goes on from"):
        make_answers(model, str(tiny_model_path), plan, run, stopped=stopped)
    whole = len(run.read_answers())
    assert 0 < whole < len(plan.tasks)
    with open(run.answers, "ab") as file:  # as a machine that stops in the middle of writing leaves it
        file.write(done.answers.read_bytes().splitlines(keepends=True)[whole] + b'{"id": "plain|fe')
    make_answers(model, str(tiny_model_path), plan, run)
    score(run, Judging())
    half = run.judgements.read_bytes()
    run.judgements.write_bytes(half[: len(half) // 2])
    score(run, Judging())
    make_report(run)
    compare(done, run)


def test_killed_in_every_stage_it_ends_as_an_undisturbed_run(tiny_model_path, pack_path, queries_path, tmp_path):
    """Every part: killed while it probes the model, while it answers and while it scores."""

    def command(folder: Path) -> list[str]:
        options = f"--emotions fear,joy --scales 0,1 --limit 1 --max-tokens 4 --batch-size 2 -o {folder}"
        files = ["--model", str(tiny_model_path), "--vectors", str(pack_path), "--queries", str(queries_path)]
        return [sys.executable, "-m", "mlx_emotion", "evaluate", *files, *options.split()]

    run, ended = Run(tmp_path / "killed"), []
    for begun in (run.vectors("pca"), run.answers, run.judgements):
        process = subprocess.Popen(command(run.folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 600
        while not (begun.exists() and begun.stat().st_size) and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        ended.append(process.wait())
    assert ended[:2] == [-signal.SIGKILL] * 2
    assert ended[2] in (-signal.SIGKILL, 0)  # little is left after the first verdict
    subprocess.run(command(run.folder), check=True, capture_output=True)
    fresh = Run(tmp_path / "fresh")
    subprocess.run(command(fresh.folder), check=True, capture_output=True)
    compare(fresh, run)


def test_an_answer_file_of_another_run_is_refused(model, queries_path, tmp_path):
    plan, run = plan_for(model, queries=queries_path, parts=FAST, **SMALL), Run(tmp_path)
    run.begin("tiny", model.identity, model.quantization, plan)
    run.answers.write_text(json.dumps({**dict.fromkeys(ANSWER, ""), "id": "of another run"}) + "\n")
    with pytest.raises(EvaluationError, match="not this run's"):
        make_answers(model, "tiny", plan, run)
    run.answers.write_text("not json\n")
    with pytest.raises(EvaluationError, match="line 1"):
        make_answers(model, "tiny", plan, run)


def test_other_settings_are_refused_until_restart(done, model, queries_path, tmp_path):
    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    mine = [run.folder / "notes.txt", run.figures / "mine.png", run.folder / "vectors" / "mine.safetensors"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    plan = plan_for(model, queries=queries_path, parts=[*FAST, "circumplex", "fading"], seed=7, **SMALL)
    with pytest.raises(EvaluationError, match=r"seed: there 0, asked 7.*--restart"):
        run.begin("tiny", model.identity, model.quantization, plan)
    assert run.answers.exists()
    run.begin("tiny", model.identity, model.quantization, plan, restart=True)
    assert not run.answers.exists()
    assert [p.name for p in run.figures.iterdir()] == ["mine.png"]
    assert all(p.exists() for p in mine)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--model", "other/model"], "model: there"),
        (["--limit", "7"], "limit: there 2, asked 7"),
        (["--seed", "3"], "seed: there 0, asked 3"),
        (["--scales", "0,1"], "unit: there intensity, asked scale"),
        (["--restart"], "--restart makes all answers anew"),
    ],
)
@pytest.mark.parametrize("stage", ["score", "report"])
def test_a_later_stage_refuses_what_the_run_is_not(done, stage, given, says, capsys):
    before = done.scores.read_bytes()
    assert main(["evaluate", "-o", str(done.folder), "--stage", stage, *given]) in (1, 2)
    assert says in capsys.readouterr().err
    assert done.scores.read_bytes() == before


@pytest.mark.parametrize("stage", ["generate", "report"])
@pytest.mark.parametrize("given", [["--judge", "builtin"], ["--metrics", "eps"], ["--ask-again"]])
def test_only_scoring_takes_judges(done, given, stage, capsys):
    assert main(["evaluate", "-o", str(done.folder), "--stage", stage, *given]) == 2
    assert f"{given[0]} is for --stage score" in capsys.readouterr().err


def test_a_later_stage_takes_what_the_run_is(done, tiny_model_path, pack_path, queries_path, tmp_path):
    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    same = ["--model", str(tiny_model_path), "--vectors", str(pack_path), "--queries", str(queries_path)]
    same += ["--limit", "2", "--seed", "0", "--emotions", "base,fear,joy", "--intensities", "1,0", "--max-tokens", "5"]
    assert main(["evaluate", "-o", str(run.folder), "--stage", "score", *same]) == 0


def changed(pack: EmotionVectors, **entry) -> EmotionVectors:
    entries = {**pack.info.emotions, "fear": {**pack.info.emotions["fear"], **entry}}
    return EmotionVectors(dict(pack), dataclasses.replace(pack.info, emotions=entries))


def test_another_pack_or_other_questions_are_another_run(model, pack, queries_path, tmp_path, monkeypatch):
    def plan(own: EmotionVectors) -> Plan:
        return Plan(Settings.make(own, queries=queries_path, parts=["circumplex"], limit=1), own)

    def begin(own: EmotionVectors) -> None:
        Run(tmp_path).begin("tiny", model.identity, model.quantization, plan(own))

    begin(pack)
    begin(pack)
    for other in (
        changed(pack, instructions=["Be afraid."]),
        changed(pack, valence=0.5, arousal=0.5),
        EmotionVectors(dict(pack), dataclasses.replace(pack.info, base_scale=3.0)),
        EmotionVectors(dict(pack), dataclasses.replace(pack.info, site="residual")),
    ):
        with pytest.raises(EvaluationError, match="pack: there"):
            begin(other)
    data = circumplex_data()
    monkeypatch.setattr("mlx_emotion.evaluation.plan.circumplex_data", lambda: {**data, "questions": ["Why?"]})
    with pytest.raises(EvaluationError, match="questions, instructions or scales: there"):
        begin(pack)


def test_other_versions_of_libraries_are_told(done, model, tiny_model_path, queries_path, tmp_path):
    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    about = json.loads(run.file.read_text())
    run.file.write_text(json.dumps({**about, "versions": {**about["versions"], "mlx": "0.1"}}))
    plan = plan_for(model, queries=queries_path, parts=[*FAST, "circumplex", "fading"], **SMALL)
    said: list[str] = []
    make_answers(model, str(tiny_model_path), plan, run, warn=said.append)
    assert len(said) == 1
    assert "mlx 0.1, now" in said[0]


def test_two_processes_do_not_share_a_folder(done):
    with done.alone(), pytest.raises(EvaluationError, match="another process is at work"):
        score(done, Judging())
    score(done, Judging())


def test_a_model_folder_is_known_by_its_whole_path(done, tiny_model_path, monkeypatch):
    from mlx_emotion.evaluation.generate import full_name

    monkeypatch.chdir(tiny_model_path.parent)
    assert full_name(tiny_model_path.name) == str(tiny_model_path.resolve()) == done.read()["model"]["name"]
    assert full_name("owner/name") == "owner/name"


@pytest.mark.parametrize("name", ["run.json", "figures/topic.png"])
def test_a_folder_that_is_no_run_is_never_cleared(name, model, queries_path, tmp_path):
    plan, run = plan_for(model, queries=queries_path, parts=FAST, **SMALL), Run(tmp_path)
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text('{"format": 1}')
    with pytest.raises(EvaluationError, match="give another --output"):
        run.begin("tiny", model.identity, model.quantization, plan, restart=True)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [mine]


def test_vectors_of_other_methods_are_made_whole_or_begun_again(
    model, tiny_model_path, queries_path, tmp_path, monkeypatch
):
    """Gone on with, what was left would be answered in other batches than in an undisturbed run."""
    resumed = []

    class Watched(probes.Extraction):
        def run(self, *arguments):
            resumed.append(self.resumed)
            return super().run(*arguments)

    monkeypatch.setattr(probes, "Extraction", Watched)
    plan, run = plan_for(model, queries=queries_path, parts=["baselines"], **SMALL), Run(tmp_path / "run")
    steps = iter(range(100))
    with pytest.raises(Interrupted, match="extraction"):
        make_answers(model, str(tiny_model_path), plan, run, stopped=lambda: next(steps) > 40)
    assert any(extraction_folder().iterdir())
    make_answers(model, str(tiny_model_path), plan, run)
    assert resumed == [0, 0, 0]  # last; pca, stopped; pca


def test_an_emotion_without_questions_in_the_shipped_set(pack, tiny_model_path, queries_path, tmp_path):
    entries = {**pack.info.emotions, "spite": {"instructions": ["Be spiteful."], "count": 1, "scale": 2.0}}
    own = EmotionVectors({**pack, "spite": pack["fear"]}, dataclasses.replace(pack.info, emotions=entries))
    model = mlx_emotion.load(str(tiny_model_path), vectors=own.save(tmp_path / "own.safetensors"))
    small = {**SMALL, "emotions": ["fear", "spite"], "queries": queries_path, "limit": 1}
    plan, run = plan_for(model, parts=["tables", "baselines"], **small), Run(tmp_path / "run")
    make_answers(model, str(tiny_model_path), plan, run)
    kinds = {(c["kind"], c["emotion"]) for c in score(run, Judging())["conditions"] if c["part"] == "baselines"}
    assert kinds == {("prompt", "fear"), ("prompt", "spite"), ("last", "fear"), ("pca", "fear")}
    make_report(run)
    assert "no questions for spite" in run.markdown.read_text()


# Bad input.


def test_a_stage_before_its_time(tmp_path, done):
    with pytest.raises(EvaluationError, match="--stage generate"):
        score(Run(tmp_path), Judging())
    run = Run(tmp_path / "begun")
    run.folder.mkdir()
    shutil.copy(done.file, run.file)
    with pytest.raises(EvaluationError, match=r"0 of \d+ answers"):
        score(run, Judging())
    with pytest.raises(EvaluationError, match="--stage score"):
        make_report(run)


def test_a_judge_out_of_reach_keeps_answers_and_earlier_verdicts(done, tmp_path, monkeypatch):
    from mlx_emotion.evaluation import judges

    monkeypatch.setattr(judges.Endpoint, "pause", 0.0)
    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    before = run.answers.read_bytes(), run.judgements.read_bytes()
    with pytest.raises(EvaluationError, match="out of reach"):
        score(run, Judging(judge="http://127.0.0.1:9#nobody"))
    assert (run.answers.read_bytes(), run.judgements.read_bytes()) == before


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run.json", '{"format": 1, "model": {}, "pack": {}, "settings": {}}', "answers is missing or wrong"),
        ("run.json", "[" * 100_000, "run.json: not readable"),
        ("answers.jsonl", '{"id": "plain|fear/0"}\n', "line 1: condition, part, kind, question, answer missing"),
        ("answers.jsonl", "[" * 100_000 + "\n", "line 1: not a JSON object"),
        ("judgements.jsonl", '{"judge": 1}\n', "line 1: judge, id missing or wrong"),
        ("readouts.json", '{"emotions": 3}', "damaged or of another version"),
        ("scores.json", '{"model": {}, "conditions": 3}', "damaged or of another version"),
    ],
)
def test_a_damaged_file_is_one_line(done, tmp_path, name, content, says):
    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    (run.folder / name).write_text(content)
    with pytest.raises(EvaluationError, match=says) as found:
        make_report(run) if name == "scores.json" else score(run, Judging())
    assert "\n" not in str(found.value)


def test_where_memory_runs_out_it_is_one_line_and_the_answers_are_kept(
    done, model, tiny_model_path, queries_path, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise RuntimeError("[malloc] Unable to allocate 999 bytes.\nmore")

    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    run.judgements.unlink()
    before = run.answers.read_bytes()
    monkeypatch.setattr("mlx_emotion.evaluation.score.perplexities", fail)
    with pytest.raises(MLXEmotionError, match=r"MLX failed: .*Unable to allocate 999 bytes"):
        score(run, Judging())
    assert run.answers.read_bytes() == before
    monkeypatch.setattr("mlx_emotion.evaluation.run.generate", fail)
    plan = plan_for(model, queries=queries_path, parts=[*FAST, "circumplex", "fading"], **SMALL)
    with pytest.raises(MLXEmotionError, match=r"MLX failed: .*Unable to allocate 999 bytes"):
        make_answers(model, str(tiny_model_path), plan, run)
    assert run.answers.read_bytes() == before


def test_what_is_no_number_is_missing_and_never_nan(done, tmp_path, monkeypatch):
    values = itertools.cycle([math.nan, math.inf, 2.0])
    monkeypatch.setattr("mlx_emotion.evaluation.score.perplexities", lambda _, texts: enumerate(values_of(texts)))

    def values_of(texts):
        return [next(values) for _ in texts]

    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    run.judgements.unlink()
    scores = score(run, Judging())
    assert {c["metrics"]["perplexity"]["mean"] for c in scores["conditions"]} <= {2.0, None}
    assert sum(c["metrics"]["perplexity"]["missing"] for c in scores["conditions"]) > 0
    for path in (run.judgements, run.scores, run.table):
        assert not re.search(r"\b(NaN|nan|Infinity|inf)\b", path.read_text()), path


def test_an_empty_answer_is_missing_for_every_judge(done, tmp_path):
    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    run.judgements.unlink()
    lines = [json.loads(line) for line in run.answers.read_text().splitlines()]
    for line in lines:
        if line["condition"] == "steering:fear@1":
            line["answer"] = " "
    run.answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {c["id"]: c["metrics"] for c in score(run, Judging())["conditions"]}["steering:fear@1"]
    for metric in ("perplexity", "adherence", "eps", "eas", "classifier"):
        assert metrics[metric]["mean"] is None, metric
        assert metrics[metric]["missing"] > 0, metric


def test_missing_verdicts_are_asked_for_again_when_that_is_wanted(tmp_path):
    asked = []

    class Shy:
        name, label, batch = "shy", "shy", 2

        def judge(self, items):
            asked.append([i.answer for i in items])
            return [None if len(asked) == 1 and i.answer == "b" else 1 for i in items]

    rows = [{"id": a, "question": "?", "answer": a} for a in ("a", "b", "c", "")]
    run = Run(tmp_path)
    found = [Verdicts(run, lambda *_: None, lambda: False, again).of(Shy(), rows) for again in (False, False, True)]
    assert found == [[1, None, 1, None], [1, None, 1, None], [1, 1, 1, None]]
    assert asked == [["a", "b"], ["c"], ["a", "b"]]


def test_a_verdict_that_is_there_stays_and_is_not_asked_for_again(tmp_path):
    asked = []

    class Filter:
        name, label, batch, alone = "filter", "filter", 4, True

        def judge(self, items):
            asked.append([i.answer for i in items])
            return [None if i.answer == "bc"[len(asked) > 1] else 1 for i in items]

    class Together(Filter):
        name, alone = "together", False

    rows = [{"id": a, "question": "?", "answer": a} for a in "abcd"]
    for judge, again in ((Filter(), ["b"]), (Together(), ["a", "b", "c", "d"])):
        asked.clear()
        run = Run(tmp_path / judge.name)
        run.folder.mkdir()
        found = [Verdicts(run, lambda *_: None, lambda: False, a).of(judge, rows) for a in (False, True)]
        assert found == [[1, None, 1, 1], [1, 1, 1, 1]]
        assert asked == [["a", "b", "c", "d"], again]
        assert Verdicts(run, lambda *_: None, lambda: False).of(judge, rows) == [1, 1, 1, 1]


def test_a_label_table_must_have_what_the_built_in_judge_says(done, tmp_path, capsys):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({label: angle for label, angle in read_labels(None).items() if label != "fear"}))
    assert main(["evaluate", "-o", str(done.folder), "--stage", "score", "--labels", str(path)]) == 1
    assert "built-in lexicon has labels without a place on the circumplex: fear" in capsys.readouterr().err


def test_the_time_left_is_of_the_work_under_way(monkeypatch):
    from rich.progress import Progress

    from mlx_emotion.cli.progress import progress_bar

    begun = []
    monkeypatch.setattr(Progress, "reset", lambda *_, total, completed: begun.append((completed, total)))
    with progress_bar("scoring") as update:
        for done, total in ((64, 640), (640, 640), (16, 640), (32, 640), (5, 9)):
            update(done, total)
    assert begun == [(64, 640), (16, 640), (5, 9)]


# The script that reproduces the paper.


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("reproduce_paper", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "reproduce_paper", module)
    spec.loader.exec_module(module)
    return module


def reproduce(script, monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["reproduce_paper.py", *map(str, arguments)])
    return script.main()


def test_reproduce_asks_only_on_a_terminal(script, tiny_model_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert reproduce(script, monkeypatch, tiny_model_path, "--output", tmp_path / "out") == 2
    assert "give --yes" in capsys.readouterr().err


def test_a_trial_pack_is_not_taken_for_the_real_one(script, tiny_model_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "work", lambda command: Path(command[command.index("--output") + 1]).touch() or 0)
    monkeypatch.setattr(script, "summary", lambda folders: "")
    command = [tiny_model_path, "--output", tmp_path / "out", "--yes"]
    assert reproduce(script, monkeypatch, *command, "--limit", "1") == 0
    assert reproduce(script, monkeypatch, *command) == 1
    assert "limit: there 1, asked None" in capsys.readouterr().err
    assert reproduce(script, monkeypatch, *command, "--limit", "1") == 0


def test_a_run_that_is_told_to_stop_begins_no_other_model(script, tiny_model_path, tmp_path, monkeypatch):
    """Also where the command under way dies of the signal, as one does that is loading a model."""
    begun = []

    def dies(command):
        begun.append(command)
        script.stopping.set()
        return -15

    monkeypatch.setattr(script, "work", dies)
    out = tmp_path / "out"
    assert reproduce(script, monkeypatch, "embedded", tiny_model_path, "--output", out, "--yes") == 130
    assert len(begun) == 1


@pytest.mark.parametrize("ignored", [True, False])
def test_a_hang_up_that_was_ignored_stays_so(script, monkeypatch, ignored):
    told = []

    class Child:
        def send_signal(self, number):
            told.append(number)

        def wait(self):
            os.kill(os.getpid(), signal.SIGHUP)
            return 0

    monkeypatch.setattr(script.subprocess, "Popen", lambda *_, **__: Child())
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert script.work([]) == 0
    finally:
        signal.signal(signal.SIGHUP, old)
    assert (told, script.stopping.is_set()) == (([], False) if ignored else ([signal.SIGTERM], True))


def test_a_model_that_fails_leaves_the_others_their_summary(script, tiny_model_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "work", lambda command: 1 if "embedded" in command else 0)
    monkeypatch.setattr(script, "summary", lambda folders: ", ".join(folders))
    out = tmp_path / "out"
    assert reproduce(script, monkeypatch, "embedded", tiny_model_path, "--output", out, "--yes") == 1
    assert (out / "summary.md").read_text() == str(tiny_model_path)
    assert "failed: embedded (status 1)" in capsys.readouterr().err


def test_the_pack_has_all_emotions_and_is_calibrated_unless_that_is_left_out(script, tmp_path, monkeypatch, capsys):
    assert reproduce(script, monkeypatch, "embedded", "--output", tmp_path / "out", "--dry-run") == 0
    extract = next(line for line in capsys.readouterr().out.splitlines() if " extract " in line)
    assert "--emotions" not in extract
    assert "--no-calibrate" not in extract
    assert reproduce(script, monkeypatch, "embedded", "--output", tmp_path, "--dry-run", "--no-calibrate") == 0
    assert "--no-calibrate" in capsys.readouterr().out


def test_only_empty_answers(done, tmp_path):
    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    lines = [{**json.loads(line), "answer": ""} for line in run.answers.read_text().splitlines()]
    run.answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(EvaluationError, match=r"every answer .* is empty"):
        score(run, Judging())


def test_one_question_gives_means_without_intervals(model, tiny_model_path, tmp_path):
    path = tmp_path / "one.json"
    path.write_text('["Who is there?"]')
    run = Run(tmp_path / "one")
    make_answers(model, str(tiny_model_path), plan_for(model, **{**SMALL, "queries": path, "parts": ["tables"]}), run)
    scores = score(run, Judging())
    words = scores["conditions"][0]["metrics"]["words"]
    assert words["mean"] is not None
    assert words["low"] is None
    make_report(run)


def test_the_papers_row_stands_beside_a_model_of_theirs(done, tmp_path):
    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    scores = json.loads(run.scores.read_text())
    scores["model"]["id"] = "mlx-community/Qwen2.5-7B-Instruct-4bit"
    run.scores.write_text(json.dumps(scores))
    make_report(run)
    text = run.markdown.read_text()
    assert "paper: Qwen2.5, 1 × base | – | 5.41 | 97.5 | 50.0 | 0.862" in text
    assert "paper: Qwen2.5-7B, joy | 26.2" in text
    assert "EPS by built-in lexicon" in text
    assert "perplexity is the evaluated model's own" in text
    scores["settings"]["unit"] = "scale"
    (table,) = [b for b in report.build(scores, [], []) if getattr(b, "header", ("",))[0] == "condition"]
    assert [row[0] for row in table.rows][:2] == ["plain", "paper: Qwen2.5, 0 × base"]


def test_the_label_table_is_the_one_that_was_used(done, tmp_path):
    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({**read_labels(None), "joy": 45}))
    score(run, Judging(labels=str(path)))
    make_report(run)
    text = run.markdown.read_text()
    assert "joy 45°," in text
    assert "anger 99° (angry)" in text


def test_an_answer_without_a_label_is_missing_and_not_neutral():
    way = {"way": "prompt", "angle": 0}
    rows = [
        {**way, "top": "joy", "direction": 0.0, "cosine": 1.0},
        {**way, "top": "neutral", "direction": None, "cosine": None},
        {**way, "top": None, "direction": None, "cosine": None},
    ]
    found = _circumplex(rows, 0)
    assert found["prompt"]["neutral"] == 0.5
    assert (found["prompt"]["all"]["mean"], found["prompt"]["all"]["missing"]) == (1.0, 1)
    assert found["both"]["neutral"] is None


def test_the_rank_correlation_ends_at_the_full_dose():
    def row(kind: str, dose: float | None, p: float) -> dict:
        return {
            "condition": kind if dose is None else f"{kind}:fear@{dose:g}", "kind": kind, "emotion": "fear",
            "dose": dose, "emotions": {"fear": p}, "group": "fear", "question": "Boo?", "id": f"{kind}@{dose}|fear/0",
        }  # fmt: skip

    rows = [row("plain", None, 0.2), *(row("steering", d, p) for d, p in ((-1, 0.9), (0.5, 0.4), (1, 0.6), (1.5, 0)))]
    assert _statements(rows, {"fear": 1.0}, 0)["curves"]["fear"]["rank"] == pytest.approx(1)


def test_change_at_the_full_dose_only_where_there_is_one(done):
    scores = json.loads(done.scores.read_text())

    def change() -> str:
        (table,) = [
            b for b in report.build(scores, [], []) if getattr(b, "header", ("", ""))[1] == "rises at every step"
        ]
        return next(row[3] for row in table.rows if row[0] == "fear")

    assert change() != report.NONE
    scores["full"]["fear"] = 1.2
    assert change() == report.NONE


def test_a_mean_of_nothing_says_how_much_is_missing():
    assert report.interval({"mean": None, "low": None, "high": None, "n": 0, "missing": 3}) == "– (3 missing)"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scales", "one,two"], "wanted numbers"),
        (["--metrics", "nice"], "unknown metric nice"),
        (["--emotions", ","], "--emotions is empty"),
        (["--labels", "no-such.json"], "no-such.json"),
        (["--judge", "http://127.0.0.1:9"], "names no model"),
        (["--judge", "./no-such-model"], "no model folder './no-such-model'"),
        (["--perplexity-model", "./no-such-model"], "no model folder './no-such-model'"),
        (["--classifier", "./no-such-model"], "cannot load the classifier ./no-such-model"),
        (["--stage", "report"], "--stage score"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, says, tmp_path, capsys):
    assert main(["evaluate", "-o", str(tmp_path / "out"), *arguments]) in (1, 2)
    assert says in capsys.readouterr().err


def test_with_an_adapter_the_model_itself_judges_with_it_too(tiny_model_path, pack_path, queries_path, tmp_path):
    adapter, folder = checkpoints.write_adapter(tiny_model_path, tmp_path / "adapter"), tmp_path / "run"
    command = ["evaluate", "--model", str(tiny_model_path), "--output", str(folder)]
    small = ["--adapter", str(adapter), "--vectors", str(pack_path), "--force", "--queries", str(queries_path)]
    few = ["--parts", "tables", "--emotions", "fear", "--intensities", "0,1", "--max-tokens", "5"]
    assert main([*command, *small, *few, "--stage", "generate"]) == 0
    assert main([*command, "--stage", "score", "--metrics", "perplexity"]) == 0
    run = Run(folder)
    with open(run.table, newline="") as file:
        found = [float(r["perplexity"]) for r in csv.DictReader(file)]
    texts = [f"{a['question']} {a['answer']}" for a in run.read_answers()]

    def work(adapter):
        return dict(perplexities(load_model(str(tiny_model_path), adapter=adapter), texts))

    tuned, plain = (shared().run(work, a) for a in (str(adapter), None))
    assert found == pytest.approx([tuned[i] for i in range(len(texts))], rel=1e-3)
    assert all(abs(tuned[i] / plain[i] - 1) > 1e-2 for i in range(len(texts)))


@pytest.mark.parametrize("command", [["evaluate", "-o", "out"], ["calibrate"]])
def test_a_model_without_a_pack(command, tiny_model_path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "-m", str(tiny_model_path)]) == 1
    err = capsys.readouterr().err
    assert "no pack for tiny" in err
    assert f"`mlx-emotion extract --model {tiny_model_path} --site attention`" in err


def test_that_command_can_be_copied_for_a_folder_with_a_space(tiny_model_path, tmp_path, capsys):
    spaced = tmp_path / "my model"
    spaced.symlink_to(tiny_model_path)
    assert main(["calibrate", "-m", str(spaced)]) == 1
    assert f"--model '{spaced}' --site" in capsys.readouterr().err


def test_a_missing_extra_is_told_before_any_work_and_answers_need_none(
    monkeypatch, tiny_model_path, pack_path, queries_path, tmp_path, capsys
):
    from mlx_emotion.evaluation import judges

    find = judges.importlib.util.find_spec
    monkeypatch.setattr(
        judges.importlib.util, "find_spec", lambda name: None if name in ("matplotlib", "sklearn") else find(name)
    )
    command = ["evaluate", "-o", str(tmp_path / "run"), "-m", str(tiny_model_path), "--vectors", str(pack_path)]
    few = ["--queries", str(queries_path), "--parts", "tables", "--emotions", "fear", "--max-tokens", "2"]
    assert main([*command, *few]) == 1
    assert "pip install 'mlx-emotion[eval]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*command, *few, "--stage", "generate"]) == 0
    assert Run(tmp_path / "run").read_answers()


def test_importing_the_stages_imports_nothing_heavy():
    code = (
        "import sys, mlx_emotion.cli.evaluate, mlx_emotion.evaluation.metrics, mlx_emotion.evaluation.judges\n"
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'sklearn', 'mlx_lm') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert found.stdout.strip() == "[]", found.stderr


def test_an_answer_cannot_write_into_the_report(done, tmp_path):
    run = Run(shutil.copytree(done.folder, tmp_path / "copy"))
    lines = [{**json.loads(line), "answer": "<script>x</script> a|b \x1b[31m"} for line in run.answers.open()]
    run.answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_report(run)
    for text in (run.report.read_text(), run.markdown.read_text()):
        assert "<script" not in text
        assert "\x1b" not in text
    assert "a\\|b" in run.markdown.read_text()
