"""Many sequences at once, each steered its own way, through mlx-lm's continuous batching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .session import Voice
from .steering import Dose, Row, Sums


@dataclass(frozen=True)
class Job:
    """One sequence to generate: prompt ids, and the dose on its response (or on ``all`` positions)."""

    key: Any
    prompt: list[int]
    dose: Dose | None = None
    all_positions: bool = False


@dataclass(frozen=True)
class Piece:
    """More text of an unfinished sequence."""

    key: Any
    text: str
    token: int


@dataclass(frozen=True)
class Finished:
    """A complete sequence. ``tokens`` are without the end mark; ``reason`` is ``stop`` or ``length``.

    With capture, ``mean`` ``[L, d]`` float32 is the mean tapped activation over ``tokens``, ``norm``
    ``[L]`` the mean of their norms; layers without a tap are zero.
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
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Piece | Finished]:
    """Generate all ``jobs``, ``batch_size`` at a time; yields ``Finished`` as they finish.

    Jobs are taken from the iterator only as rows come free, so memory does not grow with their
    number. Each token passes through the model once; with ``capture``, activations are summed on the
    way. ``pieces`` also yields text as it comes. Must run on the thread that owns MLX.
    """
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.sample_utils import make_sampler

    ends = sorted(voice.loaded.tokenizer.eos_token_ids)
    # -1 is no token: comparing with nothing at all would be an empty array.
    end_ids = mx.array(ends or [-1])
    generator = BatchGenerator(
        voice.model,  # type: ignore[arg-type]  # called like the model
        max_tokens=max_tokens,
        stop_tokens=[[t] for t in ends],
        sampler=make_sampler(temperature, top_p),
        completion_batch_size=batch_size,
        prefill_batch_size=min(8, batch_size),
    )
    tokenizer = voice.loaded.tokenizer
    source = iter(jobs)
    running: dict[int, tuple[Job, list[int], Any]] = {}
    exhausted = False
    try:
        while not stopped():
            while not exhausted and len(running) < batch_size:
                job = next(source, None)
                if job is None:
                    exhausted = True
                    break
                row = Row.steered(job.dose, 0 if job.all_positions else len(job.prompt) - 1)
                sums = Sums([len(job.prompt)], end_ids) if capture else None
                (uid,) = generator.insert([list(job.prompt)], caches=[voice.model.cache(row, sums)])
                running[uid] = (job, [], _Detokenizer(tokenizer) if pieces else None)
            if not running:
                return
            for response in generator.next_generated():
                job, tokens, detokenizer = running[response.uid]
                if response.finish_reason != "stop":
                    tokens.append(response.token)
                    if detokenizer is not None:
                        yield Piece(job.key, detokenizer.add(response.token), response.token)
                if response.finish_reason is None:
                    continue
                mean = norm = None
                if capture:
                    mean, norm = _means(response.prompt_cache[-1].sums, voice)
                del running[response.uid]
                text = tokenizer.decode(tokens).strip()
                yield Finished(job.key, tokens, text, response.finish_reason, mean, norm)
    finally:
        generator.close()


class _Detokenizer:
    """A streaming detokenizer of one row's own; the tokenizer's property makes a new one each time."""

    def __init__(self, tokenizer: Any) -> None:
        self._inner = tokenizer.detokenizer

    def add(self, token: int) -> str:
        self._inner.add_token(token)
        return self._inner.last_segment


def _means(sums: Sums, voice: Voice) -> tuple[np.ndarray | None, np.ndarray | None]:
    count = float(sums.counts.item())
    if not count or sums.totals is None or sums.norms is None:
        return None, None
    mean = np.zeros((voice.taps.count, voice.taps.width), np.float32)
    norm = np.zeros(voice.taps.count, np.float32)
    layers = list(voice.taps.layers)
    mean[layers] = np.array(sums.totals[0]) / count
    norm[layers] = np.array(sums.norms[0]) / count
    return mean, norm
