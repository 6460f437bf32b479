"""How replies are made: checked in one place, without loading anything."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from .errors import UsageError

POSITIONS = ("response", "all")
HISTORY = ("keep", "refeel")
THINK = ("plain", "feel", "off")


def check_seed(seed: int | None) -> int | None:
    """``seed`` if MLX can take it, or there is none. Raises ``UsageError``."""
    if seed is None:
        return None
    try:
        number = operator.index(seed)  # a NumPy integer overflows where a seed is reckoned with
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise UsageError(f"seed is {seed}, wanted a whole number, 0 to 2^63 - 1")
    return number


def check_text(text: str, what: str) -> str:
    """``text`` if it is text: a terminal or a file in another encoding gives what no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not valid UTF-8") from None
    return text


@dataclass(frozen=True)
class Options:
    """How replies are made. Defaults are those of the authors' code for arXiv 2502.04075.

    ``context`` is the most tokens of a conversation that the model reads, its own context at most: older exchanges
    leave first, and with them what their keys and values take of memory. ``positions``: ``response`` steers the last
    prompt token and every generated one, ``all`` the prompt too. ``history``: ``keep`` leaves what was said as it was
    felt when the feeling changes, ``refeel`` computes it again. ``scale`` replaces calibrated intensities by one raw
    multiplier. ``readout`` also yields a ``Reading`` of every token. ``think``, for models that reason in a block of
    its own before they answer: ``plain`` leaves the block unsteered, ``feel`` steers it too, ``off`` asks the model
    not to think.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    max_tokens: int = 512
    context: int | None = None
    positions: str = "response"
    history: str = "keep"
    system: str | None = None
    scale: float | None = None
    guard: bool = True
    readout: bool = False
    think: str = "plain"

    def __post_init__(self) -> None:
        check_text(self.system or "", "the system message")
        if not 0 <= self.temperature <= 10:
            raise UsageError(f"temperature is {self.temperature:g}, wanted 0 to 10")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is {self.top_p:g}, wanted more than 0 and at most 1")
        if self.max_tokens < 1:
            raise UsageError(f"max-tokens is {self.max_tokens}, wanted at least 1")
        if self.context is not None and self.context < 2:
            raise UsageError(f"context is {self.context}, wanted at least 2")
        if self.positions not in POSITIONS:
            raise UsageError(f"unknown positions {self.positions!r}: known are {', '.join(POSITIONS)}")
        if self.history not in HISTORY:
            raise UsageError(f"unknown history {self.history!r}: known are {', '.join(HISTORY)}")
        if self.think not in THINK:
            raise UsageError(f"unknown think {self.think!r}: known are {', '.join(THINK)}")
        if self.scale is not None and not -1000 <= self.scale <= 1000:
            raise UsageError(f"scale is {self.scale:g}, wanted -1000 to 1000")
