"""Readings: projections of activations in units of the full dose; and several feelings in one batch."""

from __future__ import annotations

import numpy as np
import pytest

import mlx_emotion
from mlx_emotion import Done, FeelingChanged, GuardTripped, Reading, Token
from mlx_emotion.errors import UsageError
from mlx_emotion.readout import Projector, PromptReader
from mlx_emotion.vectors import EmotionVectors, PackInfo

LIMITS = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def model(tiny_model_path):
    model = mlx_emotion.load(str(tiny_model_path))
    rng = np.random.default_rng(3)
    identity = model.identity
    vectors = {n: rng.standard_normal((identity.layers, identity.width)) * 0.25 for n in ("fear", "joy")}
    info = PackInfo(identity, "attention", {n: {"instructions": [], "count": 1, "scale": 2.0} for n in vectors})
    model.use(EmotionVectors(vectors, info))
    return model


def events(chat, text, **options):
    return list(chat.stream(text, **options))


def test_a_full_dose_reads_one(model):
    pack = model.vectors

    def work(voice):
        zero = np.full((identity.layers, identity.width), 0.1, np.float32)
        projector = Projector(pack, voice.taps.layers, zero)
        dose = voice.taps.dose(pack.mix({"fear": 2.0}))
        return projector.names, projector.of(zero), projector.added(dose), projector.added(None)

    identity = model.identity
    names, zero, added, nothing = model.run(work)
    assert names == ("fear", "joy")
    assert zero == pytest.approx([0, 0], abs=1e-5)
    assert added[0] == pytest.approx(1.0, abs=1e-5)
    assert abs(added[1]) < 0.5
    assert not nothing.any()


def test_every_token_is_read_and_the_text_stays_the_same(model):
    plain = events(model.chat("fear", **LIMITS), "hello", seed=1)
    read = events(model.chat("fear", readout=True, **LIMITS), "hello", seed=1)
    assert read[-1].text == plain[-1].text
    assert not [e for e in plain if isinstance(e, Reading)]
    readings = [e for e in read if isinstance(e, Reading)]
    tokens = [e for e in read if isinstance(e, Token)]
    assert [r.index for r in readings][:2] == [-1, 0]
    assert [r.index for r in readings] == list(range(-1, len(readings) - 1))
    assert len(readings) >= len(tokens) - 1
    for r in readings:
        own, steered = dict(r.own), dict(r.steered)
        assert steered["fear"] - own["fear"] == pytest.approx(1.0, abs=1e-3)


def test_a_reading_is_the_projection_of_the_tapped_activation(model):
    """Against a plain forward pass over the whole conversation, unsteered."""
    read = events(model.chat(readout=True, **LIMITS), "hello", seed=1)
    readings = {e.index: dict(e.own) for e in read if isinstance(e, Reading)}

    def work(voice):
        import mlx.core as mx

        template = voice.loaded.template
        prompt = template.encode(template.render([{"role": "user", "content": "hello"}]))
        _, captured = voice.taps.forward(mx.array([prompt]), None, None, True)
        last = np.zeros((voice.taps.count, voice.taps.width), np.float32)
        for layer in voice.taps.layers:
            last[layer] = np.array(captured[layer][0, -1].astype(mx.float32))
        return voice.projector().of(last)

    assert list(readings[-1].values()) == pytest.approx(model.run(work).tolist(), abs=2e-2)


def test_readings_follow_a_change_of_feeling(model):
    chat = model.chat(readout=True, temperature=0.0, max_tokens=20)
    added, changed = {}, None
    for event in chat.stream("hello", seed=1):
        if isinstance(event, Token) and event.index == 3:
            chat.feel("joy")
        elif isinstance(event, FeelingChanged):
            changed = event.index
        elif isinstance(event, Reading):
            added[event.index] = dict(event.steered)["joy"] - dict(event.own)["joy"]
    assert changed is not None
    assert all(v == pytest.approx(0, abs=1e-4) for i, v in added.items() if i < changed)
    assert all(v == pytest.approx(1, abs=1e-3) for i, v in added.items() if i >= changed)
    assert {changed, changed + 1} & set(added)


def answers(chat, message, feelings, **options):
    done, text = {}, {}
    for answer in chat.compare(message, feelings, **options):
        if isinstance(answer.event, Done):
            done[answer.column] = answer.event
        elif isinstance(answer.event, Token):
            text[answer.column] = text.get(answer.column, "") + answer.event.text
    return done, text


def test_comparing_equals_answering_one_by_one(model):
    chat = model.chat("fear", **LIMITS)
    events(chat, "hello there", seed=1)
    feelings = ["neutral", "joy", "fear:0.5"]
    done, text = answers(chat, "and now?", feelings)
    assert len(chat.messages) == 2
    for column, feeling in enumerate(feelings):
        alone = model.chat("fear", **LIMITS)
        events(alone, "hello there", seed=1)
        alone.feel(feeling)
        assert done[column].text == events(alone, "and now?", seed=1)[-1].text
        assert text[column].strip() == done[column].text
        assert done[column].feeling == feeling


class Looping:
    """Takes every fifth token for the end of a loop."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.count = 0

    def add(self, token):
        self.count += 1
        return self.count == 5


def test_the_guard_acts_on_each_column_as_it_does_on_one_reply(model, monkeypatch):
    monkeypatch.setattr("mlx_emotion.guard.LoopDetector", Looping)
    options = {"temperature": 0.0, "max_tokens": 40}
    chat = model.chat(**options)
    feelings = ["neutral", "joy", "fear:0.5"]
    tripped: dict[int, list[float]] = {}
    done = {}
    for answer in chat.compare("hello", feelings, seed=1):
        if isinstance(answer.event, GuardTripped):
            tripped.setdefault(answer.column, []).append(answer.event.factor)
        elif isinstance(answer.event, Done):
            done[answer.column] = answer.event
    for column, feeling in enumerate(feelings):
        alone = events(model.chat(feeling, **options), "hello", seed=1)
        last = alone[-1]
        assert [e.factor for e in alone if isinstance(e, GuardTripped)] == tripped.get(column, [])
        now = done[column]
        assert (now.text, now.guard, now.finish_reason) == (last.text, last.guard, last.finish_reason)
        assert (now.tokens, now.scale) == (last.tokens, last.scale)
    assert tripped[1] == [0.5, 0.25, 0.125]
    assert done[1].finish_reason == "loop"
    assert 0 not in tripped


def test_comparing_without_the_guard_lets_replies_loop(model, monkeypatch):
    monkeypatch.setattr("mlx_emotion.guard.LoopDetector", Looping)
    done, _ = answers(model.chat(guard=False, **LIMITS | {"max_tokens": 40}), "hello", ["joy"])
    assert not done[0].guard
    assert done[0].finish_reason != "loop"


def test_comparing_refuses_nonsense(model):
    chat = model.chat(**LIMITS)
    with pytest.raises(UsageError, match="empty"):
        list(chat.compare(" ", ["joy"]))
    with pytest.raises(UsageError, match="7 feelings"):
        list(chat.compare("hi", ["joy"] * 7))
    with pytest.raises(UsageError, match="unknown emotion 'joi'"):
        chat.compare("hi", ["joi"])


def test_leaving_a_comparison_early_frees_the_model(model):
    before = len(model._engine._open)
    chat = model.chat(**LIMITS)
    iterator = chat.compare("hi", ["joy", "fear"])
    next(iterator)
    assert len(model._engine._open) == before + 1
    iterator.close()
    assert len(model._engine._open) == before
    assert events(chat, "hello", seed=1)[-1].tokens > 0


def test_history_from_elsewhere_is_remembered_as_it_was_felt(model):
    def answer(felt):
        chat = model.chat(**LIMITS)
        chat.add("a mistake", "nothing")
        chat.drop()
        chat.add("hello there", "good morning to all of you", felt)
        assert [m["content"] for m in chat.messages] == ["hello there", "good morning to all of you"]
        return events(chat, "go on", seed=1)[-1].text

    fear = answer([(0, "fear:1.5")])
    assert answer([(0, "fear:1.5")]) == fear
    assert answer([(0, "joy:1.5")]) != fear
    assert answer([(0, "an emotion that this pack lacks")]) == answer([])


def test_options_change_by_name(model):
    chat = model.chat("fear", **LIMITS)
    assert chat.change(max_tokens=3).max_tokens == 3
    assert events(chat, "hello", seed=1)[-1].tokens <= 3
    with pytest.raises(UsageError, match="unknown option colour"):
        chat.change(colour="red")


@pytest.mark.parametrize("text", ["a", "assistant", "user", "hello", "it is\n\nlate"])
@pytest.mark.parametrize("fast", [True, False])
def test_the_text_is_read_where_it_stands(model, text, fast, monkeypatch):
    """Not in the frame around it, which may hold the same letters."""

    def work(voice):
        tokenizer = voice.loaded.tokenizer
        reader = PromptReader(voice)
        with monkeypatch.context() as patch:
            if not fast:
                patch.setattr(type(tokenizer), "is_fast", False, raising=False)
            ids, inside = reader._layout(text)
        return ids, inside, tokenizer.decode(ids[: inside.start]), reader.read(text).tokens

    ids, inside, before, tokens = model.run(work)
    assert before == "<|im_start|>user\n"
    assert len(ids[inside]) == len(text)  # a byte a token
    assert "".join(tokens) == text


def test_a_text_that_the_template_changes_is_refused(model, monkeypatch):
    def work(voice):
        reader = PromptReader(voice)
        render = voice.loaded.template.render
        with monkeypatch.context() as patch:
            patch.setattr(voice.loaded.template, "render", lambda m: render(m).replace("lo", "LO"))
            with pytest.raises(UsageError, match="changes the text"):
                reader.read("hello")

    model.run(work)


@pytest.mark.parametrize("name", ["vicuna", "qwen", "baichuan2-7b"])
def test_a_text_is_read_whole_whatever_the_tokenizer(paper_model, name):
    """Sentencepiece puts a blank in front of what it is given, and may join tokens across the seams."""
    model = mlx_emotion.load(str(paper_model(name)))
    rng = np.random.default_rng(3)
    identity = model.identity
    vectors = {"fear": rng.standard_normal((identity.layers, identity.width))}
    info = PackInfo(identity, "attention", {"fear": {"instructions": [], "count": 1, "scale": 1.0}})
    model.use(EmotionVectors(vectors, info))

    def work(voice):
        template = voice.loaded.template
        reader = PromptReader(voice)
        whole = template.encode(template.render([{"role": "user", "content": "assistant"}]))
        return reader._layout("assistant"), whole, reader.read("assistant").tokens

    (ids, _), whole, tokens = model.run(work)
    assert ids == whole
    assert "".join(tokens).strip() == "assistant"
