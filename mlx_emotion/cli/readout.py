"""``mlx-emotion readout``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from .options import cell, load, loading_options, one_line, print_table

MAX_TEXT = 1 << 20


@click.command(name="readout")
@click.argument("text", metavar="TEXT|-")
@loading_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(text: str, as_json: bool, **given: Any) -> None:
    """Read TEXT, or standard input for -, as a user's message and show what the model's state says.

    Each number is the projection of the activations on an emotion's vector: 0 is a neutral question, 1
    what steering at intensity 1.0 adds (once the vector, where the pack is not calibrated). Per token, as
    their mean, and where the answer would begin.
    """
    from ..errors import UsageError
    from ..readout import PromptReader

    if text == "-":
        text = sys.stdin.read(MAX_TEXT + 1)
    if len(text) > MAX_TEXT:
        raise UsageError(f"the text is longer than {MAX_TEXT} characters")
    if not text.strip():
        raise UsageError("the text is empty")
    model = load(given)
    found = model.run(lambda voice: PromptReader(voice).read(text))

    assert model.vectors is not None  # or there would be no reading
    calibrated = model.vectors.calibrated

    def named(row: Any) -> dict[str, float]:
        return {n: round(float(v), 4) for n, v in zip(found.names, row)}

    if as_json:
        tokens = [{"token": t, "readings": named(v)} for t, v in zip(found.tokens, found.values)]
        total = {"mean": named(found.mean), "last": named(found.last)}
        print(json.dumps({"model": model.id, "calibrated": calibrated, "tokens": tokens, **total}, ensure_ascii=False))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("token")
    for name in found.names:
        table.add_column(cell(name), justify="right", no_wrap=True)
    for token, row in zip(found.tokens, found.values):
        table.add_row(cell(one_line(token) or "·"), *(f"{v:+.2f}" for v in row))
    for label, row in (("mean", found.mean), ("answer", found.last)):
        table.add_row(Text(label, "bold"), *(Text(f"{v:+.2f}", "bold") for v in row))
    print_table(table)
    if not calibrated:
        click.echo("the pack is not calibrated: 1 is what once the vector adds, not intensity 1.0", err=True)
