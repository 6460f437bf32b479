"""Thinking models: the reasoning block is shown apart, left unsteered unless asked, and no part of extraction."""

from __future__ import annotations

import copy
import itertools
import threading
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import numpy as np
import pytest

from mlx_emotion.batch import Job, run_batch
from mlx_emotion.compare import compare
from mlx_emotion.emotions import Feeling
from mlx_emotion.engine import shared
from mlx_emotion.errors import UsageError
from mlx_emotion.events import Done, Thought, Token
from mlx_emotion.extraction import Extraction, Plan
from mlx_emotion.models import LoadedModel
from mlx_emotion.options import Options
from mlx_emotion.readout import neutral_activation
from mlx_emotion.session import Session, Voice
from mlx_emotion.steering import Taps
from mlx_emotion.templates import ChatTemplate
from mlx_emotion.thinking import ANSWER, THOUGHT, Thoughts
from mlx_emotion.vectors import EmotionVectors, Identity, PackInfo

BEGIN, END = "<think>", "</think>"
MARKS = ("<|im_start|>", "<|im_end|>", BEGIN, END)
# As Qwen3's template (the model opens the block), and as DeepSeek-R1's (the template does).
SWITCH = "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
FREE = checkpoints.chatml() + "{% if add_generation_prompt %}" + SWITCH + "{% endif %}"
OPENED = checkpoints.chatml(generate="<|im_start|>assistant\n<think>\n")

# What follows which character: a prompt ends with a line's end.
CHAINS = {
    "free": ["\n", BEGIN, "h", "m", END, "o", "k", "<|im_end|>"],
    "opened": ["\n", "h", "m", END, "o", "k", "<|im_end|>"],
    "endless": ["\n", "h", "m", "h"],
    "silent": ["\n", "o", "k", "<|im_end|>"],
}


def make_voice(folder: Path, template: str, chain: list[str]) -> Voice:
    """A tiny model that says ``chain``, whatever it feels, with a vector for fear."""
    import mlx.core as mx
    from mlx_lm.models import llama
    from mlx_lm.tokenizer_utils import load

    size = checkpoints.write_tokenizer(folder, checkpoints.Family(None, marks=MARKS, template=template))
    tokenizer = load(folder)
    ids = [tokenizer.encode(c, add_special_tokens=False)[-1] for c in chain]
    bias = np.zeros((size, size), np.float32)
    for now, after in itertools.pairwise(ids):
        bias[now, after] = 1000

    class Chained(llama.Model):
        def __call__(self, tokens, cache=None):
            return super().__call__(tokens, cache) + mx.array(bias)[tokens]

    config = {**checkpoints.SIZES, "model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": size}
    model = Chained(llama.ModelArgs.from_dict(config))
    mx.eval(model)
    taps = Taps(model).attach()
    taps.self_test()
    identity = Identity("thinker", "", "0" * 32, "llama", taps.count, taps.width)
    vector = np.random.default_rng(0).standard_normal((taps.count, taps.width)).astype(np.float32)
    info = PackInfo(identity, "attention", {"fear": {"instructions": [], "count": 1, "scale": None}})
    loaded = LoadedModel(model, tokenizer, config, folder, identity, ChatTemplate(tokenizer))
    return Voice(loaded, taps, EmotionVectors({"fear": vector}, info))


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    """``voice(template, chain)``."""
    made = {}

    def make(template, chain):
        if (template, chain) not in made:
            made[template, chain] = shared().run(
                make_voice, tmp_path_factory.mktemp("thinker"), template, CHAINS[chain]
            )
        return made[template, chain]

    return make


def talk(voice, message="see", session=None, **options):
    """(session, events, tokens of the passes that were steered, of those that were not)."""
    session = session or Session(voice, Feeling((("fear", 1.0),)), Options(temperature=0, max_tokens=20, **options))
    steered, plain = [], []
    forward = voice.taps.forward

    def spy(tokens, cache, deltas, capture, **kwargs):
        (plain if deltas is None else steered).extend(tokens[0].tolist())
        return forward(tokens, cache, deltas, capture, **kwargs)

    def work():
        voice.taps.forward = spy
        try:
            return list(session.reply(message, 1))
        finally:
            del voice.taps.forward

    events = shared().run(work)
    tokenizer = voice.loaded.tokenizer
    words = [[tokenizer.decode([t]) for t in ts if t not in tokenizer.eos_token_ids] for ts in (steered, plain)]
    return session, events, *words


def said(events, kind):
    return "".join(e.text for e in events if isinstance(e, kind))


@pytest.mark.parametrize("think", ["plain", "feel"])
@pytest.mark.parametrize(("template", "chain"), [(FREE, "free"), (OPENED, "opened")], ids=["free", "opened"])
def test_the_block_is_shown_apart(voice, template, chain, think):
    _, events, steered, plain = talk(voice(template, chain), think=think)
    done = events[-1]
    assert isinstance(done, Done)
    assert (said(events, Thought), said(events, Token)) == ("hm", "ok")
    assert (done.thinking, done.text, done.finish_reason) == ("hm", "ok", "stop")
    assert done.thinking_tokens == next(e.index for e in events if isinstance(e, Token) and e.text)
    if think == "plain":
        assert {"h", "m"} <= set(plain)
        assert steered == ["o", "k"]  # decoding runs one token ahead: the pass over the mark is not steered
    else:
        assert steered == ["\n", *(c for c in CHAINS[chain][1:-1])]
        assert "h" not in plain


def test_off_closes_the_block_at_once(voice):
    _, events, steered, plain = talk(voice(FREE, "silent"), think="off")
    assert END in plain
    assert not said(events, Thought)
    assert said(events, Token) == "ok"
    assert steered == ["\n", "o", "k"]


def test_off_leaves_a_block_alone_that_the_template_opens_all_the_same(voice):
    _, events, steered, plain = talk(voice(OPENED, "opened"), think="off")
    assert (said(events, Thought), said(events, Token)) == ("hm", "ok")
    assert {"h", "m"} <= set(plain)
    assert steered == ["o", "k"]


def test_a_model_that_does_not_think_after_all_is_steered_from_its_first_words_on(voice):
    _, events, steered, _ = talk(voice(FREE, "silent"))
    assert not said(events, Thought)
    assert said(events, Token) == "ok"
    assert steered == ["k"]


def test_a_block_cut_short_leaves_no_answer(voice):
    thinker = voice(FREE, "free")
    session = Session(thinker, Feeling((("fear", 1.0),)), Options(temperature=0, max_tokens=3))
    _, events, _, _ = talk(thinker, session=session)
    assert (events[-1].text, events[-1].thinking, events[-1].finish_reason) == ("", "hm", "length")
    assert events[-1].thinking_tokens == events[-1].tokens
    session.change(Options(temperature=0))
    _, events, _, _ = talk(thinker, session=session)
    assert events[-1].text == "ok"


def test_history_has_no_block(voice):
    """The next prompt holds the answer alone, felt as it was; the cache is as if computed afresh."""
    import mlx.core as mx

    thinker = voice(FREE, "free")
    session, _, _, _ = talk(thinker)
    assert session.turns[0].reply == "ok"
    assert session.turns[0].felt == [(-1, ()), (0, (("fear", 1.0),))]
    talk(thinker, "more", session)

    def work():
        fresh = Session(thinker, session.feeling, session.options)
        fresh.turns = [copy.deepcopy(t) for t in session.turns]
        list(fresh.again(1))
        prompt, _ = fresh._layout(fresh.turns)
        assert BEGIN not in thinker.loaded.tokenizer.decode(prompt)
        logits = [np.array(thinker.model(mx.array([[50]]), cache=s._cache)) for s in (session, fresh)]
        np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-3)

    shared().run(work)


@pytest.mark.parametrize(("template", "chain"), [(FREE, "free"), (OPENED, "opened")], ids=["free", "opened"])
@pytest.mark.parametrize("rows", [1, 3])
def test_means_skip_the_block(voice, template, chain, rows):
    """What extraction averages are the answer's tokens, in rows that end their blocks at different times."""
    import mlx.core as mx

    thinker = voice(template, chain)
    tokenizer = thinker.loaded.tokenizer

    def work():
        texts = ["hi", "what a day, is it not?", "why"][:rows]
        prompts = [
            thinker.loaded.template.encode(thinker.loaded.template.render([{"role": "user", "content": t}], think=True))
            for t in texts
        ]
        jobs = [Job(n, p) for n, p in enumerate(prompts)]
        for done in run_batch(thinker, jobs, batch_size=rows, max_tokens=20, capture=True):
            assert done.text == "ok"
            assert tokenizer.decode(done.tokens) == "ok"
            prompt = prompts[done.key]
            block = [tokenizer.encode(c, add_special_tokens=False)[-1] for c in CHAINS[chain][1:-3]]
            _, outputs = thinker.taps.forward(mx.array([prompt + block + done.tokens]), None, None, True)
            wanted = np.stack([np.array(o[0, -2:].mean(0)) for o in outputs])
            np.testing.assert_allclose(done.mean, wanted, rtol=1e-3, atol=1e-5)

    shared().run(work)


def steered_texts(thinker):
    """What stands in for its ``taps.forward``, and the list of the texts that this sees steered."""
    steered = []
    forward = thinker.taps.forward

    def spy(tokens, cache, deltas, capture, **kwargs):
        if deltas is not None:
            steered.append(thinker.loaded.tokenizer.decode(tokens[0].tolist()))
        return forward(tokens, cache, deltas, capture, **kwargs)

    return spy, steered


def test_a_batch_leaves_an_opened_block_alone(voice):
    """Steered in a batch, an always-thinking model feels from its answer on, and only that is shown."""
    thinker = voice(OPENED, "opened")
    spy, steered = steered_texts(thinker)

    def work():
        template = thinker.loaded.template
        prompt = template.encode(template.render([{"role": "user", "content": "see"}]))
        thinker.taps.forward = spy
        try:
            job = Job(0, prompt, thinker.dose((("fear", 1.0),)))
            return list(run_batch(thinker, [job], batch_size=1, max_tokens=20, pieces=True))
        finally:
            del thinker.taps.forward

    *pieces, done = shared().run(work)
    assert "".join(p.text for p in pieces) == done.text == "ok"
    assert steered[:2] == ["o", "k"]


def batch(thinker, ways, chain):
    """What a batch with one row for each of ``ways`` says, and each row's (steered, plain) tokens, one by one."""
    import mlx.core as mx

    tokenizer, template = thinker.loaded.tokenizer, thinker.loaded.template
    passes = [([], []) for _ in ways]
    forward = thinker.taps.forward

    def spy(tokens, cache, deltas, capture, **kwargs):
        if tokens.shape[1] == 1:
            for row, token in enumerate(tokens[:, 0].tolist()):
                felt = deltas is not None and bool(mx.any(deltas[0][row % len(deltas[0])]).item())
                if token not in tokenizer.eos_token_ids:
                    passes[row][0 if felt else 1].append(tokenizer.decode([token]))
        return forward(tokens, cache, deltas, capture, **kwargs)

    def work():
        user = [{"role": "user", "content": "see"}]
        dose = thinker.dose((("fear", 1.0),))
        jobs = [
            Job(n, template.encode(template.render(user, think=way != "off")), dose, think=way)
            for n, way in enumerate(ways)
        ]
        thinker.taps.forward = spy
        try:
            return list(run_batch(thinker, jobs, batch_size=len(jobs), max_tokens=20, pieces=True))
        finally:
            del thinker.taps.forward

    return shared().run(work), passes


@pytest.mark.parametrize(("template", "chain"), [(FREE, "free"), (OPENED, "opened")], ids=["free", "opened"])
@pytest.mark.parametrize("ways", [["plain"], ["feel"], ["plain", "feel", "plain"]], ids=",".join)
def test_each_row_of_a_batch_thinks_as_asked(voice, template, chain, ways):
    results, passes = batch(voice(template, chain), ways, chain)
    for row, (way, (steered, plain)) in enumerate(zip(ways, passes)):
        mine = [r for r in results if r.key == row]
        assert "".join(p.text for p in mine[:-1]) == mine[-1].text == "ok"
        if way == "plain":
            assert {"h", "m"} <= set(plain)
            assert steered == ["o", "k"]
        else:
            assert steered == ["\n", *CHAINS[chain][1:-1]]
            assert not plain


def test_a_batch_of_rows_that_do_not_think_is_steered_throughout(voice):
    results, ((steered, plain),) = batch(voice(FREE, "silent"), ["off"], "silent")
    assert results[-1].text == "ok"
    assert (steered, plain) == (["\n", "o", "k"], [])


@pytest.mark.parametrize("think", ["plain", "feel"])
def test_comparing_leaves_the_block_alone_unless_asked(voice, think):
    thinker = voice(OPENED, "opened")
    spy, steered = steered_texts(thinker)

    def work():
        session = Session(thinker, Feeling(), Options(temperature=0, max_tokens=20, think=think))
        thinker.taps.forward = spy
        try:
            return list(compare(session, "see", [Feeling((("fear", 1.0),))], 1, threading.Event()))
        finally:
            del thinker.taps.forward

    answers = shared().run(work)
    assert answers[-1].event.text == "ok"
    assert steered[:2] == (["o", "k"] if think == "plain" else ["\n", "h"])


@pytest.mark.parametrize(("think", "chain", "block"), [("off", "silent", ""), ("plain", "free", "hm")])
def test_evaluation_thinks_as_its_settings_say(voice, think, chain, block):
    """Single questions in a batch and whole conversations: the block is made or not, and never in the answer."""
    from mlx_emotion.evaluation.generate import Doses, _answer, _converse

    thinker = voice(FREE, chain)
    condition = SimpleNamespace(scales=(("fear", 1.0),), method="mean", emotion="fear", instruction=None)
    task = SimpleNamespace(id="a", text="see", condition=condition, query=SimpleNamespace(id="a"))
    settings = SimpleNamespace(think=think, batch_size=2, max_tokens=20, temperature=0.0, top_p=1.0, seed=1)
    said = []
    forward = thinker.taps.forward

    def spy(tokens, *rest, **kwargs):
        said.extend(tokens[0].tolist())
        return forward(tokens, *rest, **kwargs)

    def work(make):
        said.clear()
        thinker.taps.forward = spy
        try:
            doses = Doses(thinker, {"mean": thinker.vectors})
            (answer,) = make(thinker, [task], doses, settings, 1, lambda: False)
            return answer, thinker.loaded.tokenizer.decode(said)
        finally:
            del thinker.taps.forward

    for make in (_answer, _converse):
        answer, everything = shared().run(work, make)
        assert answer.text == "ok"
        assert everything.split(END)[0].endswith(f"{BEGIN}{block}" if block else f"{BEGIN}\n\n")


@pytest.mark.parametrize(("think", "chain"), [(False, "silent"), (True, "free")])
def test_extraction_thinks_where_asked(voice, think, chain):
    thinker = voice(FREE, chain)
    plan = Plan.make(queries={"fear": ["Who is it?"]}, max_tokens=20, think=think)
    extraction = shared().run(Extraction, thinker, plan, 2, True)
    for job in extraction._jobs():
        assert thinker.loaded.tokenizer.decode(job.prompt).rstrip().endswith(END) != think
    pack = shared().run(extraction.run)
    assert pack.info.emotions["fear"]["count"] == 1
    assert pack.info.decoding.get("think", False) == think


def test_an_answer_that_never_comes_is_empty(voice):
    thinker = voice(OPENED, "opened")

    def work():
        template = thinker.loaded.template
        prompt = template.encode(template.render([{"role": "user", "content": "hi"}]))
        (done,) = run_batch(thinker, [Job(0, prompt)], batch_size=1, max_tokens=2, capture=True)
        return done

    done = shared().run(work)
    assert (done.text, done.tokens, done.mean) == ("", [], None)


def test_what_reads_zero_does_not_wait_for_thoughts_to_end(voice):
    thinker = voice(OPENED, "endless")
    assert shared().run(neutral_activation, thinker).any()


def follow(start, end, opening, chunks, think=True):
    tokenizer = SimpleNamespace(has_thinking=True, think_start=start, think_end=end)
    thoughts = Thoughts(tokenizer, opening, think)
    pieces = [p for n, c in enumerate(chunks, 1) for p in thoughts.add(c, n)] + thoughts.finish()
    return {kind: "".join(t for k, t in pieces if k == kind) for kind in (THOUGHT, ANSWER)}, thoughts


@pytest.mark.parametrize(("start", "end"), [(BEGIN, END), ("<|channel>thought", "<channel|>")])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_marks_in_pieces(start, end, size):
    """Marks of several tokens are found wherever the tokens' borders are."""
    whole = f"{start}\nwell < then\n{end}\n\nYes, {start} is a mark."
    chunks = [whole[i : i + size] for i in range(0, len(whole), size)]
    found, thoughts = follow(start, end, "", chunks)
    assert found == {THOUGHT: "well < then\n", ANSWER: f"Yes, {start} is a mark."}
    assert thoughts.tokens == -(-(whole.index(end) + len(end)) // size)


@pytest.mark.parametrize(
    ("opening", "chunks", "thought", "answer"),
    [
        ("", ["<", "3 you"], "", "<3 you"),  # could have been a mark
        ("", ["<thi"], "", "<thi"),
        (BEGIN, ["hm"], "hm", ""),
        (f"{BEGIN}\n\n{END}\n\n", [" yes"], "", " yes"),
    ],
)
def test_beginnings(opening, chunks, thought, answer):
    assert follow(BEGIN, END, opening, chunks)[0] == {THOUGHT: thought, ANSWER: answer}


def test_unknown_way_to_think():
    with pytest.raises(UsageError, match="unknown think 'loud': known are plain, feel, off"):
        Options(think="loud")
