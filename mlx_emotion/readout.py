"""What a model's own activations say about each emotion, token by token.

A reading of emotion e is the projection of the tapped activation on its vector, summed over layers,
in units of the calibrated full dose: ``<h - z, v_e> / (s_e <v_e, v_e>)``, where ``z`` is the mean over
a few neutral replies. So 0 is the model's ordinary, neutral self, and adding intensity 1.0 of e alone
raises the reading of e by exactly 1. Of a vector that is not calibrated, s_e is 1. The vectors share a
direction (arXiv 2502.04075: cosines of 0.6 to 0.8), so one emotion raises the readings of the others too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .emotions import Feeling
from .errors import UsageError
from .events import Reading
from .options import check_text
from .thinking import opens
from .vectors import EmotionVectors

if TYPE_CHECKING:
    from .session import Voice
    from .steering import Dose, Row

ZERO_PROMPTS = (
    "What can I cook with rice and tomatoes?",
    "How do I get to the station?",
    "What is a good time to water plants?",
    "How many days are there in May?",
    "Can you explain what a library is for?",
    "What should I put in a suitcase?",
)
ZERO_TOKENS = 24
MARK = "\ue000"
"""For private use: no chat template has it, nor has a tokenizer's frame."""


class Projector:
    """Projects activations of one model on the vectors of one pack. Runs on the thread that owns MLX.

    ``names`` are the emotions, in the order of every reading; ``layers`` the 0-based tapped ones;
    ``zero`` ``[L, d]`` float32 is the activation that reads 0 everywhere.
    """

    def __init__(self, vectors: EmotionVectors, layers: Sequence[int], zero: np.ndarray | None = None) -> None:
        self.names = tuple(vectors)
        self.layers = tuple(layers)
        chosen = list(self.layers)
        weights = []
        for name in self.names:
            flat = vectors[name][chosen].reshape(-1).astype(np.float64)
            length = float(flat @ flat) * (vectors.scale(name) or 1.0)
            weights.append(flat / (length or 1.0))  # a vector that is zero at all tapped layers reads 0
        self._weights = np.stack(weights, axis=1).astype(np.float32)  # (L * d, E)
        self._on_device = mx.array(self._weights)
        self._zero = np.zeros(len(self.names), np.float32)
        if zero is not None:
            self._zero = self.of(zero)
        self._added: dict[int, tuple[Dose, np.ndarray]] = {}

    def of(self, activation: np.ndarray) -> np.ndarray:
        """The reading of ``activation`` ``[L, d]``; float32 ``[E]``."""
        flat = activation[list(self.layers)].reshape(-1).astype(np.float32)
        return flat @ self._weights - self._zero

    def project(self, captured: list[mx.array | None]) -> mx.array:
        """Of a forward pass' tapped outputs ``[1, T, d]`` by layer, the last position's reading; lazy ``[E]``."""
        held = [captured[i] for i in self.layers]
        last = mx.concatenate([h[0, -1] for h in held if h is not None]).astype(mx.float32)
        return last @ self._on_device

    def project_all(self, captured: list[mx.array | None]) -> mx.array:
        """Of tapped outputs ``[1, T, d]`` by layer, every position's reading; lazy ``[T, E]``."""
        shares = self._on_device.reshape(len(self.layers), -1, len(self.names))
        held = [captured[i] for i in self.layers]
        parts = [h[0].astype(mx.float32) @ w for h, w in zip(held, shares) if h is not None]
        return mx.sum(mx.stack(parts), axis=0)

    def settle(self, projected: mx.array) -> np.ndarray:
        """A reading that ``project`` gave, as numbers."""
        return np.array(projected) - self._zero

    def added(self, dose: Dose | None) -> np.ndarray:
        """How much a dose adds to the reading of the activation it is put on; float32 ``[E]``."""
        if dose is None:
            return np.zeros(len(self.names), np.float32)
        if id(dose) not in self._added:
            if len(self._added) >= 32:
                self._added.clear()
            self._added[id(dose)] = (dose, self.of(dose.vector) + self._zero)
        return self._added[id(dose)][1]


class Watch:
    """The readings of one reply. Hang ``observe`` on its ``SteeringCache`` and take ``ready`` now and then.

    Values are computed behind the model's own passes and taken up a token later, so nothing waits.
    """

    def __init__(self, projector: Projector, row: Row, prompt: int) -> None:
        self._projector, self._row, self._prompt = projector, row, prompt
        self._waiting: deque[tuple[int, mx.array, np.ndarray]] = deque()

    def observe(self, captured: list[mx.array | None]) -> None:
        """Take in a pass, before the row's offset moves on."""
        first = next(c for c in captured if c is not None)
        index = self._row.offset + first.shape[1] - 1 - self._prompt
        if first.shape[1] != 1 or index < -1:
            return  # the prompt is not being said
        value = self._projector.project(captured)
        mx.async_eval(value)
        pieces = self._row.pieces(1)
        self._waiting.append((index, value, self._projector.added(pieces[0][2] if pieces else None)))

    def ready(self, before: int | None = None) -> Iterator[Reading]:
        """The readings of tokens before index ``before``, or all; each once. Index -1 is the prompt's last token."""
        names = self._projector.names
        while self._waiting and (before is None or self._waiting[0][0] < before):
            index, value, added = self._waiting.popleft()
            own = self._projector.settle(value)
            yield Reading(index, tuple(zip(names, own.tolist())), tuple(zip(names, (own + added).tolist())))


def neutral_activation(voice: Voice) -> np.ndarray:
    """The mean tapped activation ``[L, d]`` float32 over short neutral replies: what reads 0."""
    from .batch import Finished, Job, run_batch

    template, tokenizer = voice.loaded.template, voice.loaded.tokenizer
    jobs = []
    for question in ZERO_PROMPTS:
        text = template.render([{"role": "user", "content": question}])
        if opens(tokenizer, text):  # its thoughts would take all the tokens
            text += f"\n{tokenizer.think_end}\n\n"
        jobs.append(Job(question, template.encode(text)))
    results: Any = run_batch(voice, jobs, batch_size=len(jobs), max_tokens=ZERO_TOKENS, capture=True)
    means = [r.mean for r in results if isinstance(r, Finished) and r.mean is not None]
    if not means:
        return np.zeros((voice.taps.count, voice.taps.width), np.float32)
    return np.stack(means).mean(axis=0, dtype=np.float32)


@dataclass(frozen=True)
class TextReading:
    """The readings of a text as a user's message: ``values`` ``[T, E]`` float32, one row a token of it.

    ``last`` ``[E]`` is the reading where the answer would begin, after the whole message.
    """

    names: tuple[str, ...]
    tokens: tuple[str, ...]
    values: np.ndarray
    last: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean over the text's tokens ``[E]``."""
        return self.values.mean(0)


class PromptReader:
    """Reads texts as a user's messages. 0 is the mean reading of a few neutral questions, of tokens and of ``last``.

    Runs on the thread that owns MLX. Raises ``PackError`` for a model without a pack.
    """

    def __init__(self, voice: Voice) -> None:
        if voice.vectors is None:
            voice.scales(Feeling.of("base"), None)  # says how to make a pack
        assert voice.vectors is not None
        self._voice = voice
        self._projector = Projector(voice.vectors, voice.taps.layers)
        self.names = self._projector.names
        neutral = [self._raw(p) for p in ZERO_PROMPTS]
        self._zero = np.mean([values.mean(0) for _, values, _ in neutral], axis=0)
        self._zero_last = np.mean([last for _, _, last in neutral], axis=0)

    def read(self, text: str) -> TextReading:
        """The readings of ``text``.

        Raises ``UsageError`` for an empty text, one longer than the context, or one with half characters.
        """
        tokens, values, last = self._raw(check_text(text, "the text"))
        return TextReading(self.names, tokens, values - self._zero, last - self._zero_last)

    def _raw(self, text: str) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        loaded, taps = self._voice.loaded, self._voice.taps
        text = text.strip()
        if not text:
            raise UsageError("the text is empty")
        ids, inside = self._layout(text)
        if loaded.context is not None and len(ids) > loaded.context:
            raise UsageError(f"the text has {len(ids)} tokens, this model's context is {loaded.context}")
        from mlx_lm.models.cache import make_prompt_cache

        _, captured = taps.forward(mx.array([ids]), make_prompt_cache(taps.model), None, True)
        assert captured is not None
        values = np.array(self._projector.project_all(captured))
        pieces = tuple(loaded.tokenizer.decode([i]) for i in ids[inside])
        return pieces, values[inside], values[-1]

    def _layout(self, text: str) -> tuple[list[int], slice]:
        """The prompt's token ids, and which of them are the text's: a token that reaches into the text is."""
        template, tokenizer = self._voice.loaded.template, self._voice.loaded.tokenizer
        # The text may also stand in the frame around it ("a", "assistant"): a mark shows where it goes.
        before, _, after = template.render([{"role": "user", "content": MARK}]).partition(MARK)
        whole = template.render([{"role": "user", "content": text}])
        if whole != before + text + after:
            raise UsageError("this model's chat template changes the text; it cannot be read token by token")
        # All at once: tokenizers may put a blank in front of each piece, or join tokens across the seams.
        ids = template.encode(whole)
        begin, end = len(before), len(before) + len(text)
        if getattr(tokenizer, "is_fast", False):
            offsets = tokenizer._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
            inside = [i for i, (a, b) in enumerate(offsets["offset_mapping"]) if a < end and b > begin]
            return ids, slice(inside[0], inside[-1] + 1)
        first = min(_shared(ids, template.encode(before)), len(ids) - 1)
        return ids, slice(first, max(_shared(ids, template.encode(before + text)), first + 1))


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of their first ids two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
