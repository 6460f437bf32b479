"""What steering must keep to on every architecture, as functions that raise ``AssertionError``.

Both the tests and `scripts/models_page.py` run them, on the thread that owns MLX.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models

from mlx_emotion.batch import Finished, Job, prefilled_together, run_batch
from mlx_emotion.emotions import Feeling
from mlx_emotion.errors import ModelError
from mlx_emotion.events import Done
from mlx_emotion.layers import find_attention, find_layers
from mlx_emotion.models import LoadedModel
from mlx_emotion.session import Options, Session, Voice
from mlx_emotion.steering import SteerableModel, Taps
from mlx_emotion.templates import ChatTemplate
from mlx_emotion.vectors import EmotionVectors, Identity, PackInfo

EMOTIONS = ("fear", "joy")


class Case:
    """One architecture under test at the best site it offers: attention, else residual."""

    def __init__(self, name: str, tokenizer: Any, site: str | None = None) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.model = tiny_models.build(name)
        has_attention = any(find_attention(layer) is not None for layer in find_layers(self.model))
        self.site = site or ("attention" if has_attention else "residual")
        self.taps = Taps(self.model, self.site).attach()
        self.taps.self_test()
        self.voice = self._voice()

    def _voice(self) -> Voice:
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        taps = self.taps
        identity = Identity(self.name, "", "0" * 32, self.name, taps.count, taps.width)
        _, outputs = taps.forward(mx.array([[1, 2, 3]]), make_prompt_cache(self.model), None, True)
        random = np.random.default_rng(1)
        vectors = {}
        for emotion in EMOTIONS:
            vector = np.zeros((taps.count, taps.width), np.float32)
            for i in taps.layers:
                norm = mx.linalg.norm(outputs[i].astype(mx.float32), axis=-1).mean().item()
                direction = random.standard_normal(taps.width)
                vector[i] = direction / np.linalg.norm(direction) * max(norm, 0.05) * 2
            vectors[emotion] = vector
        info = PackInfo(identity, self.site, {e: {"instructions": [], "count": 1, "scale": None} for e in EMOTIONS})
        config = tiny_models.config(self.name)
        loaded = LoadedModel(self.model, self.tokenizer, config, Path("."), identity, ChatTemplate(self.tokenizer))
        return Voice(loaded, taps, EmotionVectors(vectors, info))

    def dose(self, emotion: str = "fear") -> Any:
        return self.voice.dose(((emotion, 1.0),))

    def prompt(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


def run(model: Any, case: Case, row: Any = None, steps: int = 3) -> list[np.ndarray]:
    """Logits of a prompt longer than the windows, then of ``steps`` fixed tokens one at a time."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = model.cache(row) if isinstance(model, SteerableModel) else make_prompt_cache(model)
    out = [model(mx.array([case.prompt("hello there")]), cache=cache)]
    out += [model(mx.array([[40 + i]]), cache=cache) for i in range(steps)]
    mx.eval(out)
    return [np.array(o.astype(mx.float32)) for o in out]


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b))


def check_zero_is_identical(case: Case) -> None:
    """Tapped but not steered, and steered with nothing, the logits are the same to the last bit."""
    from mlx_emotion.steering import Row

    case.taps.remove()
    plain = run(case.model, case)
    case.taps.attach()
    assert equal(plain, run(case.model, case)), "tapping changes the logits"
    assert equal(plain, run(case.voice.model, case, Row())), "an empty row changes the logits"
    nothing = case.taps.dose(np.zeros((case.taps.count, case.taps.width), np.float32))
    assert equal(plain, run(case.voice.model, case, Row.steered(nothing))), "a zero vector changes the logits"


def check_every_layer_acts(case: Case) -> None:
    """A vector at any one tapped layer changes the logits of the step it is added in."""
    import mlx.core as mx

    plain, _ = case.taps.forward(mx.array([[5, 6, 7]]), None, None, False)
    whole = case.voice.vectors["fear"]
    for layer in case.taps.layers:
        one = np.zeros_like(whole)
        one[layer] = whole[layer]
        moved, _ = case.taps.forward(mx.array([[5, 6, 7]]), None, case.taps.dose(one).deltas, False)
        assert not mx.array_equal(plain, moved).item(), f"layer {layer} does not act"


def check_removal_is_exact(case: Case) -> None:
    """After removal every class and every logit is what it was."""
    from mlx_emotion.steering import Row

    kinds = [type(m)._untapped for _, m in case.taps._modules]
    case.taps.remove()
    try:
        plain = run(case.model, case)
        assert [type(m) for _, m in case.taps._modules] == kinds
        assert not any(hasattr(m, "_tap") for _, m in case.taps._modules)
    finally:
        case.taps.attach()
    steered = run(case.voice.model, case, Row.steered(case.dose()))
    assert not equal(plain, steered)
    case.taps.remove()
    try:
        assert equal(plain, run(case.model, case))
    finally:
        case.taps.attach()


def check_dtype_is_kept(case: Case) -> None:
    """In bfloat16 steering leaves the dtype of the activations and of the logits alone."""
    import mlx.core as mx

    model = tiny_models.build(case.name, half=True)
    with Taps(model, case.site) as taps:
        taps.self_test()
        vector = case.voice.vectors["fear"]
        plain, before = taps.forward(mx.array([[5, 6, 7]]), None, None, True)
        steered, after = taps.forward(mx.array([[5, 6, 7]]), None, taps.dose(vector).deltas, True)
        assert plain.dtype == steered.dtype
        assert [b.dtype for b in before if b is not None] == [a.dtype for a in after if a is not None]


def jobs(case: Case) -> list[Job]:
    """Three rows of different lengths under different doses, one of them none."""
    texts = ("hello there", "I am alone in the house, and", "why?")
    return [
        Job(i, case.prompt(t), d) for i, (t, d) in enumerate(zip(texts, (case.dose("fear"), None, case.dose("joy"))))
    ]


def check_batch_equals_single(case: Case) -> None:
    """Rows steered together say, and mean, what each says alone."""

    def answers(batch: list[Job], size: int) -> dict[int, Finished]:
        found = run_batch(case.voice, batch, batch_size=size, max_tokens=6, capture=True)
        return {a.key: a for a in found if isinstance(a, Finished)}

    together = answers(jobs(case), 3)
    assert any(a.mean is not None for a in together.values()), "nothing was measured"
    for job in jobs(case):
        alone = answers([job], 1)[job.key]
        assert together[job.key].tokens == alone.tokens, f"row {job.key}: other tokens in a batch"
        assert (together[job.key].mean is None) == (alone.mean is None)
        if alone.mean is None:
            continue
        np.testing.assert_allclose(together[job.key].mean, alone.mean, rtol=1e-3, atol=1e-4)


def check_history(case: Case, history: str = "keep") -> None:
    """A conversation with a changed mind leaves the cache as if it had all been computed afresh.

    Two messages, then the second answered again under another feeling: the cache has to go back, or
    to be made anew where its kind can't.
    """
    import mlx.core as mx

    options = Options(temperature=0, max_tokens=4, history=history, guard=False)
    session = Session(case.voice, Feeling((("fear", 1.0),)), options)
    listen(session.reply("hi", 1))
    listen(session.reply("and", 1))
    session.feel(Feeling((("joy", 1.0),)))
    listen(session.again(1))
    fresh = Session(case.voice, session.feeling, options)
    fresh.turns = [copy.deepcopy(t) for t in session.turns]
    listen(fresh.again(1))
    assert fresh.turns[-1].tokens == session.turns[-1].tokens
    token = mx.array([[50]])
    kept, anew = (np.array(case.voice.model(token, cache=s._cache)) for s in (session, fresh))
    np.testing.assert_allclose(kept, anew, rtol=1e-3, atol=1e-3 * np.abs(anew).max())


def listen(events: Any) -> None:
    last = None
    for event in events:
        last = event
    assert isinstance(last, Done), last


CHECKS = (
    check_zero_is_identical,
    check_every_layer_acts,
    check_removal_is_exact,
    check_dtype_is_kept,
    check_batch_equals_single,
    check_history,
)


def row(case: Case) -> str:
    """The architecture's line in `docs/models.md`."""
    from mlx_lm.models.cache import make_prompt_cache

    kinds = sorted({type(c).__name__ for c in make_prompt_cache(case.model)})
    tapped = f"{len(case.taps.layers)} of {case.taps.count}" if len(case.taps.layers) < case.taps.count else "all"
    together = prefilled_together(case.voice)
    batch = {0: "one after another", 1: "yes, prompts one by one"}.get(together, "yes")
    source = "this project" if type(case.model).__module__.startswith("mlx_emotion") else "mlx-lm"
    return f"| {case.name} | {source} | {case.site} | {tapped} | {batch} | {', '.join(kinds)} |"


def why_not(name: str) -> str | None:
    """The error that tells why an architecture can't be steered, or ``None``."""
    try:
        model = tiny_models.build(name)
        Taps(model, "residual").attach().self_test()
    except ModelError as error:
        return str(error)
    return None
