"""The ways to make vectors: ``mean``, ``last`` and ``pca``."""

from __future__ import annotations

import numpy as np
import pytest

import mlx_emotion
from mlx_emotion.errors import Interrupted, UsageError
from mlx_emotion.extraction import METHODS, Extraction, Plan, first_component

QUERIES = {
    "joy": ["How was your day?", "What is new?", "Who came?"],
    "fear": ["Who is there?", "What was that?", "Where is he?"],
}


@pytest.fixture(scope="module")
def tiny(tiny_model_path):
    return mlx_emotion.load(str(tiny_model_path))


def plan(method: str, **options) -> Plan:
    return Plan.make(queries=QUERIES, max_tokens=5, method=method, **options)


def extract(tiny, method: str, **options):
    return mlx_emotion.extract(tiny, queries=QUERIES, max_tokens=5, batch_size=2, method=method, **options)


def test_an_unknown_method_is_told_before_anything_runs():
    with pytest.raises(UsageError, match="unknown method 'median': known are mean, last, pca"):
        Plan.make(method="median")


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_makes_a_pack_that_says_how(method, tiny):
    pack = extract(tiny, method)
    assert pack.info.method == method
    assert set(pack) == set(QUERIES)
    assert pack.info.emotions["joy"]["count"] == 3
    assert pack.activation_norm.all()
    assert pack.samples == {}


def test_the_methods_differ(tiny):
    found = [extract(tiny, m)["joy"] for m in METHODS]
    assert not any(np.allclose(a, b) for i, a in enumerate(found) for b in found[:i])


def test_mean_and_pca_come_from_the_same_shifts(tiny):
    mean, pca = (extract(tiny, m, keep_samples=True) for m in ("mean", "pca"))
    for emotion in QUERIES:
        shifts = mean.samples[emotion].astype(np.float64)
        assert np.array_equal(mean.samples[emotion], pca.samples[emotion])
        assert np.allclose(mean[emotion], shifts.mean(0), atol=2e-3)
        for layer in range(3):
            assert np.allclose(pca[emotion][layer], first_component(shifts[:, layer]), atol=1e-5)


def test_last_is_the_shift_at_the_last_prompt_token(tiny):
    """Against the activations that a forward pass over each prompt gives, computed here."""
    pack = extract(tiny, "last")

    def work(voice):
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        def at_end(text: str) -> np.ndarray:
            template = voice.loaded.template
            ids = template.encode(template.render([{"role": "user", "content": text}]))
            _, captured = voice.taps.forward(mx.array([ids]), make_prompt_cache(voice.taps.model), None, True)
            return np.stack([np.array(c[0].astype(mx.float32))[-1] for c in captured])

        asked = plan("last").wordings["joy"]
        return [at_end(f"{asked[i % len(asked)]}\n\n{q}") - at_end(q) for i, q in enumerate(QUERIES["joy"])]

    assert np.allclose(pack["joy"], np.mean(tiny.run(work), axis=0), atol=1e-5)


@pytest.mark.parametrize("method", list(METHODS))
def test_stopped_and_gone_on_with_gives_the_same(method, tiny):
    whole = extract(tiny, method)
    made = []

    def stop() -> bool:
        return len(made) >= 6

    def first(voice):
        Extraction(voice, plan(method), batch_size=2, restart=True).run(made.append, stop)

    with pytest.raises(Interrupted):
        tiny.run(first)

    def second(voice):
        extraction = Extraction(voice, plan(method), batch_size=2)
        resumed, pack = extraction.resumed, extraction.run()
        extraction.forget()
        return resumed, pack

    resumed, pack = tiny.run(second)
    assert 0 < resumed < 12
    for emotion in QUERIES:
        assert np.allclose(pack[emotion], whole[emotion], atol=1e-4)


def test_methods_do_not_go_on_with_each_others_state(tiny):
    folders = tiny.run(lambda voice: {Extraction(voice, plan(m)).folder for m in METHODS})
    assert len(folders) == len(METHODS)


# The component itself.


def test_the_component_of_one_shift_is_the_shift():
    x = np.random.default_rng(0).standard_normal((1, 8))
    assert np.allclose(first_component(x), x[0])


def test_the_component_points_to_the_emotion():
    random = np.random.default_rng(0)
    direction = random.standard_normal(32)
    direction /= np.linalg.norm(direction)
    for sign in (1, -1):
        shifts = sign * 5 * direction + 0.3 * random.standard_normal((40, 32))
        found = first_component(shifts.astype(np.float16))
        assert found @ direction * sign == pytest.approx(5, rel=0.05)
        assert found @ direction * sign / np.linalg.norm(found) > 0.99


def test_the_component_is_the_first_singular_vector():
    x = np.random.default_rng(1).standard_normal((6, 20)) + 0.5
    axis = np.linalg.svd(x, full_matrices=False)[2][0]
    assert np.allclose(first_component(x), axis * (axis @ x.mean(0)))


def test_no_shift_at_all_is_zero():
    assert not first_component(np.zeros((3, 8))).any()
