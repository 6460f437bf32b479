"""Taps and doses: the algebra of steering on a tiny random model, through mlx-lm's own generation."""

import numpy as np
import pytest

import mlx_emotion
from mlx_emotion.batch import Finished, Job, run_batch
from mlx_emotion.engine import shared
from mlx_emotion.errors import ModelError, UsageError
from mlx_emotion.models import load_model
from mlx_emotion.steering import Row, SteerableModel, Taps, find_layers

PROMPT = [5, 60, 33, 80, 41, 22, 90]


def on_engine(test):
    """Run a test's body on the thread that owns MLX."""

    def run(*args, **kwargs):
        return shared().run(test, *args, **kwargs)

    return run


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return mlx_emotion.load(str(tiny_model_path))


def random_vector(voice, seed=0, norm=2.0):
    v = np.random.default_rng(seed).standard_normal((voice.taps.count, voice.taps.width)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True) * norm


def greedy(voice, row, count=12, prompt=PROMPT):
    """Token ids and logprobs of a cached greedy generation, steered as ``row`` says."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    steps = generate_step(mx.array(prompt), voice.model, max_tokens=count, prompt_cache=voice.model.cache(row))
    tokens, logs = zip(*((int(t), np.array(p.astype(mx.float32))) for t, p in steps))
    return list(tokens), np.stack(logs)


@pytest.mark.parametrize("site", ["attention", "residual"])
def test_zero_is_bit_identical_and_removal_exact(tiny_model_path, site):
    @on_engine
    def body():
        import mlx.core as mx
        from mlx.utils import tree_flatten

        loaded = load_model(str(tiny_model_path))
        tokens = mx.array([PROMPT])
        plain = loaded.model(tokens)
        classes = [type(layer) for layer in find_layers(loaded.model)]
        names = [k for k, _ in tree_flatten(loaded.model.parameters())]
        with Taps(loaded.model, site) as taps:
            taps.self_test()
            silent, _ = taps.forward(tokens, None, None, False)
            zero = taps.dose(np.zeros((taps.count, taps.width), np.float32))
            also, _ = taps.forward(tokens, None, zero.deltas, False)
            moved, _ = taps.forward(tokens, None, taps.dose(np.ones((taps.count, taps.width), np.float32)).deltas, True)
            assert mx.array_equal(plain, silent).item()
            assert mx.array_equal(plain, also).item()
            assert not mx.array_equal(plain, moved).item()
            assert moved.dtype == plain.dtype
            assert names == [k for k, _ in tree_flatten(loaded.model.parameters())]
        assert mx.array_equal(plain, loaded.model(tokens)).item()
        assert [type(layer) for layer in find_layers(loaded.model)] == classes
        assert not any(hasattr(m, "_tap") for m in loaded.model.modules())

    body()


def test_adding_and_subtracting_a_vector_is_nothing(model):
    @on_engine
    def body():
        voice = model._voice
        v = random_vector(voice)
        base = greedy(voice, Row())
        there = greedy(voice, Row.steered(voice.taps.dose(v)))
        nothing = greedy(voice, Row.steered(voice.taps.dose(v - v)))
        assert nothing[0] == base[0]
        np.testing.assert_array_equal(nothing[1], base[1])
        assert np.abs(there[1] - base[1]).max() > 0.1

    body()


def test_response_positions_leave_the_prompt_alone(model):
    """Steering from the last prompt token on gives the cache of an unsteered prompt, then acts."""

    @on_engine
    def body():
        import mlx.core as mx

        voice = model._voice
        dose = voice.taps.dose(random_vector(voice))
        start = len(PROMPT) - 1
        caches = []
        for row in (Row(), Row.steered(dose, start), Row.steered(dose, 0)):
            cache = voice.model.cache(row)
            logits = voice.model(mx.array([PROMPT]), cache=cache)
            mx.eval(logits)
            caches.append((np.array(cache[-2].keys[..., : len(PROMPT), :].astype(mx.float32)), np.array(logits[0, -1])))
        (plain, a), (response, b), (everything, c) = caches
        np.testing.assert_array_equal(plain[..., :start, :], response[..., :start, :])
        assert np.abs(plain[..., start, :] - response[..., start, :]).max() > 0
        assert np.abs(plain[..., 1, :] - everything[..., 1, :]).max() > 0
        assert np.abs(a - b).max() > 0
        assert np.abs(b - c).max() > 0

    body()


def test_chunked_prefill_steers_the_same_positions(model):
    """A span that begins inside a chunk acts as one that begins at a chunk's edge."""

    @on_engine
    def body():
        import mlx.core as mx

        voice = model._voice
        dose = voice.taps.dose(random_vector(voice))
        whole = voice.model.cache(Row.steered(dose, 3))
        parts = voice.model.cache(Row.steered(dose, 3))
        a = voice.model(mx.array([PROMPT]), cache=whole)[0, -1]
        voice.model(mx.array([PROMPT[:3]]), cache=parts)
        b = voice.model(mx.array([PROMPT[3:]]), cache=parts)[0, -1]
        np.testing.assert_allclose(np.array(a), np.array(b), atol=2e-5)

    body()


@pytest.mark.parametrize("all_positions", [False, True])
def test_batch_equals_single(model, all_positions):
    """Rows with other doses, prompt lengths and reply lengths give the tokens that each gives alone."""

    @on_engine
    def body():
        voice = model._voice
        doses = [None, *(voice.taps.dose(random_vector(voice, s, 1.5)) for s in range(4))]
        prompts = [PROMPT[: 2 + n] for n in range(5)]
        jobs = [Job(n, p, d, all_positions) for n, (p, d) in enumerate(zip(prompts, doses))]
        options = {"max_tokens": 14, "capture": True}
        alone = {}
        for job in jobs:
            (done,) = run_batch(voice, [job], batch_size=1, **options)
            alone[job.key] = done
        together = {d.key: d for d in run_batch(voice, iter(jobs), batch_size=3, **options)}
        for key, one in alone.items():
            assert isinstance(one, Finished)
            assert together[key].tokens == one.tokens
            assert together[key].reason == one.reason
            np.testing.assert_allclose(together[key].mean, one.mean, atol=1e-4)
            np.testing.assert_allclose(together[key].norm, one.norm, atol=1e-3)
        assert len({tuple(d.tokens) for d in alone.values()}) > 2

    body()


def test_captured_means_are_those_of_a_plain_pass_over_the_answer(model):
    """The sums kept while generating equal the mean over the answer's tokens in one pass over everything."""

    @on_engine
    def body():
        import mlx.core as mx

        voice = model._voice
        (done,) = run_batch(voice, [Job(0, PROMPT)], batch_size=1, max_tokens=10, capture=True)
        tokens = mx.array([PROMPT + done.tokens])
        _, captured = voice.taps.forward(tokens, None, None, True)
        for layer, output in enumerate(captured):
            expected = np.array(output[0, len(PROMPT) :].astype(mx.float32))
            np.testing.assert_allclose(done.mean[layer], expected.mean(0), atol=1e-4)
            np.testing.assert_allclose(done.norm[layer], np.linalg.norm(expected, axis=-1).mean(), rtol=1e-3)

    body()


def test_only_the_asked_layers_are_tapped(tiny_model_path):
    model = mlx_emotion.load(str(tiny_model_path), layers=[1])

    @on_engine
    def body():
        import mlx.core as mx

        taps = model._voice.taps
        assert taps.layers == (1,)
        _, captured = taps.forward(mx.array([PROMPT]), None, None, True)
        assert [c is not None for c in captured] == [False, True, False]
        dose = taps.dose(np.ones((3, taps.width), np.float32))
        assert [d is not None for d in dose.deltas] == [False, True, False]

    body()
    with pytest.raises(UsageError, match="layers must be 0 to 2"):
        mlx_emotion.load(str(tiny_model_path), layers=[3])


def test_a_model_that_ignores_its_taps_is_an_error(tiny_model_path):
    @on_engine
    def body():
        import mlx.nn as nn

        loaded = load_model(str(tiny_model_path))
        taps = Taps(loaded.model, "attention")
        # Swapped classes that never reach the tap: what a silent no-op would look like.
        taps._modules = [(i, nn.Linear(8, 8)) for i in range(3)]
        with pytest.raises(ModelError, match="never reached"):
            taps.self_test()

    body()


def test_a_second_tapping_is_refused(tiny_model_path):
    @on_engine
    def body():
        loaded = load_model(str(tiny_model_path))
        with Taps(loaded.model), pytest.raises(ModelError, match="tapped already"):
            Taps(loaded.model).attach()
        model = SteerableModel(Taps(loaded.model).attach())
        assert len(model.make_cache()) == 4

    body()


def test_rows_are_the_same_until_they_steer_otherwise(model):
    @on_engine
    def body():
        taps = model._voice.taps
        fear, also, joy = (taps.dose(random_vector(model._voice, seed)) for seed in (1, 1, 2))
        one = Row([(2, 5, fear), (5, 8, None), (9, None, joy)])
        for spans, position in (
            ([(2, 4, fear), (4, 5, also), (9, None, joy)], 20),  # cut and written otherwise, but the same
            ([(2, 5, joy), (9, None, joy)], 2),
            ([(3, 5, fear), (9, None, joy)], 2),
            ([(2, 6, fear), (9, None, joy)], 5),
            ([(2, 5, fear), (9, 12, joy)], 12),
            ([(2, 5, fear)], 9),
            ([], 2),
        ):
            assert one.same_until(Row(spans), 20) == Row(spans).same_until(one, 20) == position
            assert one.same_until(Row(spans), 1) == 1

    body()


def test_no_pass_goes_unsteered_because_the_taps_are_off(tiny_model_path):
    @on_engine
    def body():
        import mlx.core as mx

        loaded = load_model(str(tiny_model_path))
        taps = Taps(loaded.model).attach()
        taps.self_test()
        model, tokens = SteerableModel(taps), mx.array([PROMPT])
        dose = taps.dose(np.ones((taps.count, taps.width), np.float32))
        taps.remove()
        plain = model(tokens, cache=model.cache(Row()))
        assert mx.array_equal(plain, loaded.model(tokens)).item()
        with pytest.raises(ModelError, match="taps were removed"):
            model(tokens, cache=model.cache(Row.steered(dose)))
        taps.attach()
        taps.closed = True
        with pytest.raises(ModelError, match="was closed"):
            model(tokens, cache=model.cache(Row()))

    body()


def test_taps_come_off_after_an_exception(tiny_model_path):
    @on_engine
    def body():
        loaded = load_model(str(tiny_model_path))
        before = [type(layer.self_attn) for layer in loaded.model.layers]
        with pytest.raises(RuntimeError, match="inside"), Taps(loaded.model):
            raise RuntimeError("inside")
        assert [type(layer.self_attn) for layer in loaded.model.layers] == before

    body()
