"""Repetition: how over-steering fails. A cheap detector for while a reply is written, and distinct-2 for after."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Scales = tuple[tuple[str, float], ...]

LONGEST_PERIOD = 40
REPEATS = 3
SHORTEST_LOOP = 9


class LoopDetector:
    """Notices when the end of a token sequence is one block said three times in a row.

    ``add`` costs one comparison for each period up to 40 tokens. A loop is at least 9 tokens long, so
    that "very, very, very" is no loop.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._tokens: list[int] = []
        self._runs = [0] * (LONGEST_PERIOD + 1)

    def add(self, token: int) -> bool:
        """Take in one token; ``True`` when a loop has just been completed."""
        tokens, runs = self._tokens, self._runs
        looped = False
        for period in range(1, min(LONGEST_PERIOD, len(tokens)) + 1):
            if tokens[-period] == token:
                runs[period] += 1
                # A run of n equal pairs at a distance p is a block of p repeated over n + p tokens.
                if runs[period] + period >= max(REPEATS * period, SHORTEST_LOOP):
                    looped = True
            else:
                runs[period] = 0
        tokens.append(token)
        if len(tokens) > LONGEST_PERIOD:
            del tokens[0]
        return looped


WEAKEST = 0.25
"""Once the dose was halved to below this share and the reply still loops, it is ended."""


class Guard:
    """Weakens what one reply feels each time it begins to loop, and ends it where that does not help.

    ``factor`` is what its dose is to be times; ``ended`` says that nothing but ending it is left.
    """

    def __init__(self) -> None:
        self.factor, self.ended = 1.0, False
        self._loops = LoopDetector()

    def restart(self) -> None:
        """Forget the tokens so far: the feeling is another now."""
        self._loops.reset()

    def add(self, token: int) -> bool:
        """Take in one token; ``True`` when it completed a loop, and ``factor`` or ``ended`` has changed."""
        if not self._loops.add(token):
            return False
        if self.factor < WEAKEST:
            self.ended = True
        else:
            self.factor /= 2
            self._loops.reset()
        return True

    def weakened(self, scales: Scales) -> Scales:
        """``scales`` as they are to be now."""
        return tuple((name, scale * self.factor) for name, scale in scales)


def distinct_2(items: Sequence[object]) -> float:
    """Unique over total bigrams of ``items`` (words or tokens), in [0, 1]; 1 for fewer than two."""
    pairs = list(pairwise(items))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
