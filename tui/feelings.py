"""The feeling that is set, and the switches that go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlx_emotion import Feeling, MLXEmotionError

if TYPE_CHECKING:
    from .app import EmotionApp


class Feelings:
    """What the model is to feel from the next token on. ``tripped`` is the share of the dose the guard has left."""

    def __init__(self, app: EmotionApp, history: str, guard: bool) -> None:
        self.app = app
        self.current = Feeling()
        self.history, self.guard = history, guard
        self.tripped: float | None = None

    def set(self, feeling: Feeling) -> None:
        """Feel something else; a reply under way takes it up at its next token but one."""
        if self.app.chat is not None:
            try:
                self.app.chat.feel(feeling)
            except MLXEmotionError as error:
                self.app.warn(str(error))
                self.app.paint_anew()  # the panel shows it already
                return
        self.current = feeling
        if self.app.talk.speaking is None:  # in mid-reply the guard's factor stays
            self.tripped = None
        self.app.paint()

    def set_named(self, spec: str) -> bool:
        """``set`` of what is written, if this model can feel it."""
        if self.app.model is None:
            return False
        try:
            self.set(self.app.model.feeling(spec))
        except MLXEmotionError as error:
            self.app.warn(str(error))
            return False
        return True

    def toggle_history(self) -> None:
        """Keep what was said as it was felt, or feel it again."""
        self.history = "refeel" if self.history == "keep" else "keep"
        self._change(history=self.history)

    def toggle_guard(self) -> None:
        """The guard against loops."""
        self.guard = not self.guard
        self._change(guard=self.guard)

    def _change(self, **options: Any) -> None:
        if self.app.chat is not None:
            self.app.chat.change(**options)
        if self.app.talk.speaking is not None:
            self.app.notify("From the next reply on.", timeout=3)
        self.app.paint()
