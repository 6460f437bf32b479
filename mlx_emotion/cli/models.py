"""``mlx-emotion models``."""

from __future__ import annotations

import json

import click

from .options import cell, print_table, say


@click.command(name="models")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def command(as_json: bool) -> None:
    """Which usable models are on this machine, and which have a pack."""
    from ..library import available, in_folders
    from ..models import default_model

    rows = []
    found = available()
    for m in [*found, *in_folders([], found)]:
        if m.identity is None:
            say(f"{m.name}: {m.problem}", err=True)
            continue
        rows.append(
            {
                "model": m.name,
                "architecture": m.identity.architecture,
                "layers": m.identity.layers,
                "width": m.identity.width,
                "quantization": m.quantization,
                "megabytes": round(m.bytes / 1e6, 1),
                "packs": [p.stem for p in m.packs],
                "default": m.name == default_model(),
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("model", "kind", "layers", "quantised", "size", "packs"):
        table.add_column(column)
    for r in rows:
        mark = " *" if r["default"] else ""
        table.add_row(
            cell(r["model"] + mark), cell(r["architecture"]), f"{r['layers']}x{r['width']}", cell(r["quantization"]),
            f"{r['megabytes']} MB", cell(", ".join(r["packs"]) or "none: mlx-emotion extract"),
        )  # fmt: skip
    print_table(table)
