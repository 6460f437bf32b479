"""The reasoning block of thinking models: where in a reply it is, so that it can be left unsteered and shown apart.

Which marks begin and end it, mlx-lm's tokenizer wrapper knows. A template may open the block itself
(DeepSeek-R1), leave it to the model (Qwen3), or close it at once when told not to think.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

ANSWER, THOUGHT = "answer", "thought"
START = "start"
"""Where a block may begin; what is said there without beginning one belongs to the answer."""
PROMPT_TAIL = 8
"""How many tokens at a prompt's end can be a template's, that opens a block, or opens and closes one."""


def opens(tokenizer: TokenizerWrapper, text: str) -> bool:
    """Whether ``text`` ends inside a block."""
    return tokenizer.has_thinking and text.rfind(tokenizer.think_start) > text.rfind(tokenizer.think_end)


def answer_tokens(tokenizer: TokenizerWrapper, prompt: list[int], tokens: list[int]) -> list[int]:
    """What of a reply's ``tokens`` comes after its reasoning block; nothing if the block does not end."""
    if not tokenizer.has_thinking:
        return tokens
    if (at := tokenizer.rfind_think_end(tokens)) >= 0:
        return tokens[at + len(tokenizer.think_end_tokens) :]
    tail = prompt[-PROMPT_TAIL:]
    opened = tokenizer.rfind_think_start(tail) > tokenizer.rfind_think_end(tail)
    return [] if opened or tokenizer.find_think_start(tokens) >= 0 else tokens


class Thoughts:
    """Follows one reply and tells its reasoning from its answer. There is at most one block, in front.

    ``inside`` is whether the next token is taken for reasoning; ``unfinished`` whether the block was
    begun and has not ended; ``tokens`` how many of the reply's tokens it took, marks included, once it has.
    """

    def __init__(self, tokenizer: TokenizerWrapper, opening: str, think: bool) -> None:
        """``opening`` is what the template writes to open the model's turn; ``think`` whether it may think."""
        from mlx_lm.generate import TextStateMachine

        self._machine = TextStateMachine
        self.tokens = 0
        self.unfinished = opens(tokenizer, opening)
        closed = tokenizer.has_thinking and tokenizer.think_end in opening
        # A model that may think is taken to do so, until its first words say otherwise.
        self._awaited = tokenizer.has_thinking and think and not self.unfinished and not closed
        self._begun: set[str] = set() if self.inside else {ANSWER}
        if self.inside:
            marks = {START: [(tokenizer.think_start, THOUGHT)], THOUGHT: [(tokenizer.think_end, ANSWER)], ANSWER: []}
            self._state = TextStateMachine(marks).make_state(THOUGHT if self.unfinished else START)

    @property
    def inside(self) -> bool:
        return self.unfinished or self._awaited

    def add(self, text: str, count: int) -> list[tuple[str, str]]:
        """Take in more of the reply, ``count`` tokens in all: pieces of (``ANSWER`` or ``THOUGHT``, text)."""
        if not self.inside:
            return self._shown([(ANSWER, text)])
        self._state, pieces = self._machine.split(self._state, text)
        if any(kind == THOUGHT for kind, _ in pieces):
            self.unfinished, self._awaited = True, False
        if self.unfinished and self._state[0] == ANSWER:
            self.unfinished, self.tokens = False, count
        elif self._awaited and any(piece.strip() for _, piece in pieces):
            self._awaited = False
        if not self.inside:
            pieces += self._held()
        return self._shown(pieces)

    def finish(self) -> list[tuple[str, str]]:
        """What was held back because it could have been the beginning of a mark."""
        return self._shown(self._held()) if self.inside else []

    def _held(self) -> list[tuple[str, str]]:
        self._state, text, kind = self._machine.flush(self._state)
        return [(kind, text)]

    def _shown(self, pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The pieces without the blanks around marks."""
        shown = []
        for where, text in pieces:
            kind = THOUGHT if where == THOUGHT else ANSWER
            text = text if kind in self._begun else text.lstrip()
            if text:
                self._begun.add(kind)
                shown.append((kind, text))
        return shown
