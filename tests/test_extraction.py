"""Extraction on a tiny random model: the method's arithmetic, resuming, memory of what is done, bad query files."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import mlx_emotion
from mlx_emotion import extraction as extraction_module
from mlx_emotion.batch import Job, run_batch
from mlx_emotion.errors import ExtractionError, Interrupted, QueryError, UsageError
from mlx_emotion.extraction import Extraction, Plan
from mlx_emotion.files import extraction_folder
from mlx_emotion.vectors import EmotionVectors

QUERIES = {"fear": ["who is there", "what was that", "is it dark"], "joy": ["look at this", "we won", "a gift"]}


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return mlx_emotion.load(str(tiny_model_path))


def plan(**more) -> Plan:
    return Plan.make(queries=QUERIES, max_tokens=12, **more)


def test_a_vector_is_the_mean_difference_of_means(model):
    pack = mlx_emotion.extract(model, queries=QUERIES, max_tokens=12, batch_size=4)

    def by_hand(voice):
        shifts = []
        made = plan()
        for i, question in enumerate(QUERIES["fear"]):
            wording = made.wordings["fear"][i % len(made.wordings["fear"])]
            means = []
            for text in (question, f"{wording}\n\n{question}"):
                ids = voice.loaded.template.encode(voice.loaded.template.render([{"role": "user", "content": text}]))
                (done,) = run_batch(voice, [Job(0, ids)], batch_size=1, max_tokens=12, capture=True)
                means.append(done.mean)
            shifts.append(means[1] - means[0])
        return np.mean(shifts, axis=0)

    expected = model.run(by_hand)
    cosine = (pack["fear"] * expected).sum() / np.linalg.norm(pack["fear"]) / np.linalg.norm(expected)
    assert cosine >= 0.9999
    np.testing.assert_allclose(pack["fear"], expected, atol=1e-3)
    assert pack["fear"].dtype == np.float32
    assert (pack.activation_norm > 0).all()
    assert pack.info.emotions["fear"]["count"] == 3
    assert pack.info.queries["sha256"]


def test_each_token_passes_through_the_model_once(model):
    """Forwarded tokens are the prompt's and the response's, no more."""
    seen = []

    def work(voice):
        inner = voice.taps.forward
        extraction = Extraction(voice, plan(), batch_size=4, restart=True)
        prompts = [len(j.prompt) for j in extraction._jobs()]
        responses = []

        def counting(tokens, *args, **kwargs):
            seen.append(tokens.size)
            return inner(tokens, *args, **kwargs)

        voice.taps.forward = counting
        try:
            options = {"batch_size": 1, "max_tokens": 12, "capture": True}
            for done in run_batch(voice, extraction._jobs(), **options):
                responses.append(len(done.tokens) + (done.reason == "stop"))
        finally:
            del voice.taps.forward
        return sum(prompts) + sum(responses)

    assert model.run(work) == sum(seen)


def test_interrupted_extraction_goes_on_and_ends_the_same(model):
    whole = mlx_emotion.extract(model, queries=QUERIES, max_tokens=12, batch_size=2)

    def first(voice):
        extraction = Extraction(voice, plan(), batch_size=2, restart=True)
        done = []
        with pytest.raises(Interrupted, match="goes on from here"):
            extraction.run(lambda p: done.append(p.done), lambda: len(done) >= 5)
        return len(done)

    def second(voice):
        extraction = Extraction(voice, plan(), batch_size=2)
        resumed, calls = extraction.resumed, []
        pack = extraction.run(lambda p: calls.append(p))
        extraction.forget()
        return resumed, len(calls), pack

    assert model.run(first) < 12
    resumed, calls, pack = model.run(second)
    assert resumed >= 2
    assert resumed + calls == 12
    for name in pack:
        np.testing.assert_allclose(pack[name], whole[name], atol=1e-4)
    assert not any(extraction_folder().iterdir())


def test_going_on_with_the_emotions_in_another_order_mixes_nothing_up(model):
    whole = mlx_emotion.extract(model, queries=QUERIES, max_tokens=12, batch_size=2, keep_samples=True)
    turned = Plan.make(queries=dict(reversed(QUERIES.items())), max_tokens=12, keep_samples=True)

    def work(voice):
        done = []
        with pytest.raises(Interrupted):
            Extraction(voice, plan(keep_samples=True), batch_size=2, restart=True).run(
                lambda p: done.append(p.done), lambda: len(done) >= 6
            )
        extraction = Extraction(voice, turned, batch_size=2)
        return extraction.resumed, extraction.run()

    resumed, pack = model.run(work)
    assert resumed >= 4
    for name in QUERIES:
        np.testing.assert_allclose(pack[name], whole[name], atol=1e-4)
        np.testing.assert_allclose(pack.samples[name], whole.samples[name], atol=1e-2)


def test_an_empty_answer_is_done_too(model):
    def work(voice):
        extraction = Extraction(voice, plan(), batch_size=2, restart=True)
        for i, mean in enumerate((np.zeros((voice.taps.count, voice.taps.width), np.float32), None)):
            neutral, emotional = (SimpleNamespace(mean=m, norm=np.ones(voice.taps.count)) for m in (mean, mean))
            extraction._add("fear", i, neutral, emotional)
        extraction._save()
        again = Extraction(voice, plan(), batch_size=2)
        return again.state.empty["fear"], again.resumed, {job.key[:2] for job in again._jobs()}

    empty, resumed, asked = model.run(work)
    assert (empty, resumed) == ([1], 4)
    assert asked
    assert not {("fear", 0), ("fear", 1)} & asked


def test_a_model_that_answers_nothing_is_not_asked_to_the_end(model):
    def work(voice):
        many = Plan.make(queries={"fear": [f"question {n}" for n in range(40)]}, max_tokens=4)
        extraction = Extraction(voice, many, batch_size=2, restart=True)
        nothing = SimpleNamespace(mean=None, norm=None)
        for i in range(40):
            extraction._add("fear", i, nothing, nothing)

    with pytest.raises(ExtractionError, match="gave only empty answers for fear"):
        model.run(work)


def test_a_query_whose_shift_cannot_be_kept_is_not_counted(model, monkeypatch):
    def full(extraction, emotion):
        raise ExtractionError("cannot write: No space left on device")

    def work(voice):
        extraction = Extraction(voice, plan(keep_samples=True), batch_size=2, restart=True)
        monkeypatch.setattr(Extraction, "_samples", full)
        answer = SimpleNamespace(mean=np.ones(extraction.shape, np.float32), norm=np.ones(voice.taps.count))
        nothing = SimpleNamespace(mean=0 * answer.mean, norm=answer.norm)
        with pytest.raises(ExtractionError, match="No space"):
            extraction._add("fear", 0, nothing, answer)
        return extraction.state

    state = model.run(work)
    assert not state.shifts["fear"].any()
    assert (state.answers, state.done["fear"]) == (0, [])


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(model, monkeypatch):
    from safetensors import numpy as written

    monkeypatch.setattr(extraction_module, "SAVE_SECONDS", 0.0)
    save, calls = written.save_file, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 3:
            Path(arguments[1]).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(written, "save_file", full)
    with pytest.raises(ExtractionError, match="No space left on device") as caught:
        model.run(lambda voice: Extraction(voice, plan(), batch_size=2, restart=True).run())
    assert "\n" not in str(caught.value)
    assert model.run(lambda voice: Extraction(voice, plan(), batch_size=2).resumed) == 4
    assert set(model.run(lambda voice: Extraction(voice, plan(), batch_size=2).run())) == set(QUERIES)


PROGRAM = """
import sys, mlx_emotion
from mlx_emotion import extraction
extraction.SAVE_SECONDS = 0.0
plan = extraction.Plan.make(queries={"fear": [f"question number {n}" for n in range(24)]}, max_tokens=12)
model = mlx_emotion.load(sys.argv[1])
model.run(lambda voice: extraction.Extraction(voice, plan, 4).run(lambda p: print(p.done, flush=True)))
"""


def test_a_kill_loses_only_what_was_in_flight(model, tiny_model_path):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tiny_model_path)], stdout=subprocess.PIPE, text=True)
    seen = 0
    while seen < 20 and (line := process.stdout.readline()):
        seen = int(line)
    process.kill()
    rest, _ = process.communicate()
    seen = max([seen, *(int(n) for n in rest.split("\n")[:-1])])
    assert seen >= 20
    same = Plan.make(queries={"fear": [f"question number {n}" for n in range(24)]}, max_tokens=12)
    assert model.run(lambda voice: Extraction(voice, same, 4).resumed) >= seen - 4


def test_other_settings_are_another_extraction(model):
    def folders(voice):
        limits = [Extraction(voice, plan(limit=n)).folder for n in (1, 2, None)]
        return [*limits, Extraction(voice, plan(emotions=["fear"])).folder]

    assert len(set(model.run(folders))) == 4


def test_samples_are_kept_and_their_mean_is_the_vector(model, tmp_path):
    pack = mlx_emotion.extract(model, queries=QUERIES, max_tokens=12, keep_samples=True)
    assert pack.samples["joy"].shape == (3, *pack["joy"].shape)
    path = pack.save(tmp_path / "p.safetensors")
    back = EmotionVectors.load(path, samples=True)
    np.testing.assert_allclose(back.samples["joy"].astype(np.float32).mean(0), back["joy"], atol=2e-2)
    assert EmotionVectors.load(path).samples == {}


GATED = """
import sys
from mlx_emotion.cli import main
from mlx_emotion.extraction import Extraction
save = Extraction._save
def wait(extraction):
    save(extraction)
    Extraction._save = save
    print("saved", flush=True)
    sys.stdin.read()
Extraction._save = wait
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_goes_on(tiny_model_path, home, tmp_path, sent):
    """Killed in the middle, the same command finds most of the work done; the pack is that of an undisturbed run."""
    queries = tmp_path / "q.json"
    queries.write_text(json.dumps({"fear": [f"question number {n}, is it dark" for n in range(24)]}))
    extract = ["extract", "--model", str(tiny_model_path), "--queries", str(queries)]
    extract += ["--batch-size", "2", "--max-tokens", "24", "--no-calibrate"]
    gated = [sys.executable, "-c", GATED, *extract, "--output", str(tmp_path / "a.safetensors")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(gated, **pipes) as process:  # it waits once it has saved its first answers
        deadline = threading.Timer(1200, process.kill)
        deadline.start()
        assert process.stdout.readline() == b"saved\n", process.stderr.read()
        process.send_signal(sent)
        _, errors = process.communicate()
        deadline.cancel()
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    if sent == signal.SIGINT:
        assert b"Traceback" not in errors
    assert not (tmp_path / "a.safetensors").exists()
    command = [sys.executable, "-m", "mlx_emotion", *extract]
    again = subprocess.run([*command, "--output", str(tmp_path / "a.safetensors")], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "going on:" in again.stderr
    fresh = subprocess.run(
        [*command, "--restart", "--output", str(tmp_path / "b.safetensors")], capture_output=True, text=True
    )
    assert fresh.returncode == 0, fresh.stderr
    a, b = (EmotionVectors.load(tmp_path / f"{x}.safetensors") for x in "ab")
    np.testing.assert_allclose(a["fear"], b["fear"], atol=1e-4)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "wanted one JSON object"),
        ("{}", "wanted one JSON object"),
        ("{", "not JSON"),
        ('{"fear": []}', "'fear' must be a list"),
        ('{"fear": "x"}', "'fear' must be a list"),
        ('{"fear": ["x", ""]}', "question 1 of 'fear' is ''"),
        ('{"fear": ["x", 3]}', "question 1 of 'fear' is 3"),
    ],
)
def test_bad_query_files(tmp_path, content, says):
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(QueryError, match=says) as caught:
        Plan.make(queries=path)
    assert str(path) in str(caught.value)


def test_bad_plans(tmp_path):
    with pytest.raises(QueryError, match="No such file"):
        Plan.make(queries=tmp_path / "none.json")
    with pytest.raises(UsageError, match="limit is 0"):
        Plan.make(limit=0)
    with pytest.raises(UsageError, match="did you mean 'fear'"):
        Plan.make(emotions=["feer"])
