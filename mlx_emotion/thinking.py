"""The reasoning block of thinking models: where in a reply it is, so that it can be left unsteered and shown apart.

Which marks begin and end it, mlx-lm's tokenizer wrapper knows. A template may open the block itself
(DeepSeek-R1), leave it to the model (Qwen3), or close it at once when told not to think.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

ANSWER, THOUGHT = "answer", "thought"


def opens(tokenizer: TokenizerWrapper, text: str) -> bool:
    """Whether ``text`` ends inside a block."""
    return tokenizer.has_thinking and text.rfind(tokenizer.think_start) > text.rfind(tokenizer.think_end)


class Thoughts:
    """Follows one reply and tells its reasoning from its answer. There is at most one block, in front.

    ``inside`` is whether the next token is taken for reasoning, ``tokens`` how many of the reply's tokens
    the block took, marks included, once it has ended; ``text`` what was thought.
    """

    def __init__(self, tokenizer: TokenizerWrapper, opening: str, think: bool) -> None:
        """``opening`` is what the template writes to open the model's turn; ``think`` whether it may think."""
        from mlx_lm.generate import TextStateMachine

        self.machine = TextStateMachine
        self.tokens = 0
        self.text = ""
        self._open = opens(tokenizer, opening)
        # A model that could begin with a block is taken to do so until its first words say otherwise.
        closed = tokenizer.has_thinking and tokenizer.think_end in opening
        self._awaited = tokenizer.has_thinking and think and not self._open and not closed
        self._blank = self._open
        if self.inside:
            marks = {ANSWER: [(tokenizer.think_start, THOUGHT)], THOUGHT: [(tokenizer.think_end, ANSWER)]}
            self._state = TextStateMachine(marks).make_state(THOUGHT if self._open else ANSWER)

    @property
    def inside(self) -> bool:
        return self._open or self._awaited

    @property
    def unfinished(self) -> bool:
        """Whether the block was begun and not ended."""
        return self._open

    def add(self, text: str, count: int) -> list[tuple[str, str]]:
        """Take in more of the reply, ``count`` tokens in all: pieces of (``ANSWER`` or ``THOUGHT``, text)."""
        if not self.inside:
            return self._keep([(ANSWER, text)])
        self._state, segments = self.machine.split(self._state, text)
        where = self._state[0]
        if self._open and where == ANSWER or any(kind == ANSWER and piece.strip() for kind, piece in segments):
            self.tokens = count if any(kind == THOUGHT for kind, _ in segments) else 0
            self._open = self._awaited = False
            return self._keep([*segments, *self._rest()])
        if where == THOUGHT and not self._open:
            self._open, self._awaited, self._blank = True, False, True
        return self._keep([s for s in segments if s[0] == THOUGHT])

    def finish(self) -> list[tuple[str, str]]:
        """What was held back, because it could have been the beginning of a mark."""
        return self._keep(self._rest()) if self.inside else []

    def _rest(self) -> list[tuple[str, str]]:
        self._state, held, where = self.machine.flush(self._state)
        return [(where, held)]

    def _keep(self, segments: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The segments without the blanks that follow a mark."""
        kept = []
        for kind, piece in segments:
            if self._blank or (self.tokens and kind == ANSWER and not self._answered):
                piece = piece.lstrip()
            if piece:
                kept.append((kind, piece))
        return kept
