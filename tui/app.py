"""The app: what the widgets show, what the keys do, and the one reply that may be under way."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

import mlx_emotion
from mlx_emotion import (
    CATALOGUE,
    Conflict,
    Emotion,
    Exchange,
    Feeling,
    FeelingChanged,
    GuardTripped,
    MLXEmotionError,
    Reading,
    Reply,
    Store,
    Token,
)

from .looks import DARK, LIGHT, MARKDOWN, blend, readable_bytes
from .message import MessageBox
from .panel import Panel, binding, feeling_line
from .settings import Settings
from .speaking import Ended, Speaking
from .transcript import ReplyMessage, Transcript

if TYPE_CHECKING:
    from mlx_emotion import Chat, Model

DRAIN = 1 / 20
"""Seconds between two paintings of a reply under way."""
REMEMBERED = 100
"""Exchanges of a stored conversation that are given to the model again; its context may hold fewer."""
WELCOME = (
    "Write below and press Enter. The model answers with the feeling that is set, whatever you ask.",
    "Tab goes to the emotions: move one while the model speaks, and hear it change.",
    "Everything stays on this machine. Ctrl+K lists the keys, Ctrl+P finds everything else.",
)


class EmotionApp(App[None]):
    """Talk with a model that feels something. ``load`` and ``store`` replace the real ones in tests."""

    TITLE = "mlx-emotion"
    CSS_PATH = "app.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-medium"), (140, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-tiny"), (10, "-low"), (38, "-high")]
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
        self.model_name, self.seed, self.resume = model, seed, resume
        self.options = {"readout": self.settings.meter, **(options or {})}
        self._first_feeling = feeling
        self._load = load or (lambda name: mlx_emotion.load(name, **(loading or {})))
        self._make_store = store
        self.model: Model | None = None
        self.chat: Chat | None = None
        self.catalogue: Mapping[str, Emotion] = CATALOGUE
        self.feeling = Feeling()
        self.history = str(self.options.get("history", "keep"))
        self.guard = bool(self.options.get("guard", True))
        self.tripped: float | None = None
        self.conversation: str | None = None
        self.speaking: Speaking | None = None
        self.stopping = threading.Event()
        self._stale = False  # whether the chat has to be told the conversation again
        self._editing = False
        self._send_when_loaded = False
        self._unsaved: list[tuple[Exchange, Reply]] = []
        self._message: ReplyMessage | None = None
        self._loading_since: float | None = time.monotonic()
        self._loads = 0
        self._status = ""
        self._memory = 0
        self._found: tuple[str, int] = ("", -1)

    # Frame.

    def compose(self) -> ComposeResult:
        yield Static(id="header", markup=False)
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield Transcript(id="transcript")
                yield Static(id="notice", markup=False)
                yield Input(id="find", placeholder="Find in this conversation; Enter for the next, Esc to close")
                yield Static(id="feeling-line")
                yield MessageBox(id="box")
            yield Panel(id="panel")
        yield Footer(compact=True, show_command_palette=False)

    @property
    def transcript(self) -> Transcript:
        return self.query_one("#transcript", Transcript)

    @property
    def panel(self) -> Panel:
        return self.query_one("#panel", Panel)

    @property
    def box(self) -> MessageBox:
        return self.query_one("#box", MessageBox)

    def get_default_screen(self) -> Screen:
        return MainScreen(id="_default")

    def on_mount(self) -> None:
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        self.theme = {"dark": DARK, "light": LIGHT}[self.settings.theme].name
        self.console.push_theme(MARKDOWN)
        if not self.settings.animation:
            self.animation_level = "none"
        if self.settings.keys:
            self.set_keymap(self.settings.keys)
        self._drain_timer = self.set_interval(DRAIN, self._drain, pause=True)
        self._clock = self.set_interval(1.0, self._tick, pause=True)
        self.box.focus()
        self.panel.offer([], CATALOGUE, False)
        self._paint()
        for problem in self.settings.problems:
            self.notify(problem, title="Configuration", severity="warning", timeout=12, markup=False)
        self.call_after_refresh(self._begin)

    async def _begin(self) -> None:
        """Open the store, and load the model behind the first painting."""
        try:
            self.store = self._make_store()
        except MLXEmotionError as error:
            self.store = self._make_memory_store()
            self._warn(f"{error}. Nothing is saved until the app is opened again.")
        if self.store.aside is not None:
            self._warn(f"The conversations could not be read; that file is kept as {self.store.aside}.")
        if self.resume is not None:
            try:
                await self.open(self.store.find(self.resume or None).id)
            except MLXEmotionError as error:
                self._warn(str(error))
        await self._welcome()
        self.load_model(self.model_name)

    def _make_memory_store(self) -> Store:
        return Store(":memory:")

    async def _welcome(self) -> None:
        if self.transcript.exchanges or self.store.note("welcomed"):
            return
        await self.transcript.mount(Static("\n".join(WELCOME), id="welcome", markup=False))
        try:
            self.store.set_note("welcomed", mlx_emotion.__version__)
        except MLXEmotionError as error:
            self._warn(str(error))

    def _warn(self, text: str) -> None:
        """A line above the message box that stays until the next thing that works."""
        notice = self.query_one("#notice", Static)
        notice.update(text)
        notice.set_class(bool(text), "-shown")

    def _paint(self) -> None:
        """Header, panel and feeling line, from the state."""
        self.panel.show(self.feeling, self.history, self.guard, self.tripped)
        guard = f"at {self.tripped:.0%}" if self.tripped is not None else ("on" if self.guard else "off")
        line = feeling_line(self.feeling, self.catalogue, self.history, guard)
        self.query_one("#feeling-line", Static).update(line)
        accent = blend(self.feeling.weights, self.catalogue)
        self.box.styles.border = ("round", accent if self.feeling.weights else self.theme_variables["secondary"])
        self._paint_header()

    def _paint_header(self) -> None:
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append("● ", blend(self.feeling.weights, self.catalogue))
        text.append("mlx-emotion", "bold")
        if self._loading_since is not None:
            seconds = time.monotonic() - self._loading_since
            text.append(f"   loading {self.model_name or 'the model'}… {seconds:.0f} s", "italic")
        elif self.model is not None:
            text.append(f"   {self.model.id} · {self.model.quantization}")
            if self.model.id == "embedded":
                text.append(" · small companion model", "dim")
            if self._memory:
                text.append(f" · {readable_bytes(self._memory)}", "dim")
        else:
            text.append("   no model", "italic")
        if self._status:
            text.append(f" · {self._status}", "dim")
        self.query_one("#header", Static).update(text)

    def _tick(self) -> None:
        self._paint_header()

    # The model.

    def load_model(self, name: str | None) -> None:
        """Load a model behind the app; the one in use stays until the new one is there."""
        self.model_name = name
        self._loads += 1
        self._loading_since = time.monotonic()
        self._clock.resume()
        self._paint_header()
        self._load_in_thread(name, self._loads)

    def cancel_loading(self) -> None:
        """Let the load under way end unused."""
        if self._loading_since is not None:
            self._loads += 1
            self._loaded_nothing("")

    @work(thread=True, group="load", exit_on_error=False)
    def _load_in_thread(self, name: str | None, number: int) -> None:
        try:
            model = self._load(name)
        except Exception as error:  # a model's own code may raise anything
            told = str(error) if isinstance(error, MLXEmotionError) else f"{type(error).__name__}: {error}"
            if number == self._loads:
                self.call_from_thread(self._loaded_nothing, told)
            return
        if number != self._loads:
            model.close()
            return
        memory = model.memory
        self.call_from_thread(self._loaded, model, memory)

    def _loaded_nothing(self, why: str) -> None:
        self._loading_since = None
        self._clock.pause()
        if self.model is not None:
            self.model_name = self.model.id
        if why:
            self._warn(f"{why}  (Ctrl+L chooses another model)")
        self._paint_header()

    def _loaded(self, model: Model, memory: int) -> None:
        self._loading_since = None
        self._clock.pause()
        old, self.model, self._memory = self.model, model, memory
        if old is not None and old is not model:
            self._close_in_thread(old)
        self.take_model()
        if self.options["readout"]:
            self._prepare_in_thread(model)

    @work(thread=True, group="prepare", exit_on_error=False)
    def _prepare_in_thread(self, model: Model) -> None:
        model.prepare()

    @work(thread=True, group="close", exit_on_error=False)
    def _close_in_thread(self, model: Model) -> None:
        model.close()

    def take_model(self) -> None:
        """Begin anew with the model as it is: its pack, its emotions."""
        model = self.model
        assert model is not None
        try:
            wanted = self._first_feeling if self.chat is None else self.feeling
            feeling = model.feeling(wanted) if model.emotions else Feeling()
        except MLXEmotionError as error:
            self._warn(str(error))
            feeling = Feeling()
        self.catalogue = model.catalogue
        options = self.options | {"history": self.history, "guard": self.guard}
        self.chat = model.chat(feeling, **options)
        self._stale = bool(self.transcript.exchanges)
        self.transcript.catalogue = self.catalogue
        self.feeling = feeling
        self.panel.offer(model.emotions, self.catalogue, bool(self.options["readout"]))
        if not model.emotions:
            self._warn("No emotion vectors for this model, so it answers neutrally. Ctrl+L can extract them.")
        elif model.vectors is not None and not model.vectors.calibrated:
            self._warn("This pack is not calibrated: 100 % is scale 1, which may be too weak or too strong.")
        else:
            self._warn("")
        self._paint()
        if self._send_when_loaded:
            self._send_when_loaded = False
            self.box.action_send()

    # The feeling.

    def feel(self, feeling: Feeling) -> None:
        """Set the feeling; a reply under way takes it up at its next token but one."""
        if self.chat is not None:
            try:
                self.chat.feel(feeling)
            except MLXEmotionError as error:
                self._warn(str(error))
                return
        self.feeling = feeling
        self.tripped = None
        self._paint()

    def on_panel_changed(self, message: Panel.Changed) -> None:
        self.feel(message.feeling)

    def action_feelings(self) -> None:
        """To the emotions, and back; what is in the message box stays."""
        if self.panel.has_focus_within:
            self.action_message()
        else:
            self.screen.add_class("-open")
            self.panel.bars.focus()

    def action_message(self) -> None:
        """Back to the message box."""
        self.screen.remove_class("-open")
        self.box.focus()

    def action_messages(self) -> None:
        self.transcript.action_pick(0 if self.transcript.chosen else 1)

    def action_history(self) -> None:
        self.history = "refeel" if self.history == "keep" else "keep"
        self._change(history=self.history)

    def action_guard(self) -> None:
        self.guard = not self.guard
        self._change(guard=self.guard)

    def _change(self, **options: Any) -> None:
        if self.chat is not None:
            self.chat.change(**options)
        self._paint()

    # Talking.

    async def on_message_box_sent(self, message: MessageBox.Sent) -> None:
        await self.send(message.text)

    def on_message_box_asked(self, message: MessageBox.Asked) -> None:
        if message.what == "feelings":
            self.action_feelings()
        else:
            self.action_help()

    def _can_speak(self) -> bool:
        if self.speaking is not None:
            self.notify("A reply is under way; Esc stops it.", timeout=3)
        elif self.chat is None and self._loading_since is not None:
            self.notify("The model is still loading.", timeout=3)
        elif self.chat is None:
            self.notify("No model; Ctrl+L chooses one.", timeout=3)
        else:
            return True
        return False

    def _blank(self) -> Reply:
        """A reply about to be made by the model that is loaded, under the feeling that is set."""
        assert self.model is not None
        pack = self.model.vectors.path if self.model.vectors is not None else None
        feeling = str(self.feeling)
        return Reply(
            feeling=feeling,
            timeline=((0, feeling),),
            model=self.model.id,
            fingerprint=self.model.identity.fingerprint,
            pack=Path(pack).stem if pack else None,
        )

    async def send(self, text: str) -> None:
        """Store the message, then answer it. What goes wrong puts the message back into the box."""
        if self.chat is None and self._loading_since is not None:
            self.box.restore(text)
            self._send_when_loaded = True
            self._warn("The model is still loading; your message is sent when it is there. Esc takes that back.")
            return
        if not self._can_speak():
            self.box.restore(text)
            return
        reply = self._blank()
        exchange = Exchange(text).with_reply(reply)
        try:
            self._save_pending()
            if self._editing:
                await self._drop_last()
            await self.store_exchange(exchange)
        except MLXEmotionError as error:
            self.box.restore(text)
            self._warn(f"{error}. Your message is back in the box.")
            return
        self._editing = False
        await self.show_exchange(exchange, live=True)
        self._speak(exchange, reply, text)

    async def store_exchange(self, exchange: Exchange) -> None:
        """Write a new exchange, into a copy where another window has gone on with the conversation."""
        assert self.model is not None
        if self.conversation is None:
            self.conversation = self.store.create(self.model.id)
        try:
            self.store.add(self.conversation, exchange)
        except Conflict:
            title = f"{self.transcript.exchanges[0].user if self.transcript.exchanges else exchange.user} (copy)"
            self.conversation = self.store.fork(self.model.id, title, self.transcript.exchanges)
            copies = self.store.exchanges(self.conversation)
            await self.transcript.show(copies, self.catalogue)
            self.store.add(self.conversation, exchange)
            self.notify("This conversation goes on in another window too; here you are in a copy.", timeout=8)

    async def show_exchange(self, exchange: Exchange, live: bool) -> None:
        for welcome in self.query("#welcome"):
            await welcome.remove()
        self._message = await self.transcript.append(exchange, live)

    async def _drop_last(self) -> None:
        """Take the last exchange out, for its message has been edited."""
        if self.conversation is None or not self.transcript.exchanges:
            return
        self.store.drop(self.conversation, self.transcript.exchanges[-1])
        await self.transcript.pop()
        self._stale = True

    def _speak(self, exchange: Exchange, reply: Reply, text: str | None) -> None:
        """Answer ``text``, or the last message again without one; on a thread, painted by the timer."""
        chat = self.chat
        assert chat is not None
        told = None
        if self._stale:
            told = self.transcript.exchanges[-REMEMBERED - 1 :]
            if text is not None:
                told = told[:-1]
            self._stale = False
        seed, stopping = self.seed, self.stopping
        stopping.clear()

        def spoken() -> Iterator[Any]:
            if told is not None:
                tell(chat, told, again=text is None)
            events = chat.stream(text, seed=seed) if text is not None else chat.again(seed=seed)
            for event in events:
                yield event
                if stopping.is_set():
                    chat.stop()

        self.tripped = None
        self._status = "…"
        self._paint()
        self.speaking = Speaking(spoken, self.store, exchange, reply)
        self._drain_timer.resume()
        self.run_worker(self.speaking.run, thread=True, group="reply", exit_on_error=False)

    async def _drain(self) -> None:
        """Paint what has come since the last time."""
        speaking, message = self.speaking, self._message
        if speaking is None:
            return
        text: list[str] = []
        index = -1
        read = ended = None
        while speaking.inbox:
            event = speaking.inbox.popleft()
            if isinstance(event, Token):
                text.append(event.text)
                index = event.index
                if message is not None:
                    message.pieces.append(event.text)
            elif isinstance(event, Reading):
                read = event
                self.panel.meter.take(dict(event.own), dict(event.steered))
                if message is not None:
                    message.readings[event.index] = event
            elif isinstance(event, FeelingChanged):
                self._felt(event)
            elif isinstance(event, GuardTripped):
                self.tripped = event.factor
                self._paint()
            elif isinstance(event, Ended):
                ended = event
        if index >= 0:
            self._status = f"{index + 1} tokens"
            self._paint_header()
        if read is not None:
            self.panel.meter.refresh()
        if message is not None and text and message.is_mounted:
            await message.write("".join(text))
        if ended is not None:
            await self._ended(ended)

    def _felt(self, event: FeelingChanged) -> None:
        if self._message is None:
            return
        reply = self._message.reply
        steps = (*reply.timeline, (event.index, event.feeling))
        self._message.reply = replace(reply, timeline=steps, tokens=event.index + 1)
        self._message.describe()

    async def _ended(self, ended: Ended) -> None:
        speaking, self.speaking = self.speaking, None
        assert speaking is not None
        self._drain_timer.pause()
        reply = ended.reply
        number = len(self.transcript.exchanges) - 1
        self.transcript.update(number, reply)
        if self._message is not None and self._message.is_mounted:
            await self._message.finish(reply)
        self._status = f"{reply.tokens_per_second:.0f} tok/s" if reply.tokens_per_second else ""
        # A message without an answer, or with half of one, is not as the chat remembers it.
        self._stale = self._stale or reply.state == "failed" or not reply.text
        if ended.unsaved:
            self._unsaved.append((self.transcript.exchanges[number], reply))
            self._warn(f"{ended.unsaved}. The reply is kept here, and saved with your next message.")
        elif reply.state == "failed":
            self._warn(f"The reply failed: {reply.error}. What came is kept; you can go on.")
        else:
            self._warn("")
        self._paint()

    def _save_pending(self) -> None:
        """Store what could not be stored when it happened."""
        while self._unsaved:
            self.store.save_reply(*self._unsaved[0])
            self._unsaved.pop(0)

    # Keys.

    def action_stop(self) -> None:
        """Stop the reply; with none, close what is open and go back to the message box."""
        find = self.query_one("#find", Input)
        if find.has_class("-shown"):
            find.remove_class("-shown")
            self.action_message()
        elif self.speaking is not None:
            self.stopping.set()
            if self.chat is not None:
                self.chat.stop()
        elif self._send_when_loaded:
            self._send_when_loaded = False
            self._warn("")
        elif self._editing:
            self._editing = False
            self.box.put("")
            self._warn("")
        else:
            self.action_message()

    async def action_again(self, same: bool = False) -> None:
        """Answer the last message again, with the feeling set now or with the one that reply had."""
        exchanges = self.transcript.exchanges
        if not exchanges or not self._can_speak():
            return
        last = exchanges[-1]
        if same and last.reply is not None and self.model is not None:
            try:
                self.feel(self.model.feeling(last.reply.timeline[0][1] if last.reply.timeline else last.reply.feeling))
            except MLXEmotionError as error:
                self._warn(str(error))
                return
        reply = self._blank()
        exchange = last.with_reply(reply)
        try:
            self._save_pending()
            self.store.save_reply(exchange, reply)
        except MLXEmotionError as error:
            self._warn(str(error))
            return
        await self._into_view()
        self._message = await self.transcript.replace(len(exchanges) - 1, exchange, live=True)
        self.transcript.anchor()
        self._speak(exchange, reply, None)

    async def _into_view(self) -> None:
        number = len(self.transcript.exchanges) - 1
        if not self.transcript.first <= number < self.transcript.last:
            await self.transcript.reveal(number)

    def action_edit(self) -> None:
        """Put the last message back into the box; sending it replaces it and its replies."""
        if self.transcript.exchanges and self._can_speak():
            self._editing = True
            self.box.put(self.transcript.exchanges[-1].user)
            self._warn("Editing your last message: Enter sends it anew, Esc leaves it as it was.")
            self.action_message()

    async def action_variant(self) -> None:
        """Another of the replies that were made to the chosen message."""
        chosen = self.transcript.chosen or self.transcript.latest
        if chosen is None or self.speaking is not None:
            return
        number = chosen.number
        exchange = self.transcript.exchanges[number]
        ids = [r.id for r in exchange.replies]
        if not ids or ids == [exchange.chosen]:
            self.notify("There is no other reply; Ctrl+R makes one.", timeout=3)
            return
        at = ids.index(exchange.chosen) if exchange.chosen in ids else -1
        reply = exchange.replies[(at + 1) % len(ids)]
        changed = replace(exchange, chosen=reply.id)
        try:
            self.store.save_reply(changed, reply)
        except MLXEmotionError as error:
            self._warn(str(error))
            return
        self._stale = True
        widget = await self.transcript.replace(number, changed)
        if widget is not None:
            widget.focus()

    def action_words(self) -> None:
        message = self.transcript.chosen or self.transcript.latest
        if not isinstance(message, ReplyMessage) or not message.toggle_words():
            self.notify("Nothing was read for this reply; the meter reads those made in this window.", timeout=4)

    def action_copy(self) -> None:
        """Copy by OSC 52, and by the system's own tool where there is one (Terminal.app has no OSC 52)."""
        message = self.transcript.chosen or self.transcript.latest
        if message is None:
            return
        self.copy_to_clipboard(message.source)
        for tool in (["pbcopy"], ["wl-copy"], ["xclip", "-selection", "clipboard"]):
            if shutil.which(tool[0]):
                self._copy_with(tool, message.source)
                break
        self.notify("Copied.", timeout=2)

    @work(thread=True, group="copy", exit_on_error=False)
    def _copy_with(self, tool: list[str], text: str) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(tool, input=text.encode(), check=False, timeout=5, **quiet)  # type: ignore[call-overload]

    def action_find(self) -> None:
        find = self.query_one("#find", Input)
        find.add_class("-shown")
        find.focus()

    async def on_input_submitted(self, message: Input.Submitted) -> None:
        if message.input.id != "find" or not message.value.strip():
            return
        words = message.value.strip().lower()
        exchanges = self.transcript.exchanges
        before, at = self._found
        start = at if before == words and 0 <= at < len(exchanges) else len(exchanges)
        order = [*range(start - 1, -1, -1), *range(len(exchanges) - 1, start - 1, -1)]
        for number in order:
            exchange = exchanges[number]
            if words in exchange.user.lower() or (exchange.reply and words in exchange.reply.text.lower()):
                self._found = (words, number)
                await self.transcript.reveal(number, words)
                message.input.focus()
                for widget in self.query(".-found"):
                    widget.remove_class("-found")
                for found in self.transcript.of(number):
                    found.add_class("-found")
                return
        self.notify(f"Not found: {message.value}", timeout=3, markup=False)

    async def action_new(self) -> None:
        """A new conversation; the old one is stored already."""
        if self.speaking is not None:
            self.notify("A reply is under way; Esc stops it.", timeout=3)
            return
        self.conversation = None
        self._stale = True
        self._editing = False
        await self.transcript.show([], self.catalogue)
        self.action_message()

    async def open(self, conversation: str) -> None:
        """Go on with a stored conversation. Raises ``MLXEmotionError``."""
        exchanges = self.store.exchanges(conversation)
        self.conversation = conversation
        self._stale = True
        self._editing = False
        for welcome in self.query("#welcome"):
            await welcome.remove()
        await self.transcript.show(exchanges, self.catalogue)
        self.box.sent_before = [e.user for e in exchanges]

    def action_help(self) -> None:
        from .dialogs import HelpDialog

        self.push_screen(HelpDialog(self.settings.keys))

    def action_conversations(self) -> None:
        from .dialogs import ConversationsDialog

        if self.speaking is not None:
            self.notify("A reply is under way; Esc stops it.", timeout=3)
            return

        async def chosen(conversation: str | None) -> None:
            if conversation is not None:
                try:
                    await self.open(conversation)
                except MLXEmotionError as error:
                    self._warn(str(error))
            elif self.conversation is not None and all(c.id != self.conversation for c in self.store.conversations()):
                await self.action_new()

        self.push_screen(ConversationsDialog(self.store), chosen)

    def action_models(self) -> None:
        from .models import ModelsDialog

        if self.speaking is not None:
            self.notify("A reply is under way; Esc stops it.", timeout=3)
            return
        self.push_screen(ModelsDialog())

    def action_compare(self) -> None:
        from .compare import ChooseFeelings

        text = self.box.text.strip()
        if not self._can_speak() or self.model is None:
            return
        if not text:
            self.notify("Write a message first; then compare how it is answered.", timeout=4)
        elif not self.model.emotions:
            self.notify("This model has no emotion vectors to compare.", timeout=4)
        else:
            self.push_screen(ChooseFeelings(self.model.emotions, self.catalogue, self.feeling), self._compare)

    async def _compare(self, feelings: list[Feeling] | None) -> None:
        from .compare import CompareScreen

        if not feelings or self.chat is None:
            return
        text = self.box.text.strip()
        replies = [replace(self._blank(), feeling=str(f), timeline=((0, str(f)),)) for f in feelings]
        exchange = Exchange(text, tuple(replies))
        try:
            self._save_pending()
            await self.store_exchange(exchange)
        except MLXEmotionError as error:
            self._warn(f"{error}. Your message is still in the box.")
            return
        self.box.put("")
        told = self.transcript.exchanges[-REMEMBERED:] if self._stale else None
        self._stale = False

        async def chosen(result: tuple[Exchange, str | None]) -> None:
            ended, problem = result
            if problem:
                self._warn(problem)
            if ended.reply is None:
                try:
                    assert self.conversation is not None
                    self.store.drop(self.conversation, ended)
                except MLXEmotionError as error:
                    self._warn(str(error))
                self.box.restore(ended.user)
                return
            self._stale = True
            await self.show_exchange(ended, live=False)
            if self.model is not None:
                self.feel(self.model.feeling(ended.reply.feeling))

        screen = CompareScreen(self.chat, self.store, exchange, feelings, self.catalogue, told, self.seed)
        self.push_screen(screen, chosen)

    def action_theme(self) -> None:
        self.theme = LIGHT.name if self.theme == DARK.name else DARK.name
        self._paint()

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        if screen is not self.screen or not isinstance(screen, MainScreen):
            return
        yield SystemCommand("Light or dark", "Change the colours", self.action_theme)
        yield SystemCommand("Answer again", "With the feeling set now", lambda: self.action_again(False))
        yield SystemCommand("Answer again, same feeling", "As the last reply was felt", lambda: self.action_again(True))
        yield SystemCommand("Another reply", "Of those made to the last message", self.action_variant)
        yield SystemCommand("Edit the last message", "And send it again", self.action_edit)
        yield SystemCommand("Compare feelings", "One message under several", self.action_compare)
        yield SystemCommand("Copy the last reply", "To the clipboard", self.action_copy)
        yield SystemCommand("Colour the words", "By what was read from the activations", self.action_words)
        yield SystemCommand("Find", "In this conversation", self.action_find)
        yield SystemCommand("New conversation", "This one is saved", self.action_new)
        yield SystemCommand("Conversations", "Resume, rename, delete, export, import", self.action_conversations)
        yield SystemCommand("Models and packs", "Load a model, extract its emotions", self.action_models)
        yield SystemCommand("Keep or refeel", "What a change does to what was said before", self.action_history)
        yield SystemCommand("Guard", "Against replies that loop, on or off", self.action_guard)
        yield SystemCommand("Keys", "All of them", self.action_help)
        yield SystemCommand("Quit", "Everything is saved", self.action_quit)
        for name in [*(self.model.emotions if self.model else ()), "base", "neutral"]:
            yield SystemCommand(f"Feel {name}", "From the next word on", lambda name=name: self._feel_named(name))

    def _feel_named(self, name: str) -> None:
        if self.model is not None:
            self.feel(self.model.feeling(name))

    async def action_quit(self) -> None:
        """Leave; a reply under way is stopped and stored first."""
        self.stopping.set()
        if self.speaking is not None and self.chat is not None:
            self.chat.stop()
        self.exit()

    def handle_bindings_clash(self, clashed_bindings: set[Binding], node: Any) -> None:  # noqa: ARG002
        names = ", ".join(sorted(b.id or b.action for b in clashed_bindings))
        self._warn(f"Two actions share a key, and one of them has lost it: {names} (see [tui.keys])")


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


def tell(chat: Chat, exchanges: list[Exchange], again: bool = False) -> None:
    """Make ``chat`` remember ``exchanges``, as they were felt, and nothing else.

    A message without a reply is left out, but for the last one when it is to be answered ``again``.
    """
    chat.reset()
    for n, exchange in enumerate(exchanges):
        reply = exchange.reply
        if reply is not None and reply.text:
            chat.add(exchange.user, reply.text, reply.timeline)
        elif again and n == len(exchanges) - 1:
            chat.add(exchange.user, "")
