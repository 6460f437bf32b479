"""Emotions and personas of a user's own, from a TOML file.

Each is a table such as this one; ``colour`` and ``queries`` may be left out:

    [[emotion]]
    name = "nostalgia"
    valence = 0.3
    arousal = -0.4
    colour = "#c58f5c"
    instructions = ["Answer with nostalgia, in at most two sentences."]
    queries = ["What is your home town like these days?"]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .emotions import BASE, CATALOGUE, GREY, NEUTRAL, Emotion
from .errors import DefinitionError, UsageError
from .files import read_toml

NAME = re.compile(r"[^\W\d_][\w -]{0,38}\w")
RESERVED = (BASE, NEUTRAL, "valence", "arousal")
FIELDS = ("name", "valence", "arousal", "colour", "instructions", "queries")


def proper_name(name: object) -> str:
    """``name`` if an emotion can be called so, in feelings, files and packs; else ``ValueError``."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name != name.lower():
        raise ValueError(
            f"name is {name!r:.60}, wanted 2 to 40 small letters, digits, spaces, - or _, "
            "a letter first, a letter, a digit or _ last"
        )
    if name in RESERVED:
        raise ValueError(f"name {name!r} means something else already; choose another")
    return name


@dataclass(frozen=True)
class Definition:
    """An emotion and the queries to extract it with; none where a query set has them."""

    emotion: Emotion
    queries: tuple[str, ...] = ()


def read_definitions(path: str | Path) -> dict[str, Definition]:
    """The emotions that a TOML file defines, by name.

    Raises ``DefinitionError``: one line with the file, the emotion, the field and what was expected.
    """
    path = Path(path)
    try:
        content = read_toml(path)
    except UsageError as error:
        raise DefinitionError(str(error)) from None
    if unknown := [k for k in content if k != "emotion"]:
        raise DefinitionError(f"{path}: unknown key {unknown[0]!r}; every emotion begins with a line [[emotion]]")
    entries = content.get("emotion")
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise DefinitionError(f"{path}: no emotion defined; every emotion begins with a line [[emotion]]")
    found: dict[str, Definition] = {}
    for number, entry in enumerate(entries, 1):
        try:
            definition = _definition(entry)
            if definition.emotion.name in found:
                raise ValueError(f"name {definition.emotion.name!r} is defined twice")
        except ValueError as error:
            label = entry.get("name") if isinstance(entry.get("name"), str) else number
            raise DefinitionError(f"{path}: emotion {label}: {error}") from None
        found[definition.emotion.name] = definition
    return found


def _definition(entry: Mapping[str, Any]) -> Definition:
    """Raises ``ValueError`` that names the field."""
    for key in entry:
        if key not in FIELDS:
            raise ValueError(f"unknown field {key!r}: known are {', '.join(FIELDS)}")
    for key in ("name", "valence", "arousal", "instructions"):
        if key not in entry:
            raise ValueError(f"field {key!r} is missing")
    name = proper_name(entry["name"])
    if name in CATALOGUE:
        raise ValueError(f"name {name!r} is a built-in emotion's; choose another")
    for key in ("valence", "arousal"):
        number = entry[key]
        if isinstance(number, bool) or not isinstance(number, int | float) or not -1 <= number <= 1:
            raise ValueError(f"{key} is {number!r}, wanted a number from -1 to 1")
    colour = entry.get("colour", GREY)
    if not isinstance(colour, str) or not re.fullmatch("#[0-9a-fA-F]{6}", colour):
        raise ValueError(f"colour is {colour!r}, wanted #rrggbb")
    texts = {}
    for key in ("instructions", "queries"):
        given = entry.get(key, [])
        if not isinstance(given, list) or not all(isinstance(t, str) and t.strip() for t in given):
            raise ValueError(f"{key} is {given!r:.60}, wanted a list of texts that are not empty")
        if key in entry and not given:
            raise ValueError(f"{key} is empty, wanted at least one text")
        texts[key] = tuple(t.strip() for t in given)
    emotion = Emotion.custom(name, entry["valence"], entry["arousal"], colour, texts["instructions"])
    return Definition(emotion, texts["queries"])
