"""The app's settings: the ``[tui]`` table of the configuration file, checked; a mistake is told, never fatal."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from typing import Any

from textual.binding import Binding, InvalidBinding
from textual.keys import REPLACED_KEYS, Keys, key_to_character

from mlx_emotion import MLXEmotionError, load_config

THEMES = ("dark", "light")

KEYS: dict[str, tuple[str, str]] = {
    "message.send": ("enter", "Send the message"),
    "message.newline": ("ctrl+j,shift+enter,alt+enter", "Break the line"),
    "message.older": ("up", "An earlier message of yours, from the first line"),
    "message.newer": ("down", "The next message of yours, from the last line"),
    "feelings": ("tab", "To the emotions, and back"),
    "messages": ("shift+tab", "To the conversation"),
    "stop": ("escape", "Stop the reply; else back to the message"),
    "again": ("ctrl+r", "Answer again, with the feeling set now"),
    "edit": ("ctrl+g", "Change your last message and send it again"),
    "compare": ("ctrl+t", "One message under several feelings"),
    "copy": ("ctrl+y", "Copy the chosen message, or the last reply"),
    "words": ("ctrl+b", "Colour a reply's words by what was read"),
    "find": ("ctrl+f", "Find in the conversation"),
    "new": ("ctrl+n", "A new conversation"),
    "conversations": ("ctrl+o", "Conversations: resume, rename, delete, export"),
    "models": ("ctrl+l", "Models and packs"),
    "help": ("ctrl+k", "All keys"),
    "quit": ("ctrl+q", "Leave"),
    "transcript.earlier": ("up", "The message above"),
    "transcript.later": ("down", "The message below"),
    "transcript.first": ("home", "The first message"),
    "transcript.last": ("end", "The last message"),
    "transcript.copy": ("c", "Copy the chosen message"),
    "transcript.again": ("r", "Answer again, with the feeling of before"),
    "transcript.edit": ("e", "Change your last message and send it again"),
    "transcript.words": ("w", "Colour the chosen reply's words"),
    "transcript.variant": ("v", "Another of the replies to the chosen message"),
    "transcript.thoughts": ("t", "Open or fold the chosen reply's thoughts"),
    "find.earlier": ("enter,up", "What is found before"),
    "find.later": ("down,shift+enter", "What is found after"),
    "panel.up": ("up", "The emotion above"),
    "panel.down": ("down", "The emotion below"),
    "panel.more": ("right,l,plus,equals_sign", "Stronger by 5 %"),
    "panel.less": ("left,h,minus", "Weaker by 5 %"),
    "panel.much_more": ("shift+right", "Stronger by 25 %"),
    "panel.much_less": ("shift+left", "Weaker by 25 %"),
    "panel.off": ("0,backspace,delete", "This emotion off"),
    "panel.full": ("space", "This emotion to 100 %, or off"),
    "panel.neutral": ("n", "Feel nothing"),
    "panel.base": ("b", "Emotional in general, no emotion in particular"),
    "panel.history": ("k", "What was said before: keep, or refeel"),
    "panel.guard": ("g", "The guard against loops, on or off"),
    "panel.pad": ("p", "To the circumplex, and back"),
    "pad.up": ("up", "More aroused"),
    "pad.down": ("down", "Calmer"),
    "pad.left": ("left", "Less pleasant"),
    "pad.right": ("right", "More pleasant"),
    "pad.centre": ("0,backspace,delete", "To the middle of the circumplex"),
    "compare.start": ("enter", "Compare under the feelings that are chosen"),
    "compare.left": ("left", "The reply to the left"),
    "compare.right": ("right", "The reply to the right"),
    "compare.take": ("enter", "Go on with this reply"),
    "compare.stop": ("escape", "Stop the replies; then leave without choosing"),
    "dialog.close": ("escape", "Close a dialog"),
    "conversations.list": ("down", "From the filter to the list"),
    "conversations.rename": ("r", "Rename a conversation"),
    "conversations.delete": ("d,delete", "Delete a conversation"),
    "conversations.undo": ("u", "Bring a deleted conversation back"),
    "conversations.markdown": ("m", "Export a conversation as Markdown"),
    "conversations.json": ("j", "Export a conversation as JSON"),
    "conversations.import": ("i", "Import an exported conversation"),
    "models.quick": ("q", "A quick pack for the model in use"),
    "models.full": ("f", "A full pack for the model in use"),
    "models.cancel": ("x", "Cancel loading"),
}
"""Every action that has a key: id -> (keys, what it does). The ids are those of ``[tui.keys]``."""
MAIN, DIALOGS = {"box", "bars", "pad", "transcript", "find"}, {"choose", "conversations", "models"}
PLACES = {
    "message.": {"box"},
    "messages": {"box"},
    "feelings": {"box", "bars", "pad"},
    "transcript.": {"transcript"},
    "find.": {"find"},
    "panel.": {"bars"},
    **{f"panel.{name}": {"bars", "pad"} for name in ("neutral", "base", "history", "guard", "pad")},
    "pad.": {"pad"},
    "compare.": {"compare"},
    "compare.start": {"choose"},
    "dialog.": DIALOGS,
    "conversations.": {"conversations"},
    "models.": {"models"},
    "quit": MAIN | DIALOGS | {"compare"},
}
"""Where the keys of an id, or of all with that beginning, act; those of the others in all of ``MAIN``."""
FIXED = (
    ("the command palette", "ctrl+p", MAIN | DIALOGS | {"compare"}),
    ("an intensity", "1,2,3,4,5,6,7,8,9", {"bars"}),
    ("a reply", "1,2,3,4,5,6", {"compare"}),
)
"""Keys that cannot be chosen: what they are for, and where."""
MODIFIERS = ("alt", "ctrl", "hyper", "meta", "shift", "super")
"""In the order in which textual names them."""
NAMED = {name for key in Keys for name in [key.value.rpartition("+")[2]] if name.isalnum()} - {"return"}
"""Keys that are no character; Enter is ``enter``."""


@dataclass(frozen=True)
class Settings:
    """What the user chose. ``problems`` are what was wrong with the file, one line each.

    ``theme`` is ``dark`` or ``light``; ``animation`` lets things move; ``meter`` reads the activations.
    """

    theme: str = "dark"
    animation: bool = True
    meter: bool = True
    keys: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @classmethod
    def load(cls) -> Settings:
        """The user's settings; what is wrong in the file is left at its default and reported."""
        try:
            config = load_config()
        except MLXEmotionError as error:
            return cls(problems=(str(error),))
        settings = cls.of(config.get("tui", {}))
        unknown = [f"unknown setting {name}: known are model, tui" for name in config if name not in ("model", "tui")]
        return replace(settings, problems=(*unknown, *settings.problems))

    @classmethod
    def of(cls, table: Any) -> Settings:
        """Settings from the ``[tui]`` table."""
        if not isinstance(table, dict):
            return cls(problems=("[tui] in the configuration must be a table",))
        problems: list[str] = []
        values: dict[str, Any] = {}
        for name, value in table.items():
            if (name == "theme" and value in THEMES) or (name in ("animation", "meter") and isinstance(value, bool)):
                values[name] = value
            elif name == "keys" and isinstance(value, dict):
                values[name] = _keys(value, problems)
            elif name in ("theme", "animation", "meter", "keys"):
                wanted = {"theme": "dark or light", "keys": "a table"}.get(name, "true or false")
                problems.append(f"tui.{name} is {value!r}, wanted {wanted}")
            else:
                problems.append(f"unknown setting tui.{name}: known are theme, animation, meter, keys")
        return cls(**values, problems=tuple(problems))


def _keys(table: dict[str, Any], problems: list[str]) -> dict[str, str]:
    flat: dict[str, Any] = {}
    for name, value in table.items():  # `message.send = "enter"` without quotes is a nested table in TOML
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            flat[name] = value
    chosen: dict[str, str] = {}
    for name, value in flat.items():
        if name not in KEYS:
            near = difflib.get_close_matches(name, KEYS, n=1)
            problems.append(f"unknown key id {name!r} in tui.keys" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif not isinstance(value, str) or not value.strip():
            problems.append(f"tui.keys.{name} is {value!r}, wanted keys such as 'ctrl+r'")
        else:
            try:
                chosen[name] = normal(value)
            except ValueError as error:
                problems.append(f"tui.keys.{name} is {value!r}: {error}")
    while shared := _shared(chosen):
        lost, other, key = shared
        problems.append(f"tui.keys.{lost} is {chosen.pop(lost)!r}, but {key} is the key of {other} too")
    return chosen


def normal(keys: str) -> str:
    """``keys`` as textual names them. Raises ``ValueError`` for one that no keyboard has."""
    found = []
    for key in _named(keys):
        *modifiers, name = key.split("+")
        if wrong := [m for m in modifiers if m not in MODIFIERS]:
            raise ValueError(f"{wrong[0]!r} is not one of {', '.join(MODIFIERS)}")
        if len(name) == 1:
            (name,) = _named(name)
        sign = key_to_character(name) or "a"  # letters and digits go by themselves, not by their names
        known = name in NAMED or name in REPLACED_KEYS or (sign.isprintable() and not sign.isalnum() and name.islower())
        if len(name) > 1 and not known:
            raise ValueError(f"there is no key {name!r}")
        found.append("+".join((*sorted(modifiers), name)))
    return ",".join(found)


def _named(keys: str) -> list[str]:
    try:
        return [binding.key for binding in Binding.make_bindings([Binding(keys, "")])]
    except InvalidBinding:
        raise ValueError("there is a comma too many") from None


def _shared(chosen: dict[str, str]) -> tuple[str, str, str] | None:
    """Two ids that have a key in common where both act, the one set last in front, and that key."""
    taken = [(name, set(keys.split(",")), places) for name, keys, places in FIXED]
    for id_ in (*(id_ for id_ in KEYS if id_ not in chosen), *chosen):
        keys = set(normal(chosen.get(id_, KEYS[id_][0])).split(","))
        for other, others, places in taken:
            if keys & others and _places(id_) & places:
                return id_, other, min(keys & others)
        taken.append((id_, keys, _places(id_)))
    return None


def _places(id_: str) -> set[str]:
    """Where an id's keys act."""
    group, dot, _ = id_.rpartition(".")
    return PLACES.get(id_) or (PLACES[group + dot] if dot else MAIN)
