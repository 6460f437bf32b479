"""Conversations on a tiny random model: cache, change of feeling, history, guard, stop, seeds."""

import copy
import gc
import itertools

import numpy as np
import pytest

import mlx_emotion
from mlx_emotion.errors import MLXEmotionError, ModelError, PackError, QueryError, UsageError
from mlx_emotion.events import Done, FeelingChanged, GuardTripped, Token
from mlx_emotion.files import extraction_folder
from mlx_emotion.models import LoadedModel
from mlx_emotion.session import Session
from mlx_emotion.steering import Dose
from mlx_emotion.templates import ChatTemplate
from mlx_emotion.vectors import EmotionVectors, PackInfo


@pytest.fixture(scope="module")
def model(tiny_model_path):
    model = mlx_emotion.load(str(tiny_model_path))
    rng = np.random.default_rng(3)
    identity = model.identity
    vectors = {n: rng.standard_normal((identity.layers, identity.width)) * 0.25 for n in ("fear", "joy")}
    info = PackInfo(identity, "attention", {n: {"instructions": [], "count": 1, "scale": 2.0} for n in vectors})
    model.use(EmotionVectors(vectors, info))
    return model


def say(chat, text, **options):
    events = list(chat.stream(text, **options))
    assert isinstance(events[-1], Done)
    assert "".join(e.text for e in events if isinstance(e, Token)).strip() == events[-1].text
    return events


def check_afresh(chat):
    """The last reply, at temperature 0, and the cache after it are as if nothing had been in the cache before."""
    session = chat._session

    def work(voice):
        import mlx.core as mx

        fresh = Session(voice, session.feeling, session.options)
        fresh.turns = copy.deepcopy(session.turns)
        list(fresh.again(1))
        assert fresh.turns[-1].tokens == session.turns[-1].tokens
        logits = [np.array(voice.model(mx.array([[50]]), cache=s._cache)) for s in (session, fresh)]
        np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-3 * np.abs(logits[1]).max())

    chat._model.run(work)


def test_same_seed_same_text_other_seed_other_text(model):
    one, two = (model.generate("hello", "fear", seed=5, max_tokens=20) for _ in range(2))
    assert one.text == two.text
    assert one.seed == 5
    assert model.generate("hello", "fear", seed=6, max_tokens=20).text != one.text
    fresh = model.generate("hello", max_tokens=2)
    assert model.generate("hello", max_tokens=2).seed != fresh.seed


def test_two_replies_at_once_say_what_each_says_alone(model):
    def stream(text, seed):
        return model.chat("fear", max_tokens=12, temperature=1.0).stream(text, seed=seed)

    alone = [[e.text for e in stream(*given) if isinstance(e, Token)] for given in (("hello", 5), ("there", 6))]
    together = [[], []]
    for pair in zip(stream("hello", 5), stream("there", 6)):
        for said, event in zip(together, pair):
            if isinstance(event, Token):
                said.append(event.text)
    assert together == alone


def test_a_closed_model_refuses_also_where_it_was_given_another_pack(tiny_model_path):
    closing = mlx_emotion.load(str(tiny_model_path))
    chat = closing.chat(max_tokens=4)
    closing.use(None)
    closing.close()
    for asked in (
        lambda: say(chat, "hello"),
        lambda: list(chat.compare("hello", ["neutral"])),
        lambda: closing.use(None),
    ):
        with pytest.raises(MLXEmotionError, match="was closed"):
            asked()


def test_a_model_closed_between_two_tokens_says_no_more(tiny_model_path):
    closing = mlx_emotion.load(str(tiny_model_path))
    stream = closing.chat(max_tokens=20).stream("hello", seed=1)
    next(stream)
    closing.close()
    with pytest.raises(ModelError, match="was closed"):
        list(stream)


def test_a_half_read_reply_is_left_alone(model):
    chat = model.chat("fear", temperature=0, max_tokens=12)
    say(chat, "hello")
    stream = chat.stream("and again")
    said = next(stream).text
    for asked in (
        chat.reset,
        chat.drop,
        lambda: chat.add("hi", "hello"),
        lambda: list(chat.compare("hello", ["fear"])),
        lambda: list(chat.again()),
    ):
        with pytest.raises(UsageError, match="still being written"):
            asked()
    said += "".join(e.text for e in stream if isinstance(e, Token))
    assert chat.messages[-1]["content"] == said.strip()
    say(chat, "more")
    check_afresh(chat)
    chat.reset()


def test_a_comparison_checks_what_it_is_given(model):
    chat = model.chat(max_tokens=4)
    for message, seed in ((" ", None), ("\ud800", None), ("hello", -1)):
        with pytest.raises(UsageError):
            list(chat.compare(message, ["fear"], seed))


def test_the_feeling_acts_and_scale_replaces_intensity(model):
    plain = model.generate("hello", temperature=0, max_tokens=20)
    fear = model.generate("hello", "fear", temperature=0, max_tokens=20)
    assert fear.text != plain.text
    assert fear.scale == {"fear": 2.0}
    assert model.generate("hello", "fear", scale=2.0, temperature=0, max_tokens=20).text == fear.text
    assert model.generate("hello", "fear", scale=0.0, temperature=0, max_tokens=20).text == plain.text
    assert model.generate("hello", "fear:0.5", scale=3.0, max_tokens=1).scale == {"fear": 1.5}


def test_the_next_turn_computes_only_what_is_new(model):
    chat = model.chat("fear", max_tokens=8)
    first = say(chat, "hello there", seed=1)[-1]
    second = say(chat, "and again", seed=1)[-1]
    assert first.prefilled == first.prompt_tokens
    assert second.prefilled <= second.prompt_tokens - first.prompt_tokens - first.tokens + 1


def test_a_change_of_feeling_prefills_nothing_with_keep(model):
    same, other = model.chat("fear", max_tokens=8), model.chat("fear", max_tokens=8)
    for chat in (same, other):
        say(chat, "hello there", seed=1)
    other.feel("joy")
    a, b = say(same, "and again", seed=1)[-1], say(other, "and again", seed=1)[-1]
    assert a.prefilled == b.prefilled < b.prompt_tokens
    assert b.feeling == "joy"


def test_a_change_is_visible_two_tokens_later(model):
    """Up to one token after the change the reply is the old one; from the second on it can differ."""
    plain = model.generate("hello", temperature=0, max_tokens=30).text
    at = 10
    chat = model.chat(temperature=0, max_tokens=30)
    tokens, changed = [], None
    for event in chat.stream("hello"):
        if isinstance(event, Token):
            tokens.append(event.text)
            if event.index == at - 1:
                chat.feel({"fear": 1.5, "joy": 1.5})
        elif isinstance(event, FeelingChanged):
            changed = event
    assert changed is not None
    assert changed.index == at
    reference = []
    other = model.chat(temperature=0, max_tokens=30)
    reference = [e.text for e in other.stream("hello") if isinstance(e, Token)]
    assert "".join(reference).strip() == plain
    assert tokens[: at + 1] == reference[: at + 1]
    assert tokens[at + 1 : at + 8] != reference[at + 1 : at + 8]


def test_refeel_is_as_if_it_had_been_felt_all_along(model):
    """After refeel, the next reply equals that of a conversation with the same text under the new feeling."""
    refelt = model.chat("fear", history="refeel", temperature=0, max_tokens=10)
    first = say(refelt, "hello there")[-1]
    refelt.feel("joy")
    reply = say(refelt, "and again")[-1]
    assert reply.prefilled == reply.prompt_tokens - (first.prompt_tokens - 1)  # what was never felt is kept

    kept = model.chat("fear", history="keep", temperature=0, max_tokens=10)
    say(kept, "hello there")
    kept.feel("joy")
    assert say(kept, "and again")[-1].prefilled < reply.prefilled

    # The same text, computed under joy alone from the start.
    twin = model.chat("joy", history="refeel", temperature=0, max_tokens=10)
    turns = refelt._session.turns
    say(twin, "hello there")
    twin._session.turns[0].raw, twin._session.turns[0].tokens = turns[0].raw, list(turns[0].tokens)
    twin._session.turns[0].ended = turns[0].ended
    twin._session._forget_cache()
    assert say(twin, "and again")[-1].text == reply.text


def test_refeel_computes_anew_what_was_felt_otherwise_within_a_reply(model):
    chat = model.chat("fear", history="refeel", max_tokens=10)
    for n, event in enumerate(chat.stream("hello", seed=1)):
        if isinstance(event, Token) and n == 2:
            chat.feel("joy")
        elif isinstance(event, FeelingChanged):
            changed = event
    chat.feel("fear")
    second = say(chat, "and again", seed=1)[-1]
    assert second.prefilled == second.prompt_tokens - event.prompt_tokens - changed.index
    third = say(chat, "and again", seed=1)[-1]
    assert third.prefilled < third.prompt_tokens


def test_again_answers_the_same_message(model):
    chat = model.chat(max_tokens=10, temperature=0)
    one = say(chat, "hello")[-1]
    again = list(chat.again())[-1]
    assert again.text == one.text
    assert again.prefilled == 1
    other = list(chat.again("fear:1.5"))[-1]
    assert other.text != one.text
    assert other.text == model.generate("hello", "fear:1.5", temperature=0, max_tokens=10).text
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]
    with pytest.raises(UsageError, match="nothing to answer again"):
        list(model.chat().again())


@pytest.mark.parametrize("positions", ["response", "all"])
def test_again_equals_a_fresh_reply_in_a_long_conversation(model, positions):
    def talk(feeling_of_last, redo):
        chat = model.chat("fear", positions=positions, temperature=0, max_tokens=6)
        say(chat, "hello there")
        chat.feel("joy" if redo else feeling_of_last)
        last = say(chat, "what now")[-1]
        return list(chat.again(feeling_of_last))[-1] if redo else last

    assert talk("fear:0.5", True).text == talk("fear:0.5", False).text


@pytest.mark.parametrize("positions", ["response", "all"])
def test_what_was_said_stays_as_it_was_felt_without_the_cache_too(model, positions):
    def talk(forget):
        chat = model.chat("fear", positions=positions, temperature=0, max_tokens=10)
        for feeling in ("joy", "fear:0.3", "joy:1.5"):
            last = say(chat, "hello there")[-1]
            chat.feel(feeling)
            if forget:
                chat._session._forget_cache()
        return last.text

    assert talk(True) == talk(False)


def test_positions_all_begin_after_the_end_mark_of_the_reply_before(model):
    """So does a comparison."""
    chat = model.chat("fear", positions="all", temperature=0, max_tokens=6)
    chat.add("hello", "hi there", [(0, "fear")])
    assert chat._session.turns[0].ended
    chat.feel("joy")
    done = next(a.event for a in chat.compare("and again", ["joy"]) if isinstance(a.event, Done))
    assert say(chat, "and again")[-1].text == done.text
    spans = chat._session._cache[-1].rows[0].spans
    assert [b for _, b, _ in spans[:-1]][-1] == spans[-1][0]


@pytest.mark.parametrize("positions", ["response", "all"])
def test_replies_that_ended_are_computed_again_as_they_were(embedded, positions):
    """Their end mark, too, has one dose."""
    chat = embedded.chat("fear", positions=positions, temperature=0, max_tokens=40)
    for feeling in ("joy", "fear:0.3", "joy:0.7"):
        assert say(chat, "I heard a noise.", seed=1)[-1].finish_reason == "stop"
        chat.feel(feeling)
    spans = chat._session._cache[-1].rows[0].spans
    assert [b for _, b, _ in spans[:-1]] == [a for a, _, _ in spans[1:]] or positions == "response"
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    say(chat, "And now?", seed=1)
    check_afresh(chat)


def test_a_feeling_that_drifts_with_every_token_keeps_no_vectors(model):
    def doses():
        gc.collect()
        return sum(type(o) is Dose for o in gc.get_objects())

    chat = model.chat("fear", temperature=0, max_tokens=30)
    before, changes = doses(), 0
    for _ in range(3):
        for n, event in enumerate(chat.stream("hello")):
            changes += isinstance(event, FeelingChanged)
            chat.feel({"fear": 0.5 + n / 100, "joy": changes / 100})
    assert changes > 60
    assert doses() - before <= 20
    say(chat, "and now")
    check_afresh(chat)


@pytest.mark.parametrize("to", ["response", "all"])
def test_other_positions_are_computed_anew(model, to):
    chat = model.chat("fear", positions="all" if to == "response" else "response", temperature=0, max_tokens=8)
    say(chat, "hello there")
    chat.change(positions=to)
    say(chat, "and again")
    check_afresh(chat)


def test_what_is_told_to_have_been_felt_otherwise_is_computed_anew(model):
    chat = model.chat("fear", temperature=0, max_tokens=8)
    say(chat, "hello")
    first = say(chat, "who is there")[-1]
    chat.drop()
    chat.add("who is there", first.text, [(0, "joy:1.5")])
    done = say(chat, "and again")[-1]
    assert done.prefilled == done.prompt_tokens - (first.prompt_tokens - 1)
    check_afresh(chat)


def test_a_pass_that_failed_leaves_nothing_in_the_cache(model, monkeypatch):
    import mlx.core as mx
    import mlx_lm

    def breaks(model, _, prompt, prompt_cache, **__):
        mx.eval(model(mx.array([prompt[:5]]), cache=prompt_cache))
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory\n(00000008)")
        yield

    chat = model.chat("fear", temperature=0, max_tokens=8)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(mlx_lm, "stream_generate", breaks)
            with pytest.raises(MLXEmotionError, match=r"^MLX failed: .*Insufficient Memory; [^\n]*$"):
                list(chat.stream("hello there"))
        chat.drop()
        say(chat, "hello there")
    check_afresh(chat)


def test_stopped_before_it_begins_a_reply_reads_nothing(model):
    chat = model.chat(max_tokens=8)
    stream = chat.stream("hello")
    chat.stop()
    (done,) = list(stream)
    assert (done.finish_reason, done.tokens, done.prefilled, done.text) == ("cancelled", 0, 0, "")
    assert say(chat, "and now", seed=1)[-1].tokens
    one, two = chat.stream("one", seed=1), chat.stream("two", seed=1)
    assert all(list(s)[-1].finish_reason != "cancelled" for s in (one, two))


def test_stopped_while_the_prompt_is_read_what_was_read_is_kept(model, monkeypatch):
    import mlx_lm

    chat = model.chat("fear", temperature=0, max_tokens=8)
    original = mlx_lm.stream_generate

    def in_small_pieces(*args, prompt_progress_callback, **options):
        def told(done, total):
            if done >= 8:
                chat.stop()
            prompt_progress_callback(done, total)

        return original(*args, prompt_progress_callback=told, prefill_step_size=4, **options)

    with monkeypatch.context() as patch:
        patch.setattr(mlx_lm, "stream_generate", in_small_pieces)
        done = list(chat.stream("hello there, who is it"))[-1]
    assert (done.finish_reason, done.tokens, done.prefilled) == ("cancelled", 0, 8)
    assert list(chat.again())[-1].prefilled == done.prompt_tokens - 8
    check_afresh(chat)


def test_again_stopped_before_its_first_word_leaves_the_reply_before(model):
    chat = model.chat("fear", temperature=0, max_tokens=6)
    first = say(chat, "hello")[-1]
    again = chat.again("joy")
    chat.stop()
    (done,) = again
    assert (done.finish_reason, done.tokens) == ("cancelled", 0)
    assert chat.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": first.text}]
    chat.feel("fear")
    say(chat, "and now")
    check_afresh(chat)


def test_stop_ends_a_comparison(model):
    answers = model.chat(max_tokens=40, temperature=0).compare("hello", ["neutral", "fear"])
    chat = model.chat(max_tokens=40, temperature=0)
    events = []
    for answer in chat.compare("hello", ["neutral", "fear"]):
        events.append(answer.event)
        if len(events) == 3:
            chat.stop()
    assert [e.finish_reason for e in events if isinstance(e, Done)] == ["cancelled"] * 2
    assert len(events) < 12 < len(list(answers))


def test_stop_keeps_what_came_and_the_conversation_goes_on(model):
    chat = model.chat(max_tokens=200)
    text = ""
    done = None
    for event in chat.stream("hello"):
        if isinstance(event, Token):
            text += event.text
            if event.index == 4:
                chat.stop()
        elif isinstance(event, Done):
            done = event
    assert done.finish_reason == "cancelled"
    assert done.tokens < 200
    assert done.text == text.strip()
    assert chat.messages[-1]["content"] == done.text
    assert say(chat, "next", seed=1)[-1].finish_reason in ("stop", "length")


def test_a_reader_that_leaves_ends_the_reply(model):
    before = len(model._engine._open)
    chat = model.chat(max_tokens=100_000, system="x")
    stream = chat.stream("hello")
    next(stream)
    assert len(model._engine._open) == before + 1
    stream.close()
    assert len(model._engine._open) == before
    chat.reset()  # refused while a reply is being written


def test_the_guard_weakens_and_then_ends_a_loop(model, monkeypatch):
    """A vector strong enough to pin the model to one token trips the guard, again and again, to the end."""
    looping = model.chat({"fear": 1.5, "joy": 1.5}, scale=60.0, temperature=0, max_tokens=200)
    events = list(looping.stream("hello"))
    trips = [e for e in events if isinstance(e, GuardTripped)]
    assert [t.factor for t in trips] == [0.5, 0.25, 0.125][: len(trips)]
    assert trips
    assert events[-1].guard
    free = model.chat({"fear": 1.5, "joy": 1.5}, scale=60.0, temperature=0, max_tokens=60, guard=False)
    done = list(free.stream("hello"))[-1]
    assert not done.guard
    assert done.tokens == 60 or done.finish_reason == "stop"


def test_the_guard_sees_a_loop_under_a_feeling_that_drifts(model):
    chat = model.chat({"fear": 1.5, "joy": 1.5}, scale=60.0, temperature=0, max_tokens=60)
    trips = changes = 0
    for n, event in enumerate(chat.stream("hello")):
        trips += isinstance(event, GuardTripped)
        changes += isinstance(event, FeelingChanged)
        chat.feel({"fear": 1.5 - n / 1000, "joy": 1.5})
    assert changes > 5
    assert trips


def test_less_of_a_conversation_can_be_read_than_the_model_could(model):
    chat = model.chat(max_tokens=20, context=200)
    counts = [say(chat, f"message number {n}, with some text in it", seed=n)[-1].prompt_tokens for n in range(8)]
    assert max(counts) <= 180
    assert chat._session.first
    assert len(chat._session._cached) <= 200
    before = chat._session.first
    chat.change(context=None)
    say(chat, "and now all of it")
    assert chat._session.first < before
    chat.change(context=200)
    with pytest.raises(UsageError, match="the model reads 200"):
        say(chat, "x" * 300)
    with pytest.raises(UsageError, match="context is 1"):
        model.chat(context=1)


def test_old_turns_leave_when_the_context_is_full(model):
    chat = model.chat(max_tokens=20)
    longest = 0
    for n in range(12):
        done = say(chat, f"message number {n} with quite some text in it, to fill the window", seed=n)[-1]
        longest = max(longest, done.prompt_tokens)
    assert longest <= model._voice.loaded.context
    assert len(chat.messages) == 24


def test_a_full_context_is_cut_seldom(model, monkeypatch):
    """And between two cuts, what is new is all that is computed."""
    monkeypatch.setattr(LoadedModel, "context", 1200)
    chat = model.chat(temperature=0, max_tokens=12)
    firsts, anew = [], []
    for n in range(40):
        done = say(chat, f"hello {n}")[-1]
        firsts.append(chat._session.first)
        anew.append(done.prefilled > done.prompt_tokens / 2)
    cuts = sum(a != b for a, b in itertools.pairwise(firsts))
    assert 2 <= cuts <= 8
    assert sum(anew[1:]) == cuts
    chat.drop()
    chat.reset()
    assert say(chat, "hello")[-1].prefilled


def test_a_long_stored_conversation_is_not_laid_out_to_be_cut(model, monkeypatch):
    rendered = []
    render = ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", lambda *given, **more: rendered.append(1) or render(*given, **more))
    chat = model.chat(temperature=0, max_tokens=4)
    for n in range(300):
        chat.add(f"hello {n}", "a stored reply of some words")
    say(chat, "and now")
    assert len(rendered) < 60


def test_a_message_that_is_too_long_costs_the_next_one_nothing(model):
    chat = model.chat(temperature=0, max_tokens=8)
    first = say(chat, "hello")[-1]
    with pytest.raises(UsageError, match="too long"):
        list(chat.stream("x" * model._voice.loaded.context))
    done = say(chat, "and then?")[-1]
    assert done.prefilled <= done.prompt_tokens - first.prompt_tokens - first.tokens + 1
    check_afresh(chat)


def test_a_reply_ends_where_the_context_does(model):
    context = model._voice.loaded.context
    frame = model.generate("x", max_tokens=1).prompt_tokens - 1
    text = "x" * (context - frame - 4)
    chat = model.chat(max_tokens=50, temperature=0)
    compared = [a.event for a in chat.compare(text, ["neutral"]) if isinstance(a.event, Done)]
    for done in (*compared, say(chat, text)[-1]):
        assert (done.finish_reason, done.tokens) == ("length", 4)


def test_a_finished_extraction_leaves_nothing_to_go_on_from(model):
    pack = mlx_emotion.extract(model, queries={"fear": ["who is there"]}, max_tokens=4, keep_samples=True)
    assert not list(extraction_folder().iterdir())
    assert pack.samples["fear"].shape[0] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top-p is 0"),
        ({"max_tokens": 0}, "max-tokens is 0"),
        ({"positions": "some"}, "unknown positions 'some'"),
        ({"history": "lose"}, "unknown history 'lose'"),
        ({"heat": 1}, "unknown option heat: known are temperature"),
        ({"scale": float("nan")}, "scale is nan"),
    ],
)
def test_wrong_options(model, options, says):
    with pytest.raises(UsageError, match=says):
        model.chat(**options)


def test_wrong_feelings_and_messages(model):
    with pytest.raises(UsageError, match=r"unknown emotion 'anger'.*known are fear, joy"):
        model.chat("anger")
    with pytest.raises(UsageError, match="the message is empty"):
        model.generate("  ")
    chat = model.chat(max_tokens=2)
    with pytest.raises(UsageError, match="the exchange is not valid UTF-8"):
        chat.add("half \ud800", "hello")
    assert model.generate("hello", seed=np.int64(5), max_tokens=2).seed == 5
    for seed in (1.5, -1, "one"):
        with pytest.raises(UsageError, match=f"seed is {seed}, wanted a whole number"):
            say(chat, "hello", seed=seed)
    assert chat.messages == []


@pytest.mark.parametrize(
    ("queries", "says"),
    [
        ({"fear": "Hi?"}, "queries: 'fear' must be a list of questions"),
        ({"fear": []}, "queries: 'fear' must be a list of questions that is not empty"),
        ({"fear": [1]}, "queries: question 0 of 'fear' is 1, wanted text"),
        ({1: ["Hi?"]}, "queries: 1 cannot be the name of an emotion"),
    ],
)
def test_wrong_queries(model, queries, says):
    with pytest.raises(QueryError, match=says):
        mlx_emotion.extract(model, queries=queries)


def test_a_pack_of_another_model_is_refused_unless_forced(model, tiny_model_path, tmp_path):
    pack = model.vectors
    identity = type(pack.info.model)(**{**vars(pack.info.model), "fingerprint": "0" * 32})
    other = EmotionVectors(dict(pack), PackInfo(identity, "attention", pack.info.emotions))
    path = other.save(tmp_path / "other.safetensors")
    with pytest.raises(PackError, match=r"fingerprint: pack 000.*--force"):
        mlx_emotion.load(str(tiny_model_path), vectors=path)
    forced = mlx_emotion.load(str(tiny_model_path), vectors=path, force=True)
    assert forced.emotions == ["fear", "joy"]
    with pytest.raises(PackError, match="site: pack attention, asked residual"):
        mlx_emotion.load(str(tiny_model_path), vectors=path, site="residual")


def test_without_a_pack_only_neutral_works(tiny_model_path):
    model = mlx_emotion.load(str(tiny_model_path), site="residual")
    assert model.generate("hello", max_tokens=3).tokens
    with pytest.raises(MLXEmotionError, match=r"no emotion vectors .*mlx-emotion extract"):
        model.generate("hello", "fear")
