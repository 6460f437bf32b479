"""What a report is made of, and how it is written down: as Markdown, and as one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NONE = "–"


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Text:
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    name: str
    caption: str


Block = Heading | Text | Table | Picture


def number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # no "-0.0"


def interval(found: Mapping[str, Any] | None, digits: int = 2, percent: bool = False, count: bool = False) -> str:
    """A mean with its 95 % interval, how many values it is of, if asked, and how many verdicts are missing."""
    if not found:
        return NONE
    factor = 100 if percent else 1
    digits = 1 if percent else digits
    text = NONE if found["mean"] is None else number(factor * found["mean"], digits)
    if found["low"] is not None:
        text += f" [{number(factor * found['low'], digits)}, {number(factor * found['high'], digits)}]"
    text += f" (n {found['n']})" if count else ""
    return text + (f" ({found['missing']} missing)" if found["missing"] else "")


def points(found: Mapping[str, Any]) -> str:
    """A change of a share, in points."""
    return NONE if found["mean"] is None else f"{interval(found, percent=True)} points"


def clean(text: str) -> str:
    """One line, without control characters: answers are a model's, and may hold anything."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def cell(text: str) -> str:
    """As Markdown, without what would be a column, a tag, or a link or an image somewhere else."""
    return clean(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")


def to_markdown(blocks: Sequence[Block]) -> str:
    lines: list[str] = []
    for n, block in enumerate(blocks):
        if isinstance(block, Heading):
            lines += [f"{'#' if not n else '##'} {cell(block.text)}", ""]
        elif isinstance(block, Text):
            text = cell(block.text)
            start = "> **Note.** " if block.warning else "\\" if text[:1] in tuple("#>-+=*`~") else ""
            lines += [start + text, ""]
        elif isinstance(block, Table):
            lines += ["| " + " | ".join(map(cell, block.header)) + " |", "|" + "---|" * len(block.header)]
            lines += ["| " + " | ".join(map(cell, row)) + " |" for row in block.rows] + [""]
        else:
            caption = cell(block.caption)
            lines += [f"![{caption}](figures/{block.name}.png)", "", f"*{caption}*", ""]
    return "\n".join(lines).rstrip() + "\n"


CSS = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #69707d; --line: #dfe2e8; --paper: #ffffff; --note: #fff6dd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --soft: #9aa1ad; --line: #363b45; --paper: #16181d; --note: #3a3214; }
  img { background: #ffffff; border-radius: 6px; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: 0.8rem 0; font-size: 13px; }
th, td { padding: 0.25rem 0.7rem 0.25rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; } .paper td { color: var(--soft); font-style: italic; }
.note { background: var(--note); padding: 0.5rem 0.8rem; border-radius: 6px; }
figure { margin: 1rem 0; } figure img { max-width: 100%; } figcaption { color: var(--soft); font-size: 13px; }
"""


def to_html(blocks: Sequence[Block], pictures: Mapping[str, Sequence[Path]]) -> str:
    """One file that needs no other: figures are in it."""
    out: list[str] = []
    for n, block in enumerate(blocks):
        if isinstance(block, Heading):
            level = 1 if not n else 2
            out.append(f"<h{level}>{html.escape(clean(block.text))}</h{level}>")
        elif isinstance(block, Text):
            out.append(f"<p{' class=note' if block.warning else ''}>{html.escape(clean(block.text))}</p>")
        elif isinstance(block, Table):
            head = "".join(f"<th>{html.escape(clean(c))}</th>" for c in block.header)
            rows = []
            for row in block.rows:
                kind = " class=paper" if row[0].startswith("paper:") else ""
                rows.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(clean(c))}</td>" for c in row) + "</tr>")
            out.append(f"<div class=scroll><table><tr>{head}</tr>{''.join(rows)}</table></div>")
        else:
            svg = next(p for p in pictures[block.name] if p.suffix == ".svg")
            data = base64.b64encode(svg.read_bytes()).decode()
            caption = html.escape(block.caption)
            out.append(
                f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
    first = next(b.text for b in blocks if isinstance(b, Heading))
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(first)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{CSS}</style><body>\n'
        + "\n".join(out)
        + "\n</body></html>\n"
    )
