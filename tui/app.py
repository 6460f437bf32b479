"""The app: its frame, what it shows of the state, and what each key calls."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text
from textual import events
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Footer, Static, TextArea

import mlx_emotion
from mlx_emotion import CATALOGUE, Emotion, Feeling, MLXEmotionError, Store

from . import messages
from .box import LOW, MessageBox
from .commands import MainScreen, commands
from .feelings import Feelings
from .keyboard import InOrder
from .loading import Loader
from .looks import DARK, LIGHT, MARKDOWN, blend, clean, readable_bytes
from .panel import Panel, binding, feeling_line
from .settings import Settings
from .talk import Talk
from .transcript import Transcript

if TYPE_CHECKING:
    from mlx_emotion import Chat, Model

PAINTING = 1 / 15
"""Seconds between two paintings of a reply under way."""
PARTING = 2.0
"""Most seconds that leaving waits for a reply under way to stop and be stored."""
SIGNALS = ("SIGTERM", "SIGHUP")
"""Those that ask the app to leave, with the terminal as it was before."""
EDITING = "Editing your last message: Enter sends it anew, Esc leaves it as it was."
LEAVE_SECONDS = 10
"""After which it is ended all the same."""
WELCOME = (
    "Write below and press Enter. The model answers with the feeling that is set, whatever you ask.",
    "Tab goes to the emotions: move one while the model speaks, and hear it change.",
    "Everything stays on this machine. Ctrl+K lists the keys, Ctrl+P finds everything else.",
)


class EmotionApp(InOrder):
    """Talk with a model that feels something. ``load`` and ``store`` replace the real ones in tests.

    The parts: ``loader`` gets models, ``feelings`` holds what is felt, ``talk`` the conversation.
    ``model`` and ``chat`` are those in use, ``None`` until one is loaded.
    """

    TITLE = "mlx-emotion"
    CSS_PATH = "app.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-medium"), (140, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-tiny"), (LOW, "-low"), (38, "-high")]
    ENABLE_COMMAND_PALETTE = True
    BINDINGS = [binding("quit", "quit", priority=True)]

    def __init__(
        self,
        model: str | None = None,
        *,
        feeling: str = "neutral",
        seed: int | None = None,
        resume: str | None = None,
        loading: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        load: Callable[[str | None], Model] | None = None,
        store: Callable[[], Store] = Store,
        settings: Settings | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings or Settings.load()
        self.seed, self.resume = seed, resume
        self.options = {"readout": self.settings.meter, **(options or {})}
        self.model: Model | None = None
        self.chat: Chat | None = None
        self.catalogue: Mapping[str, Emotion] = CATALOGUE
        self.loader = Loader(self, model, load or self._load)
        self.feelings = Feelings(self, str(self.options.get("history", "keep")), bool(self.options.get("guard", True)))
        self.talk = Talk(self)
        self._first, self._loading = model, dict(loading or {})
        self._first_feeling = feeling
        self._make_store = store
        self._status = ""
        self._standing = ""  # what is wrong for as long as the app is open
        self._not_resumed = ""
        self._memory = 0
        self._shown: tuple[object, ...] = ()
        self._next: tuple[Model, int] | None = None  # loaded, and waiting for the end of what is being said
        self._opened = False  # whether the store is there
        self._leaving = False

    def _load(self, name: str | None) -> Model:
        """``mlx_emotion.load`` as the command line says; its pack and adapter are those of its own model alone."""
        given = self._loading
        if name != self._first:
            given = {key: given[key] for key in ("site", "trust_remote_code") if key in given}
        return mlx_emotion.load(name, progress=partial(self.loader.fetched, name), **given)

    # Frame.

    def compose(self) -> ComposeResult:
        yield Static(id="header", markup=False)
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield Transcript(id="transcript")
                yield Static(id="notice", markup=False)
                yield messages.Finder(id="find")
                yield Static(id="feeling-line")
                yield MessageBox(id="box")
            yield Panel(self.feelings.set, id="panel")
        yield Footer(compact=True)

    @property
    def transcript(self) -> Transcript:
        return self.query_one("#transcript", Transcript)

    @property
    def panel(self) -> Panel:
        return self.query_one("#panel", Panel)

    @property
    def box(self) -> MessageBox:
        return self.query_one("#box", MessageBox)

    @property
    def finder(self) -> messages.Finder:
        return self.query_one("#find", messages.Finder)

    def get_default_screen(self) -> Screen:
        return MainScreen(id="_default")

    def on_mount(self) -> None:
        self._listen(True)
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        self.theme = {"dark": DARK, "light": LIGHT}[self.settings.theme].name
        self.console.push_theme(MARKDOWN)
        if not self.settings.animation:
            self.animation_level = "none"
        if self.settings.keys:
            self.set_keymap(self.settings.keys)
        self.painting = self.set_interval(PAINTING, self.talk.drain, pause=True)
        self._clock = self.set_interval(1.0, self.paint_header, pause=True)
        self.box.focus()
        self.panel.offer([], CATALOGUE, False, "No model yet.")
        self.paint()
        for problem in self.settings.problems:
            self.notify(problem, title="Configuration", severity="warning", timeout=12, markup=False)
        self.call_after_refresh(self._begin)

    def refresh_bindings(self) -> None:
        """As textual does; it minds that there is no screen left when the app is being left."""
        if self.screen_stack:
            super().refresh_bindings()

    def on_unmount(self) -> None:
        self._listen(False)

    def _listen(self, wanted: bool) -> None:
        """Leave in good order when the system asks for it."""
        if sys.platform == "win32":
            return
        loop = asyncio.get_running_loop()
        for number in (getattr(signal, name) for name in SIGNALS):
            with contextlib.suppress(ValueError, RuntimeError):  # on another thread than the main one
                if wanted:
                    loop.add_signal_handler(number, self._told_to_leave, number)
                else:
                    loop.remove_signal_handler(number)

    def _told_to_leave(self, number: int) -> None:
        # Where the terminal is gone, textual 8.2 may wait for ever to write to it.
        mlx_emotion.hurry(128 + number, LEAVE_SECONDS)
        self.call_later(self.action_quit)

    async def _begin(self) -> None:
        """Open the store, and load the model behind the first painting."""
        # What is there now stays: left to the collector, it would stop the app for 0.1 s time and again.
        gc.freeze()
        self.loader.begin(self.loader.name)
        try:
            store = self._make_store()
        except MLXEmotionError as error:
            store = Store(":memory:")
            self._standing = f"{error}. Nothing is saved until the app is opened again."
            self.warn("")
        self.talk.store, self._opened = store, True
        if store.aside is not None:
            told = f"The conversations could not be read. That file is kept as {store.aside}; a new one is begun."
            self.notify(told, severity="warning", timeout=60, markup=False)
        if self.resume is not None:
            try:
                await self.talk.open(store.find(self.resume or None).id)
            except MLXEmotionError as error:
                self._not_resumed = str(error)
                self.warn(self._not_resumed)
        await self._welcome(store)

    async def _welcome(self, store: Store) -> None:
        if self.transcript.exchanges or store.note("welcomed"):
            return
        await self.transcript.mount(Static("\n".join(WELCOME), id="welcome", markup=False))
        try:
            store.set_note("welcomed", mlx_emotion.__version__)
        except MLXEmotionError as error:
            self.warn(str(error))

    # What is shown of the state.

    def warn(self, text: str) -> None:
        """A line above the message box that stays until the next thing that works."""
        text = text or (EDITING if self.talk.editing else self._standing)
        notice = self.query_one("#notice", Static)
        notice.update(clean(text))
        notice.set_class(bool(text), "-shown")

    def paint(self, status: str | None = None) -> None:
        """Header, and where something of it has changed since, panel and feeling line, from the state."""
        felt = self.feelings
        self.paint_header(status)
        shown = (felt.current, felt.history, felt.guard, felt.tripped, self.catalogue, self.theme)
        if shown == self._shown:
            return
        self._shown = shown
        scale = self.options.get("scale")
        self.panel.show(felt.current, felt.history, felt.guard, felt.tripped, scale)
        guard = f"at {felt.tripped:.0%}" if felt.tripped is not None else ("on" if felt.guard else "off")
        line = feeling_line(felt.current, self.catalogue, felt.history, guard, scale)
        self.query_one("#feeling-line", Static).update(line, layout=False)
        accent = blend(felt.current.weights, self.catalogue)
        self.box.frame(accent if felt.current.weights else self.theme_variables["secondary"])

    def paint_anew(self) -> None:
        """``paint``, also where nothing has changed: what is shown is not what is."""
        self._shown = ()
        self.paint()

    def paint_header(self, status: str | None = None) -> None:
        """The header, with another ``status`` behind the model if one is given."""
        self._status = self._status if status is None else status
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append("● ", blend(self.feelings.current.weights, self.catalogue))
        text.append("mlx-emotion", "bold")
        if self.loader.since is not None:
            text.append(clean(f"   {self.loader.told}"), "italic")
        elif self.model is not None:
            text.append(clean(f"   {self.model.id} · {self.model.quantization}"))
            if self.model.id == "embedded":
                text.append(" · small companion model", "dim")
            if self._memory:
                text.append(f" · {readable_bytes(self._memory)}", "dim")
        else:
            text.append("   no model", "italic")
        if self._status:
            text.append(f" · {self._status}", "dim")
        self.query_one("#header", Static).update(text, layout=False)

    # The model.

    def loading_changed(self) -> None:
        """A load has begun, or ended without a model."""
        if self.loader.since is not None:
            self._clock.resume()
        else:
            self._clock.pause()
        self.paint_header()

    def take(self, model: Model, memory: int) -> None:
        """Go on with a model that has been loaded; during a reply or a comparison, when that has ended."""
        if self._next is not None and self._next[0] not in (model, self.model):
            self.loader.close(self._next[0])
        self._next = (model, memory)
        self.loading_changed()
        if self.talk.busy:
            self.notify(f"{model.id} is ready, and is taken when this has ended.", timeout=4, markup=False)
        self.take_next()

    def weigh(self, model: Model, memory: int) -> None:
        """What is held now that another model was closed."""
        if model is self.model:
            self._memory = memory
            if self.query("#header"):  # it is told by the engine's thread, perhaps when the app is being left
                self.paint_header()

    def has(self, name: str) -> bool:
        """Whether the model that ``name`` loads is in use, waiting to be, or being loaded."""
        given = self._loading
        if self.loader.since is not None:
            loading = self.loader.name
            if loading is None:
                with contextlib.suppress(MLXEmotionError):  # the configuration cannot be read
                    loading = mlx_emotion.default_model()
            return name == loading
        if name != self._first and (given.get("adapter") or given.get("vectors")):
            return False  # without those it is another
        path = Path(os.path.expanduser(name))
        folder = os.path.isdir(path)  # also where the system does not let it be seen
        for model in (self.model, self._next[0] if self._next is not None else None):
            if model is not None and (path.resolve() == model.path.resolve() if folder else name == model.id):
                return True
        return False

    def take_pack(self) -> None:
        """Go on with the model in use as it is now: it has another pack."""
        assert self.model is not None
        self.take(self.model, self._memory)

    def take_next(self) -> None:
        """Take the model that has been waiting, if one has."""
        if self._next is None or self.talk.busy or self._leaving:
            return
        old = self.model
        (self.model, self._memory), self._next = self._next, None
        self._begin_anew(self.model)
        if old is not None and old is not self.model:
            self.loader.close(old)
        if self.options["readout"]:
            self.loader.prepare(self.model)

    def _begin_anew(self, model: Model) -> None:
        """A new chat with a model and its pack, and its emotions in the panel."""
        try:
            wanted: Feeling | str = self._first_feeling if self.chat is None else self.feelings.current
            feeling = model.feeling(wanted) if model.emotions else Feeling()
            problem = ""
        except MLXEmotionError as error:
            feeling, problem = Feeling(), str(error)
        felt = self.feelings
        self.catalogue = model.catalogue
        self.chat = model.chat(feeling, **self.options | {"history": felt.history, "guard": felt.guard})
        self.talk.stale = bool(self.transcript.exchanges)
        self.transcript.take_catalogue(self.catalogue)
        felt.current = feeling
        self.panel.offer(model.emotions, self.catalogue, bool(self.options["readout"]))
        if not problem and not model.emotions:
            problem = "No emotion vectors for this model, so it answers neutrally. Ctrl+L can extract them."
        elif not problem and model.vectors is not None:
            problem = model.vectors.doubts
        self.warn("\n".join(filter(None, (self._not_resumed, problem))))
        self._not_resumed = ""
        self.paint_anew()
        self.talk.send_waiting()

    # What the widgets report.

    def on_resize(self, event: events.Resize) -> None:
        for box in self.query(MessageBox):
            box.frame(height=event.size.height)

    async def on_message_box_sent(self, message: MessageBox.Sent) -> None:
        await self.talk.send(message.text)

    def on_message_box_asked(self, message: MessageBox.Asked) -> None:
        if message.what == "feelings":
            self.action_feelings()
        else:
            self.action_help()

    def on_text_area_changed(self, message: TextArea.Changed) -> None:
        if isinstance(message.text_area, MessageBox) and message.text_area.is_attached:  # the app may be left by now
            self.talk.typed()

    # What the keys call.

    @property
    def stops(self) -> str:
        """What ``action_stop`` would end, as the footer says it."""
        if any(finder.open for finder in self.query(messages.Finder)):
            return "Close"
        if self.talk.speaking is not None:
            return "Stop"
        return "Take back" if self.box.has_focus and (self.talk.waiting or self.talk.editing) else ""

    def action_stop(self) -> None:
        """Stop the reply; with none, close what is open and go back to the message box."""
        if self.finder.open:
            self.finder.hide()
            self.action_message()
            self.refresh_bindings()
        elif self.talk.speaking is not None:
            self.talk.stop()
        elif not (self.box.has_focus and self.talk.take_back()):  # else it is meant for the panel
            self.action_message()

    def action_message(self) -> None:
        """Back to the message box."""
        self.screen.remove_class("-open")
        self.box.focus()

    def action_feelings(self) -> None:
        """To the emotions, and back; what is in the message box stays."""
        if self.panel.has_focus_within:
            self.action_message()
        else:
            self.screen.add_class("-open")
            self.panel.bars.focus()

    def action_messages(self) -> None:
        self.transcript.action_pick(0 if self.transcript.chosen else 1)

    def action_history(self) -> None:
        self.feelings.toggle_history()

    def action_guard(self) -> None:
        self.feelings.toggle_guard()

    async def action_again(self, same: bool = False) -> None:
        await self.talk.again(same)

    async def action_variant(self) -> None:
        await self.talk.variant()

    def action_edit(self) -> None:
        self.talk.edit()

    async def action_new(self) -> None:
        await self.talk.new()

    def action_copy(self) -> None:
        messages.copy(self)

    def action_words(self) -> None:
        messages.toggle_words(self)

    def action_thoughts(self) -> None:
        messages.toggle_thoughts(self)

    def action_find(self) -> None:
        self.finder.show()
        self.refresh_bindings()

    def action_compare(self) -> None:
        from .compare import ask

        ask(self)

    def action_conversations(self) -> None:
        from .dialogs import ConversationsDialog

        async def chosen(conversation: str | None) -> None:
            talk = self.talk
            try:
                if conversation is not None:
                    if talk.idle():  # a message that waited for the model may have been sent meanwhile
                        await talk.open(conversation)
                elif talk.conversation in dialog.deleted:
                    await talk.new()
            except MLXEmotionError as error:
                self.warn(str(error))

        if not self._opened:  # typed ahead
            self.call_after_refresh(self.action_conversations)
        elif self.talk.idle():
            dialog = ConversationsDialog(self.talk.store)
            self.push_screen(dialog, chosen)

    def action_models(self) -> None:
        from .models import ModelsDialog

        if self.talk.idle():
            self.push_screen(ModelsDialog())

    def action_help(self) -> None:
        from .dialogs import HelpDialog

        self.push_screen(HelpDialog(self.settings.keys))

    def action_theme(self) -> None:
        """Light or dark."""
        self.theme = LIGHT.name if self.theme == DARK.name else DARK.name
        self.paint()

    async def action_quit(self) -> None:
        """Leave; what is being said is stopped and stored first."""
        from .dialogs import line_of

        if self._leaving:
            return
        self._leaving = True
        await self._stop_all()
        self.painting.stop()
        try:
            self.talk.save_pending()
        except MLXEmotionError as error:
            lost = [f"a reply to “{line_of(e.user)[:60]}”" for e, _ in self.talk.unsaved]
            told = ", ".join(lost) or "which reply was chosen"
            self.exit(return_code=1, message=Text(f"{error}. Not saved: {told}."))
        else:
            self.exit()

    async def _stop_all(self) -> None:
        """Stop a reply or a comparison under way, and wait a moment until it is stored."""
        from .compare import CompareScreen

        comparing = next((s for s in self.screen_stack if isinstance(s, CompareScreen) and s.running), None)
        if comparing is not None:
            comparing.action_stop()
        self.talk.stop()
        end = time.monotonic() + PARTING
        while self.talk.speaking is not None or (comparing is not None and comparing.running):
            if time.monotonic() > end:
                self.talk.abandon()
                return
            await self.talk.drain()
            await asyncio.sleep(0.01)

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        if isinstance(screen, MainScreen):  # the one the palette was called from, not the palette
            yield from commands(self)

    def handle_bindings_clash(self, clashed_bindings: set[Binding], node: Any) -> None:  # noqa: ARG002
        # Textual counts the other keys of an action that was given a new one as well.
        lost = sorted(b.id or b.description for b in clashed_bindings if b.id not in self.settings.keys)
        if lost:
            self.warn(f"Two actions share a key, and one of them has lost it: {', '.join(lost)} (see [tui.keys])")
