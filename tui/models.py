"""Models and packs: load another model, extract the emotions of one that has no pack."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, OptionList, ProgressBar, Static
from textual.widgets.option_list import Option

import mlx_emotion
from mlx_emotion import Available, MLXEmotionError, Step, UsageError

from .dialogs import Dialog, line_of
from .looks import readable_bytes
from .panel import binding

if TYPE_CHECKING:
    from .app import EmotionApp

QUICK = 20
"""Queries an emotion in a quick extraction; a full one uses all of the shipped set."""


HINT = f"Enter loads. The packs are for the model in use: a quick one is made from {QUICK} queries an emotion."


class ModelsDialog(Dialog):
    """The models on this machine. Enter loads; q and f extract a pack for the model that is loaded."""

    BINDINGS = [
        binding("models.quick", "extract(True)", show=True, label="Quick pack"),
        binding("models.full", "extract(False)", show=True, label="Full pack"),
        binding("models.cancel", "cancel", show=True, label="Cancel loading"),
    ]

    def content(self) -> ComposeResult:
        with Vertical():
            yield Static("Models", classes="heading")
            yield OptionList(id="list")
            yield Input(placeholder="another model's folder or Hugging Face id; Enter loads it", id="other")
            yield Static("", id="state", markup=False)
            yield ProgressBar(id="progress", show_eta=False)
            yield Static(HINT, id="hint", classes="hint", markup=False)

    @property
    def emotion_app(self) -> EmotionApp:
        return cast("EmotionApp", self.app)

    def on_mount(self) -> None:
        self.query_one(ProgressBar).display = False
        self.query_one("#list").focus()
        self._stop: threading.Event | None = None
        # The model and the extraction, quick or full, that would have replaced a better pack.
        self._refused: tuple[mlx_emotion.Model, bool] | None = None
        self._began = (0.0, 0, "")
        self._look()
        self._show_state()
        self.set_interval(0.5, self._show_state)

    @work(thread=True, group="models", exit_on_error=False)
    def _look(self) -> None:
        try:
            found = mlx_emotion.available()
            found = [*found, *mlx_emotion.in_folders(self.emotion_app.loader.asked, found)]
        except MLXEmotionError as error:
            self.app.call_from_thread(self._tell, str(error))
            return
        self.app.call_from_thread(self._fill, found)

    def _fill(self, found: list[Available]) -> None:
        options = self.query_one("#list", OptionList)
        options.clear_options()
        for m in found:
            line = Text(no_wrap=True, overflow="ellipsis")
            line.append(line_of(m.name), "bold" if m.problem is None else "dim")
            line.append(f"  {readable_bytes(m.bytes)}", "dim")
            if m.problem is not None:
                line.append(f"  {line_of(m.problem)}", "italic")
            else:
                line.append(f" · {line_of(m.quantization)}", "dim")
                line.append("  has a pack" if m.packs else "  no pack yet", "" if m.packs else "italic")
            options.add_option(Option(line, id=m.name, disabled=m.problem is not None))
        if found:
            options.highlighted = 0

    def _tell(self, text: str) -> None:
        self.query_one("#hint", Static).update(line_of(text))

    def _show_state(self) -> None:
        app = self.emotion_app
        if app.loader.since is not None:
            state = app.loader.told
        elif app.model is not None:
            pack = app.model.vectors.path if app.model.vectors is not None else None
            state = f"in use: {app.model.id}, " + (f"pack {Path(pack).stem}" if pack else "no pack")
        else:
            state = "no model is loaded"
        if self._stop is None:
            self.query_one("#state", Static).update(line_of(state))

    def on_option_list_option_selected(self, message: OptionList.OptionSelected) -> None:
        self._load(message.option.id)

    def on_input_submitted(self, message: Input.Submitted) -> None:
        if name := message.value.strip():
            self._load(name)
            self._look()

    def _load(self, name: str | None) -> None:
        if self._stop is not None:
            self._tell("An extraction is under way; Esc stops it.")
        elif name is not None and self.emotion_app.has(name):
            self._tell(f"{name} is in use already, or is being loaded.")
        else:
            self.emotion_app.loader.begin(name)
            self._show_state()

    def action_cancel(self) -> None:
        self.emotion_app.loader.cancel()
        self._show_state()

    def action_extract(self, quick: bool) -> None:
        app = self.emotion_app
        if app.model is None or app.loader.since is not None:
            self._tell("Load a model first.")
        elif app.talk.busy:  # a message that waited for the model may have been sent meanwhile
            self._tell("A reply is under way; a pack can be made when it has ended.")
        elif self._stop is None:
            self._stop = threading.Event()
            self._tell("")
            self._began = (time.monotonic(), 0, "")
            bar = self.query_one(ProgressBar)
            bar.display = True
            bar.update(total=None, progress=0)
            self._make(app.model, quick, self._refused == (app.model, quick), self._stop)

    @work(thread=True, group="extract", exit_on_error=False)
    def _make(self, model: mlx_emotion.Model, quick: bool, replace: bool, stop: threading.Event) -> None:
        painted = 0.0
        self._refused = None

        def progress(step: Step) -> None:
            nonlocal painted
            now = time.monotonic()
            if now - painted > 0.2 or step.done in (0, step.total):
                painted = now
                self.app.call_later(self._progress, step)

        try:
            mlx_emotion.make_pack(model, QUICK if quick else None, progress, stop.is_set, replace=replace)
            told = "The pack is made, calibrated and in use."
        except UsageError as error:
            self._refused = (model, quick)
            told = f"{error}. The same key again makes it all the same."
        except MLXEmotionError as error:
            told = str(error)
        except Exception as error:  # the model's own code may raise anything
            told = f"{type(error).__name__}: {error}"
        self.app.call_later(self._made, told)

    def _progress(self, step: Step) -> None:
        if not self.is_attached:
            return
        began, first, stage = self._began
        if stage != step.stage:
            began, first = time.monotonic(), step.done
            self._began = (began, first, step.stage)
        left = ""
        if step.done > first:
            seconds = (time.monotonic() - began) / (step.done - first) * (step.total - step.done)
            left = f" · {seconds // 60:.0f} min {seconds % 60:.0f} s left"
        going_on = f" · going on from {step.began}" if step.began else ""
        self.query_one("#state", Static).update(
            f"{step.stage}: {step.done} of {step.total} {step.note}{going_on}{left} · Esc stops, and keeps what is done"
        )
        self.query_one(ProgressBar).update(total=step.total, progress=step.done)

    def _made(self, told: str) -> None:
        if not self.is_attached:
            return
        self._stop = None
        self.query_one(ProgressBar).display = False
        self._tell(told)
        self.emotion_app.take_pack()
        self._show_state()
        self._look()

    def action_close(self) -> None:
        if self._stop is not None:
            self._stop.set()
            self._tell("Stopping…")
        else:
            self.dismiss(None)

    def on_unmount(self) -> None:
        if self._stop is not None:
            self._stop.set()
