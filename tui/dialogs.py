"""Dialogs over the conversation: all keys, and the list of conversations."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, OptionList, Static
from textual.widgets.option_list import Option

from mlx_emotion import MLXEmotionError, Store, export_file

from .looks import clean
from .panel import binding
from .settings import KEYS


class Dialog(ModalScreen):
    """A box in the middle of the screen, ``content``, and its keys in the footer; Esc closes it."""

    BINDINGS = [binding("dialog.close", "close", show=True, label="Close", priority=True)]

    def compose(self) -> ComposeResult:
        yield from self.content()
        yield Footer(compact=True, show_command_palette=False)

    def content(self) -> ComposeResult:
        raise NotImplementedError

    def action_close(self) -> None:
        self.dismiss(None)


class HelpDialog(Dialog):
    """Every key, with the id that the configuration calls it by."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        super().__init__()
        self.keys = keys

    def content(self) -> ComposeResult:
        table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
        table.add_column("key", style="bold", no_wrap=True)
        table.add_column("what it does")
        table.add_column(Text("id in [tui.keys]"), style="dim", no_wrap=True)
        for id_, (default, what) in KEYS.items():
            keys = self.keys.get(id_, default).split(",")
            shown = " ".join(readable_key(k) for k in keys)
            table.add_row(shown, what, id_)
        with Vertical():
            yield Static("Keys", classes="heading")
            with VerticalScroll():
                yield Static(table)
            yield Static(
                "On the emotions, 1–9 set 10–90 %; in a comparison, 1–6 take a reply. The mouse works everywhere.\n"
                "Ctrl+P finds every command. Esc closes.",
                classes="hint",
                markup=False,
            )

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()


def readable_key(key: str) -> str:
    """``ctrl+j`` as ``Ctrl+J``."""
    names = {"escape": "Esc", "question_mark": "?", "equals_sign": "=", "plus": "+", "minus": "-"}
    parts = [names.get(p, p.capitalize() if len(p) > 1 else p) for p in key.strip().split("+")]
    if len(parts) > 1:
        parts[-1] = parts[-1].upper() if len(parts[-1]) == 1 else parts[-1]
    return "+".join(parts)


def line_of(text: str) -> str:
    """``text``, which another program or person may have named, on one line and without control characters."""
    return " ".join(clean(text).split())


class ConversationsDialog(Dialog):
    """The stored conversations. Closes with the id of the one to go on with."""

    BINDINGS = [
        binding("conversations.list", "to_list"),
        binding("conversations.rename", "rename", show=True, label="Rename"),
        binding("conversations.delete", "delete", show=True, label="Delete"),
        binding("conversations.undo", "undo", show=True, label="Undo"),
        binding("conversations.markdown", "export('md')", show=True, label="Markdown"),
        binding("conversations.json", "export('json')", show=True, label="JSON"),
        binding("conversations.import", "load", show=True, label="Import"),
    ]
    HINT = "Enter resumes · Shift+Tab filters"

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.deleted: set[str] = set()
        """Those that were deleted here."""
        self._deleted: list[str] = []
        self._asking = ""

    def content(self) -> ComposeResult:
        with Vertical():
            yield Static("Conversations", classes="heading")
            yield Input(placeholder="filter", id="filter")
            yield OptionList(id="list")
            yield Input(id="ask", select_on_focus=False)
            yield Static(self.HINT, id="hint", classes="hint", markup=False)

    def on_mount(self) -> None:
        self.query_one("#ask").display = False
        self._fill()
        self.query_one("#list").focus()

    def _fill(self, keep: int | str = 0) -> None:
        """List what is stored; the place or the conversation ``keep`` is highlighted."""
        words = self.query_one("#filter", Input).value.lower()
        options = self.query_one("#list", OptionList)
        options.clear_options()
        try:
            found = self.store.conversations()
        except MLXEmotionError as error:
            self._tell(str(error))
            return
        for c in found:
            if words in c.title.lower():
                when = datetime.fromisoformat(c.updated).astimezone().strftime("%d %b %H:%M")
                line = Text(no_wrap=True, overflow="ellipsis")
                line.append(f"{when}  ", "dim")
                line.append(line_of(c.title) or "(nothing said yet)", "bold")
                line.append(f"  {c.exchanges} message{'s' * (c.exchanges != 1)} · {line_of(c.model)}", "dim")
                options.add_option(Option(line, id=c.id))
        if options.option_count:
            ids = [option.id for option in options.options]
            place = keep if isinstance(keep, int) else ids.index(keep) if keep in ids else 0
            options.highlighted = min(place, len(ids) - 1)
        elif not words:
            self._tell("No conversation yet: they are saved here as they happen. i imports one.")

    @property
    def _current(self) -> str | None:
        options = self.query_one("#list", OptionList)
        at = options.highlighted
        return options.get_option_at_index(at).id if at is not None and options.option_count else None

    def _tell(self, text: str) -> None:
        self.query_one("#hint", Static).update(line_of(text))

    def on_option_list_option_selected(self, message: OptionList.OptionSelected) -> None:
        self.dismiss(message.option.id)

    def on_input_changed(self, message: Input.Changed) -> None:
        if message.input.id == "filter":
            self._fill()

    def action_to_list(self) -> None:
        self.query_one("#list").focus()

    def action_close(self) -> None:
        if self._asking:
            self._asked_nothing()
        else:
            self.dismiss(None)

    def _ask(self, what: str, value: str, placeholder: str) -> None:
        self._asking = what
        ask = self.query_one("#ask", Input)
        ask.display = True
        ask.value, ask.placeholder = value, placeholder
        ask.focus()

    def _asked_nothing(self) -> None:
        self._asking = ""
        self.query_one("#ask").display = False
        self.query_one("#list").focus()

    def action_rename(self) -> None:
        if (id_ := self._current) is None:
            return
        try:
            title = next((c.title for c in self.store.conversations() if c.id == id_), None)
        except MLXEmotionError as error:
            self._tell(str(error))
            return
        if title is None:
            self._fill()
            self._tell("It was deleted in another window.")
        else:
            self._ask("rename", line_of(title), "a new title; Enter takes it")

    def action_load(self) -> None:
        self._ask("import", "", "the path of an exported JSON file; Enter reads it")

    def on_input_submitted(self, message: Input.Submitted) -> None:
        what, value = self._asking, message.value.strip()
        if message.input.id != "ask":
            self.action_to_list()
            return
        id_ = self._current
        try:
            if what == "rename" and id_ is not None:
                self.store.rename(id_, value)
                self._tell(self.HINT)
            elif what == "import":
                id_ = self.store.import_file(value)
                self._tell("Imported.")
        except MLXEmotionError as error:
            self._tell(str(error))
            return
        self._asked_nothing()
        self._fill(id_ or 0)

    def action_delete(self) -> None:
        if (id_ := self._current) is not None:
            try:
                self.store.delete(id_)
            except MLXEmotionError as error:
                self._tell(str(error))
                return
            self._deleted.append(id_)
            self.deleted.add(id_)
            self._fill(self.query_one("#list", OptionList).highlighted or 0)
            self._tell("Deleted. u brings it back.")

    def action_undo(self) -> None:
        try:
            if not self._deleted:
                self._deleted = [c.id for c in reversed(self.store.conversations(deleted=True))]
            if not self._deleted:
                self._tell("Nothing was deleted in the last week.")
                return
            id_ = self._deleted.pop()
            self.store.undelete(id_)
            self.deleted.discard(id_)
            title = next((c.title for c in self.store.conversations() if c.id == id_), "")
        except MLXEmotionError as error:
            self._tell(str(error))
            return
        self._fill(id_)
        self._tell(f"Brought back: {title}" if title else "Brought back.")

    def action_export(self, kind: str) -> None:
        if (id_ := self._current) is None:
            return
        try:
            path = export_file(self.store, id_, Path.cwd(), kind)
        except MLXEmotionError as error:
            self._tell(str(error))
            return
        except FileNotFoundError:  # Path.cwd() alone raises it here
            self._tell("The folder that this was started in is not there any more.")
            return
        self._tell(f"Written to {path}")
