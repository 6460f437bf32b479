"""The app's settings: the ``[tui]`` table of the configuration file, checked; a mistake is told, never fatal."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

from mlx_emotion import MLXEmotionError, load_config

THEMES = ("dark", "light")

KEYS: dict[str, tuple[str, str]] = {
    "message.send": ("enter", "Send the message"),
    "message.newline": ("ctrl+j,shift+enter,alt+enter", "Break the line"),
    "message.older": ("up", "An earlier message of yours, from the first line"),
    "message.newer": ("down", "The next message of yours, from the last line"),
    "feelings": ("tab", "To the emotions, and back"),
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
    "panel.more": ("right,l,plus,equals_sign", "Stronger by 5 %"),
    "panel.less": ("left,h,minus", "Weaker by 5 %"),
    "panel.off": ("0,backspace,delete", "This emotion off"),
    "panel.full": ("space", "This emotion to 100 %, or off"),
    "panel.neutral": ("n", "Feel nothing"),
    "panel.base": ("b", "Emotional in general, no emotion in particular"),
    "panel.history": ("k", "What was said before: keep, or refeel"),
    "panel.guard": ("g", "The guard against loops, on or off"),
    "panel.pad": ("p", "To the circumplex, and back"),
}
"""Every action that has a key: id -> (keys, what it does). The ids are those of ``[tui.keys]``."""


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
            table = load_config().get("tui", {})
        except MLXEmotionError as error:
            return cls(problems=(str(error),))
        return cls.of(table)

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
            chosen[name] = value
    return chosen
