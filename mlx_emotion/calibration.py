"""Calibration: which raw scale is intensity 1.0, per emotion, on this model and quantisation.

Intensity 1.0 is the largest scale at which steered replies are still fluent, or a share of it, found by doubling or
halving and bisection. Fluent is judged by the model itself, unsteered: each steered reply's mean negative
log-likelihood, in the plain or in the emotional setting, whichever explains it better, must stay near that of the
replies the model gives when *asked* to be emotional; and the replies must not repeat themselves (distinct-2), nor be
empty where those are not. `docs/decisions.md` compares this with other criteria.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import queries as query_sets
from .batch import Finished, Job, run_batch
from .emotions import BASE, instructions
from .errors import Interrupted, MLXEmotionError
from .files import atomic_write, extraction_folder
from .guard import distinct_2
from .session import Voice
from .vectors import EmotionVectors
from .vectors.pack import SMALLEST

PROMPTS = 16
MARGIN = 0.5
"""How much less likely per token, in nats, than the model's own emotional replies: 1.65 times the perplexity."""
DISTINCT = 0.9
LARGEST = 32.0
STEPS = 4
"""How often the octave with the edge in it is halved: to 4 % of the scale."""
TEMPERATURE, TOP_P, MAX_TOKENS = 0.6, 0.9, 64


@dataclass(frozen=True)
class Fluency:
    """How fluent a set of replies is: mean negative log-likelihood in nats per token, mean distinct-2.

    Both are of the replies that are not ``empty``; without any, neither is a number.
    """

    nll: float
    distinct: float
    empty: int = 0

    def within(self, reference: Fluency) -> bool:
        spoken = self.empty <= reference.empty
        return spoken and self.nll <= reference.nll + MARGIN and self.distinct >= DISTINCT * reference.distinct


def edge(fluent: Callable[[float], bool]) -> float:
    """The largest scale that is ``fluent``, at most ``LARGEST``.

    Where not even ``SMALLEST`` is, that: it is the unsteered replies that are not fluent.
    """
    if fluent(1.0):
        low, high = 1.0, 2.0
        while high <= LARGEST and fluent(high):
            low, high = high, high * 2
        if high > LARGEST:
            return LARGEST
    else:
        low, high = 0.5, 1.0
        while not fluent(low):
            if low <= SMALLEST:
                return SMALLEST
            low, high = low / 2, low
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fluent(middle) else (low, middle)
    return low


class Calibration:
    """Finds the scales of one pack: ``share`` (over 0, at most 1) of the largest that are fluent.

    Runs on the thread that owns MLX.
    """

    def __init__(
        self,
        voice: Voice,
        pack: EmotionVectors,
        seed: int,
        stopped: Callable[[], bool] = lambda: False,
        share: float = 1.0,
    ) -> None:
        self.voice, self.pack, self.seed, self.stopped, self.share = voice, pack, seed, stopped, share
        found, _ = query_sets.shipped()
        emotions = list(found)
        # A few questions of every emotion, so that the dose is not fitted to the mood of the question.
        self.questions = [found[emotions[i % len(emotions)]][-1 - i // len(emotions)] for i in range(PROMPTS)]
        self.plain = [self._prompt(q) for q in self.questions]
        name = f"calibration-{voice.loaded.identity.fingerprint[:16]}-{voice.taps.site}.json"
        self.path = extraction_folder() / name

    def _prompt(self, text: str) -> list[int]:
        template = self.voice.loaded.template
        return template.encode(template.render([{"role": "user", "content": text}]))

    def generate(self, prompts: list[list[int]], vector: np.ndarray | None) -> list[list[int]]:
        """Replies to ``prompts``, sampled with the calibration's seed, steered by ``vector`` ``[L, d]``."""
        import mlx.core as mx

        mx.random.seed(self.seed)
        dose = None if vector is None else self.voice.taps.dose(vector)
        replies: dict[int, list[int]] = {}
        jobs = (Job(i, p, dose) for i, p in enumerate(prompts))
        options: dict[str, Any] = {"temperature": TEMPERATURE, "top_p": TOP_P, "stopped": self.stopped}
        for done in run_batch(self.voice, jobs, batch_size=PROMPTS, max_tokens=MAX_TOKENS, **options):
            assert isinstance(done, Finished)
            replies[done.key] = done.tokens
        if self.stopped():
            raise Interrupted(
                "calibration stopped, the pack keeps the scales it had; the same command goes on from here"
            )
        return [replies[i] for i in range(len(prompts))]

    def _likelihood(self, prompts: list[list[int]], replies: list[list[int]]) -> np.ndarray:
        """Mean negative log-likelihood per token of each reply after its prompt, unsteered; [N] float64.

        No reply may be empty.
        """
        import mlx.core as mx

        out = np.zeros(len(replies))
        for low in range(0, len(replies), 4):
            pairs = [(p, r) for p, r in zip(prompts[low : low + 4], replies[low : low + 4])]
            longest = max(len(p) + len(r) for p, r in pairs)
            # Padding is on the right, where a causal model's earlier tokens cannot see it.
            ids = np.zeros((len(pairs), longest), np.int32)
            for row, (p, r) in enumerate(pairs):
                ids[row, : len(p) + len(r)] = [*p, *r]
            tokens = mx.array(ids)
            logits, _ = self.voice.taps.forward(tokens[:, :-1], None, None, False)
            logits = logits.astype(mx.float32)
            chosen = mx.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
            losses = np.array(mx.logsumexp(logits, axis=-1) - chosen)
            for row, (p, r) in enumerate(pairs):
                out[low + row] = losses[row, len(p) - 1 : len(p) + len(r) - 1].mean()
        return out

    def fluency(self, replies: list[list[int]], settings: list[list[list[int]]]) -> Fluency:
        """How fluent ``replies`` are after the prompts of whichever setting explains each better."""
        spoken = [i for i, reply in enumerate(replies) if reply]
        empty, said = len(replies) - len(spoken), [replies[i] for i in spoken]
        if not said:
            return Fluency(math.nan, math.nan, empty)
        nll = np.min([self._likelihood([prompts[i] for i in spoken], said) for prompts in settings], axis=0)
        return Fluency(float(nll.mean()), float(np.mean([distinct_2(r) for r in said])), empty)

    def asked(self, name: str) -> list[list[int]]:
        """The prompts in the emotional setting; for ``base``, each asks for one of the pack's emotions."""
        names, info = list(self.pack) if name == BASE else [name], self.pack.info
        prompts = []
        for i, question in enumerate(self.questions):
            emotion = names[i % len(names)]
            wordings = tuple(info.emotions[emotion].get("instructions") or instructions(info.catalogue[emotion]))
            prompts.append(self._prompt(f"{wordings[i % len(wordings)]}\n\n{question}"))
        return prompts

    def scale(self, name: str) -> float:
        """The largest fluent scale for one emotion, or for ``base``.

        Raises ``MLXEmotionError`` where the model, asked for it, mostly says nothing.
        """
        loaded, vector = self.voice.loaded, self.pack[name]
        emotional = self.asked(name)
        reference = self.fluency(self.generate(emotional, None), [emotional])
        total = len(emotional)
        if 2 * reference.empty > total:
            why = "; it thinks before it answers" if loaded.tokenizer.has_thinking else ""
            raise MLXEmotionError(
                f"{loaded.identity.id} gave {reference.empty} of {total} empty replies when asked for {name}, too many "
                f"to calibrate by{why}"
            )

        def fluent(scale: float) -> bool:
            replies = self.generate(self.plain, np.float32(scale) * vector)
            return self.fluency(replies, [self.plain, emotional]).within(reference)

        return edge(fluent)

    def run(self, progress: Callable[[int, int, str], None] | None = None) -> None:
        """Set the scale of every emotion of the pack, and of its base vector.

        The pack changes at the end, all at once. What is found is kept in a file until ``forget``, and taken up.
        """
        names = [*self.pack, BASE]
        found = _kept(self.path)
        keys = [self._key(name) for name in names]
        for n, (name, key) in enumerate(zip(names, keys)):
            if progress:
                progress(n, len(names), name)
            if key not in found:
                found[key] = float(f"{self.scale(name):.4g}")
                with atomic_write(self.path) as temporary:
                    temporary.write_text(json.dumps(found))
        for name, key in zip(names, keys):
            scale = float(f"{self.share * found[key]:.4g}")
            if name == BASE:
                self.pack.info.base_scale = scale
            else:
                self.pack.info.emotions[name]["scale"] = scale
        self.pack.info.calibration = {
            "method": "likelihood",
            "margin_nats": MARGIN,
            "share": float(f"{self.share:.4g}"),
            "distinct_2": DISTINCT,
            "prompts": PROMPTS,
            "temperature": TEMPERATURE,
            "seed": self.seed,
        }
        if progress:
            progress(len(names), len(names), "")

    def forget(self) -> None:
        """Remove what is kept; the pack is safe elsewhere."""
        self.path.unlink(missing_ok=True)

    def _key(self, name: str) -> str:
        """What the scale of ``name`` depends on, as a hash."""
        digest = hashlib.sha256(np.ascontiguousarray(self.pack[name], np.float32).tobytes())
        settings = (self.asked(name), self.plain, self.seed, self.voice.taps.layers, MARGIN, DISTINCT, STEPS, SMALLEST)
        digest.update(repr(settings).encode())
        return digest.hexdigest()[:32]


def _kept(path: Path) -> dict[str, float]:
    """The scales that an interrupted calibration left; none from a file that is not as it was written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    good = isinstance(found, dict) and all(isinstance(v, float | int) and 0 < v <= LARGEST for v in found.values())
    return found if good else {}
