"""Many sequences at once, each steered its own way, through mlx-lm's continuous batching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .session import Voice, seeded
from .steering import Dose, Row, Span, Sums
from .templates import until_stop
from .thinking import ANSWER, PROMPT_TAIL, Thoughts, answer_tokens


@dataclass(frozen=True)
class Job:
    """One sequence to generate: prompt ids, and the dose on its response (or on ``all`` positions).

    ``history`` are spans of the prompt that were felt otherwise, as in ``Row.spans``. ``think`` is one of
    ``options.THINK`` and should be what the prompt was rendered with: ``plain`` and ``feel`` await a
    reasoning block, which the dose leaves alone or not; ``off`` awaits none, and leaves one that the
    prompt opens all the same alone.
    """

    key: Any
    prompt: list[int]
    dose: Dose | None = None
    all_positions: bool = False
    history: tuple[Span, ...] = ()
    think: str = "off"


@dataclass(frozen=True)
class Piece:
    """More of an unfinished sequence, without text while it is ``thinking``. ``row`` steers what follows."""

    key: Any
    text: str
    token: int
    thinking: bool
    row: Row = field(compare=False, repr=False)


@dataclass(frozen=True)
class Finished:
    """A complete sequence. ``tokens`` are without the end mark; ``reason`` is ``stop`` or ``length``.

    A reasoning block in front is left out, and with it everything if it did not end. With capture,
    ``mean`` ``[L, d]`` float32 is the mean tapped activation over ``tokens``, ``norm`` ``[L]`` the mean of
    their norms; layers without a tap are zero.
    """

    key: Any
    tokens: list[int]
    text: str
    reason: str
    mean: np.ndarray | None = None
    norm: np.ndarray | None = None


def run_batch(
    voice: Voice,
    jobs: Iterable[Job],
    *,
    batch_size: int,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    capture: bool = False,
    pieces: bool = False,
    seed: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
    dropped: Callable[[Any], bool] = lambda _: False,
) -> Iterator[Piece | Finished]:
    """Generate all ``jobs``, ``batch_size`` at a time; yields ``Finished`` as they finish.

    Jobs are taken from the iterator only as rows come free, so memory does not grow with their
    number. Each token passes through the model once; with ``capture``, activations are summed on the
    way. ``seed`` makes sampling the same whatever else the thread does meanwhile. ``pieces`` also yields
    text as it comes; a sequence whose key is ``dropped`` after a piece of it is taken out unfinished. Must
    run on the thread that owns MLX.
    """
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.sample_utils import make_sampler

    ends = sorted(voice.loaded.tokenizer.eos_token_ids)
    # -1 is no token: comparing with nothing at all would be an empty array.
    end_ids = mx.array(ends or [-1])
    sampler = make_sampler(temperature, top_p)
    together = prefilled_together(voice)
    generator: Any
    if together:
        generator = BatchGenerator(
            voice.model,  # type: ignore[arg-type]  # called like the model
            max_tokens=max_tokens,
            stop_tokens=[[t] for t in ends],
            sampler=sampler,
            completion_batch_size=batch_size,
            prefill_batch_size=min(together, batch_size),
        )
    else:
        generator, batch_size = _OneByOne(voice, max_tokens, set(ends), sampler), 1
    tokenizer, stops = voice.loaded.tokenizer, voice.loaded.template.stops
    source = iter(jobs)
    running: dict[int, tuple[Job, Row, list[int], _Reader]] = {}
    exhausted = False
    rounds = seeded(iter(generator.next_generated, None), seed) if seed is not None else None
    try:
        while not stopped():
            while not exhausted and len(running) < batch_size:
                job = next(source, None)
                if job is None:
                    exhausted = True
                    break
                row = Row(list(job.history), make=voice.dose)
                start = (job.history[-1][1] or 0) if job.history else 0
                row.set(job.dose, start if job.all_positions else len(job.prompt) - 1)
                sums = Sums([len(job.prompt)], end_ids, tokenizer.think_end_tokens or ()) if capture else None
                (uid,) = generator.insert([list(job.prompt)], caches=[voice.model.cache(row, sums)])
                reader = _Reader(tokenizer, job.prompt, job.think != "off", stops)
                if reader.thoughts.inside and job.think != "feel":
                    row.set(None, len(job.prompt) - 1)
                running[uid] = (job, row, [], reader)
            if not running:
                return
            for response in generator.next_generated() if rounds is None else next(rounds):
                job, row, tokens, reader = running[response.uid]
                if response.finish_reason != "stop":
                    tokens.append(response.token)
                    thinking = reader.thoughts.inside
                    text = reader.add(response.token) if pieces or thinking or stops else ""
                    if thinking and not reader.thoughts.inside and job.think != "feel":
                        row.set(job.dose, row.offset)
                    if pieces:
                        yield Piece(job.key, text, response.token, thinking, row)
                reason, cache = response.finish_reason, response.prompt_cache
                if reason is None and dropped(job.key):
                    generator.remove([response.uid])
                    del running[response.uid]
                elif reason is None and reader.stopped:  # its last few tokens are in the means
                    reason, cache = "stop", generator.remove([response.uid], return_prompt_caches=True)[response.uid][0]
                if reason is None or response.uid not in running:
                    continue
                mean = norm = None
                answer = answer_tokens(tokenizer, job.prompt, tokens)
                if capture and answer:
                    mean, norm = _means(cache[-1].sums, voice)
                del running[response.uid]
                text = tokenizer.decode(answer)
                if reader.stopped:
                    text, _ = until_stop(text, stops, True)
                    answer = voice.loaded.template.encode(text)
                yield Finished(job.key, answer, text.strip(), reason, mean, norm)
    finally:
        generator.close()


# Models of mlx-lm 0.32.2 that go wrong with rows of different lengths: afm7 takes the padded length for the
# position of the keys it reuses, gemma2's mask does not fit its grouped heads, gpt_bigcode has one position for all.
ALONE = {"mlx_lm.models.afm7", "mlx_lm.models.gemma2", "mlx_lm.models.gpt_bigcode"}


def prefilled_together(voice: Voice) -> int:
    """How many prompts this model can take in one pass; 0 where its rows can't be batched at all.

    Padding must not reach a recurrent state, and not every recurrent model of mlx-lm masks it (jamba,
    rwkv7, nemotron_h and more do not): those take prompts one by one and go on together. A kind of
    cache without ``merge`` (llama4, deepseek_v41) is not made for batches.
    """
    from mlx_lm.models.cache import ArraysCache, CacheList, make_prompt_cache

    model = voice.taps.model
    caches = make_prompt_cache(model)
    if type(model).__module__ in ALONE or not all(hasattr(c, "merge") for c in caches):
        return 0
    parts = [part for c in caches for part in (c.caches if isinstance(c, CacheList) else [c])]
    return 1 if any(isinstance(part, ArraysCache) for part in parts) else 8


@dataclass(frozen=True)
class _Response:
    uid: int
    token: int
    finish_reason: str | None
    prompt_cache: list[Any]


class _OneByOne:
    """Stands in for mlx-lm's ``BatchGenerator`` where a model can't be batched: one sequence after another."""

    def __init__(self, voice: Voice, max_tokens: int, ends: set[int], sampler: Any) -> None:
        self.voice, self.max_tokens, self.ends, self.sampler = voice, max_tokens, ends, sampler
        self._uid = 0
        self._cache: list[Any] = []
        self._steps: Iterator[_Response] = iter(())

    def insert(self, prompts: list[list[int]], caches: list[list[Any]]) -> list[int]:
        (prompt,), (cache,) = prompts, caches
        self._uid, self._cache = self._uid + 1, cache
        self._steps = self._generate(self._uid, prompt, cache)
        return [self._uid]

    def remove(self, uids: list[int], return_prompt_caches: bool = False) -> dict[int, tuple]:  # noqa: ARG002
        self._steps = iter(())
        return {self._uid: (self._cache, [])}

    def next_generated(self) -> list[_Response]:
        return [next(self._steps)]

    def close(self) -> None:
        self._steps = iter(())

    def _generate(self, uid: int, prompt: list[int], cache: list[Any]) -> Iterator[_Response]:
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        steps = generate_step(
            mx.array(prompt),
            self.voice.model,  # type: ignore[arg-type]  # called like the model
            max_tokens=self.max_tokens,
            sampler=self.sampler,
            prompt_cache=cache,
        )
        for count, (token, _) in enumerate(steps, 1):
            reason = "stop" if int(token) in self.ends else "length" if count == self.max_tokens else None
            yield _Response(uid, int(token), reason, cache)
            if reason:
                return


class _Reader:
    """Turns one row's tokens into text, and tells a reasoning block from the answer; ``think``: one may begin.

    ``stopped`` once one of ``stops`` was said; that, and what looks like its beginning, is kept back.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], think: bool, stops: tuple[str, ...]) -> None:
        self.stops, self.stopped = stops, False
        self._said, self._shown = "", 0
        self._inner = tokenizer.detokenizer  # a new one each time
        self._count = 0
        self.thoughts = Thoughts(tokenizer, tokenizer.decode(prompt[-PROMPT_TAIL:]), think)

    def add(self, token: int) -> str:
        """What ``token`` adds to the answer."""
        self._inner.add_token(token)
        self._count += 1
        pieces = self.thoughts.add(self._inner.last_segment, self._count)
        text = "".join(text for kind, text in pieces if kind == ANSWER)
        if not self.stops:
            return text
        self._said += text
        whole, self.stopped = until_stop(self._said, self.stops, False)
        text, self._shown = whole[self._shown :], max(self._shown, len(whole))
        return text


def _means(sums: Sums, voice: Voice) -> tuple[np.ndarray | None, np.ndarray | None]:
    count = float(sums.counts)
    if not count or sums.totals is None or sums.norms is None:
        return None, None
    mean = np.zeros((voice.taps.count, voice.taps.width), np.float32)
    norm = np.zeros(voice.taps.count, np.float32)
    layers = list(voice.taps.layers)
    mean[layers] = np.array(sums.totals[0]) / count
    norm[layers] = np.array(sums.norms[0]) / count
    return mean, norm
