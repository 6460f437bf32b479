"""``mlx-emotion vectors``: packs on this machine."""

from __future__ import annotations

import json

import click

from .options import ADAPTER, cell, name_width, print_table, resolve, say
from .vectors_travel import commands


@click.group(name="vectors")
def command() -> None:
    """Packs: list, show, check, import, export, push, pull, diff, merge."""


for _travel in commands:
    command.add_command(_travel)


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(as_json: bool) -> None:
    """The packs on this machine."""
    from ..errors import PackError
    from ..files import packs_folder
    from ..vectors import read_info, shipped_packs

    rows = []
    for folder in (packs_folder(), shipped_packs()):
        for path in sorted(folder.glob("*.safetensors")):
            try:
                info = read_info(path)
            except PackError as error:
                say(str(error), err=True)
                continue
            rows.append((path, info))
    if as_json:
        items = [{"name": p.stem, "path": str(p), "model": i.model.id, "site": i.site} for p, i in rows]
        click.echo(json.dumps([{**r, "emotions": list(i.emotions)} for r, (_, i) in zip(items, rows)], indent=1))
        return
    if not rows:
        click.echo("no packs yet; make one with `mlx-emotion extract`", err=True)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("pack", "model", "site", "emotions"):
        table.add_column(column)
    for path, info in rows:
        table.add_row(*map(cell, (path.stem, info.model.id, info.site, ", ".join(info.emotions))))
    print_table(table)


@command.command(name="show")
@click.argument("pack")
@click.option("--json", "as_json", is_flag=True, help="Print the metadata as JSON.")
def show(pack: str, as_json: bool) -> None:
    """What a pack is and what is in it."""
    import numpy as np

    from ..vectors import EmotionVectors

    found = EmotionVectors.load(resolve(pack))
    info = found.info
    if as_json:
        click.echo(json.dumps(json.loads(info.to_json()), indent=1))
        return
    m = info.model

    say(f"{found.path}")
    say(f"model      {m.id} {m.revision}".rstrip() + f" ({m.architecture}, {m.layers} layers of {m.width})")
    say(f"           fingerprint {m.fingerprint}")
    say(f"steers     {info.site}, positions {info.positions}; method {info.method}")
    say(f"queries    {info.queries.get('name', 'unknown')}; made {info.created or 'at an unknown time'}")
    wide = name_width(found)
    say(f"{'emotion':{wide}}{'queries':>8}{'scale':>8}{'norm':>9}{'with base':>11}")
    base = found.base.ravel()
    for name, entry in info.emotions.items():
        v = found[name].ravel()
        cosine = float(v @ base / (np.linalg.norm(v) * np.linalg.norm(base)))
        scale = entry.get("scale")
        shown = "-" if scale is None else f"{scale:.2f}"
        say(f"{name:{wide}}{entry.get('count', 0):>8}{shown:>8}{np.linalg.norm(v):>9.3f}{cosine:>11.2f}")


@command.command(name="check")
@click.argument("pack")
@click.option("--model", "-m", metavar="M", help="Also check that it is for this model.")
@ADAPTER
def check(pack: str, model: str | None, adapter: str | None) -> None:
    """Check that a pack is whole and, with --model, that it is for that model."""
    from ..errors import PackError, UsageError
    from ..models import identify
    from ..vectors import EmotionVectors

    if adapter and not model:
        raise UsageError("--adapter says what is on the model: give --model too")
    found = EmotionVectors.load(resolve(pack), samples=True)
    if model is not None:
        identity, _ = identify(model, local=True, adapter=adapter)
        if wrong := found.mismatches(identity):
            raise PackError(f"{found.path} is not for {identity.id}: {'; '.join(wrong)}")
    say(f"{found.path}: whole, {', '.join(found)}, {found.info.model.id} at site {found.info.site}")
