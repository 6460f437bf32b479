"""What a conversation tells its listener. Only str, numbers and tuples: safe to pass between threads."""

from __future__ import annotations

from dataclasses import dataclass, field

Weights = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Token:
    """One more token of the reply. ``text`` may be empty while a character is not whole."""

    text: str
    index: int


@dataclass(frozen=True)
class Thought:
    """More of the reasoning block that comes before the answer of a thinking model; ``index`` as in ``Token``."""

    text: str
    index: int


@dataclass(frozen=True)
class FeelingChanged:
    """The feeling is another from token ``index`` + 1 on (decoding runs one token ahead)."""

    feeling: str
    weights: Weights
    index: int


@dataclass(frozen=True)
class Reading:
    """What the activations of token ``index`` say: (emotion, reading) pairs, 1 being a full dose of it.

    ``own`` is the model's own output at the tapped site, before anything is added there; ``steered`` is
    with what was added. Index -1 is the prompt's last token. See `readout`.
    """

    index: int
    own: Weights
    steered: Weights


@dataclass(frozen=True)
class GuardTripped:
    """The reply began to loop at token ``index``; from here on the dose is times ``factor``."""

    index: int
    factor: float


@dataclass(frozen=True)
class Done:
    """The reply is complete.

    ``finish_reason``: ``stop`` (ended by itself), ``length``, ``cancelled`` or ``loop`` (the guard ended
    it). ``thinking`` is the reasoning block that came before ``text``, and took ``thinking_tokens`` of the ``tokens``.
    ``timeline`` are (index of the first token, feeling), thoughts counted. ``scale`` is the raw scale per
    emotion at the end; ``prefilled`` counts prompt tokens computed for this reply; times are in seconds.
    """

    text: str
    finish_reason: str
    feeling: str
    scale: Weights
    seed: int
    guard: bool
    prompt_tokens: int
    prefilled: int
    tokens: int
    tokens_per_second: float
    time_to_first_token: float
    timeline: tuple[tuple[int, str], ...] = field(default=())
    thinking: str = ""
    thinking_tokens: int = 0


Event = Token | Thought | FeelingChanged | Reading | GuardTripped | Done
