"""What the conversation's screen offers: its keys, and the entries of the command palette."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from textual.app import SystemCommand
from textual.screen import ActiveBinding, Screen

from .panel import binding

if TYPE_CHECKING:
    from .app import EmotionApp


class MainScreen(Screen[None]):
    """The conversation's screen. Its keys are here and not the app's, so that they rest while a dialog is open."""

    BINDINGS = [
        binding("stop", "app.stop", priority=True),
        binding("again", "app.again(False)", show=True, label="Again", priority=True),
        binding("compare", "app.compare", show=True, label="Compare", priority=True),
        binding("conversations", "app.conversations", show=True, label="Talks", priority=True),
        binding("models", "app.models", show=True, label="Models", priority=True),
        binding("edit", "app.edit", priority=True),
        binding("copy", "app.copy", priority=True),
        binding("words", "app.words", priority=True),
        binding("find", "app.find", priority=True),
        binding("new", "app.new", priority=True),
        binding("help", "app.help", show=True, label="Help", priority=True),
    ]

    @property
    def active_bindings(self) -> dict[str, ActiveBinding]:
        """Those of now; the footer shows the one that stops while there is something to stop."""
        label = cast("EmotionApp", self.app).stops
        return {
            key: active._replace(binding=replace(active.binding, show=bool(label), description=label))
            if active.binding.id == "stop"
            else active
            for key, active in super().active_bindings.items()
        }


def commands(app: EmotionApp) -> Iterator[SystemCommand]:
    """The entries of the command palette."""
    yield SystemCommand("Light or dark", "Change the colours", app.action_theme)
    yield SystemCommand("Answer again", "With the feeling set now", lambda: app.talk.again())
    yield SystemCommand("Answer again, same feeling", "As the last reply was felt", lambda: app.talk.again(same=True))
    yield SystemCommand("Another reply", "Of those made to the last message", app.talk.variant)
    yield SystemCommand("Edit the last message", "And send it again", app.talk.edit)
    yield SystemCommand("Compare feelings", "One message under several", app.action_compare)
    yield SystemCommand("Copy the last reply", "To the clipboard", app.action_copy)
    yield SystemCommand("Colour the words", "By what was read from the activations", app.action_words)
    yield SystemCommand("Thoughts", "What the model thought before the last reply: open or fold", app.action_thoughts)
    yield SystemCommand("Find", "In this conversation", app.action_find)
    yield SystemCommand("New conversation", "This one is saved", app.talk.new)
    yield SystemCommand("Conversations", "Resume, rename, delete, export, import", app.action_conversations)
    yield SystemCommand("Models and packs", "Load a model, extract its emotions", app.action_models)
    yield SystemCommand("Keep or refeel", "What a change does to what was said before", app.feelings.toggle_history)
    yield SystemCommand("Guard", "Against replies that loop, on or off", app.feelings.toggle_guard)
    yield SystemCommand("Keys", "All of them", app.action_help)
    yield SystemCommand("Quit", "Everything is saved", app.action_quit)
    for name in [*(app.model.emotions if app.model else ()), "base", "neutral"]:
        yield SystemCommand(f"Feel {name}", "From the next word on", lambda name=name: feel(app, name))


def feel(app: EmotionApp, name: str) -> None:
    """Feel one emotion, fully."""
    app.feelings.set_named(name)
