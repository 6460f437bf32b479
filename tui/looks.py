"""Colours and words that several widgets share: the themes, a feeling's colour, bars, timelines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.text import Text
from rich.theme import Theme as RichTheme
from textual.color import Color
from textual.theme import Theme

from mlx_emotion import CATALOGUE, Emotion, Feeling, MLXEmotionError

QUIET = "#8a8f98"
"""The colour of feeling nothing, and of ``base``."""

DARK = Theme(
    name="feeling-dark",
    primary="#a8b3c7",
    secondary="#7f8aa0",
    accent="#c9b8f0",
    foreground="#dfe3ea",
    background="#14161b",
    surface="#1a1d24",
    panel="#22262f",
    warning="#f2b705",
    error="#e5484d",
    success="#3fae8f",
    dark=True,
)
LIGHT = Theme(
    name="feeling-light",
    primary="#44506a",
    secondary="#68738a",
    accent="#6a4fb3",
    foreground="#20242c",
    background="#faf9f6",
    surface="#f3f1ec",
    panel="#e8e5de",
    warning="#a87500",
    error="#c2292e",
    success="#1f7f66",
    dark=False,
)

MARKDOWN = RichTheme(
    {
        "markdown.h1": "bold underline",
        "markdown.h2": "bold underline",
        "markdown.code": "bold italic",
        "markdown.code_block": "dim",
        "markdown.item.bullet": "bold",
        "markdown.item.number": "bold",
    }
)
"""How complete replies are painted; without colours of its own, which are the feelings'."""

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal would obey, what turns the writing round, and half characters, which cannot be written."""

Weights = Sequence[tuple[str, float]]


def colour_of(name: str, catalogue: Mapping[str, Emotion] = CATALOGUE) -> str:
    known = catalogue.get(name) or CATALOGUE.get(name)
    return known.colour if known else QUIET


def blend(weights: Weights, catalogue: Mapping[str, Emotion] = CATALOGUE) -> str:
    """The colour of a mix: its emotions' colours, weighted."""
    total = sum(w for _, w in weights)
    if total <= 0:
        return QUIET
    parts = [(Color.parse(colour_of(n, catalogue)), w / total) for n, w in weights]
    rgb = (round(sum(getattr(c, part) * w for c, w in parts)) for part in "rgb")
    return Color(*rgb).hex


def parse(spec: str, catalogue: Mapping[str, Emotion] = CATALOGUE) -> Feeling:
    """A stored feeling; what this model's pack does not know reads as neutral."""
    try:
        return Feeling.of(spec, {**CATALOGUE, **catalogue})
    except MLXEmotionError:
        return Feeling()


def felt(weights: Weights, catalogue: Mapping[str, Emotion] = CATALOGUE, bold: bool = True) -> Text:
    """A feeling as coloured words."""
    text = Text()
    style = "bold " if bold else ""
    for n, (name, weight) in enumerate(sorted(weights, key=lambda pair: -pair[1])):
        text.append(" · " if n else "", "dim")
        text.append(f"{name} {weight:.0%}".replace("%", " %"), f"{style}{colour_of(name, catalogue)}")
    if not text:
        text.append("neutral", f"{style}{QUIET}")
    return text


def timeline(steps: Sequence[tuple[int, str]], tokens: int, width: int, catalogue: Mapping[str, Emotion]) -> Text:
    """A thin line, one stretch a feeling, as long as it was felt; ``steps`` are (first token, feeling)."""
    text = Text()
    if not steps or width < 2:
        return text
    length = max(tokens, steps[-1][0] + 1)
    cells = [blend(parse(spec, catalogue).weights, catalogue) for _, spec in steps]
    for cell in range(width):
        token = cell * length // width
        step = max(i for i, (first, _) in enumerate(steps) if first <= token or i == 0)
        text.append("━", cells[step])
    return text


def bar(value: float, most: float, width: int, colour: str, mark: float | None = None) -> Text:
    """``value`` of ``most`` as a bar of ``width`` cells in eighths, with an optional ``mark`` on the scale."""
    eighths = round(max(0.0, min(value / most, 1.0)) * width * 8)
    full, rest = divmod(eighths, 8)
    cells = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    text = Text()
    text.append(cells, colour)
    at = None if mark is None else min(width - 1, int(mark / most * width))
    for cell in range(len(cells), width):
        text.append("┊" if cell == at else "─", f"{colour} dim")
    return text


def clean(text: str) -> str:
    """``text`` without what a terminal would obey; tabs and line breaks stay. Whatever is painted goes through it."""
    return OBEYED.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def readable_bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
