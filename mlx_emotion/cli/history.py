"""``mlx-emotion history``."""

from __future__ import annotations

import dataclasses
import json
import sys

import click

from ..errors import UsageError
from ..files import user_path
from .options import one_line, print_table, say


@click.group(name="history", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.option("--deleted", is_flag=True, help="List those that `undelete` can still bring back, and until when.")
@click.pass_context
def command(ctx: click.Context, as_json: bool, deleted: bool) -> None:
    """The conversations of the terminal app: list, export, import, rename, delete.

    A conversation is named by its title or by the beginning of its id.
    """
    if ctx.invoked_subcommand is not None:
        if as_json or deleted:
            option = "--json" if as_json else "--deleted"
            raise UsageError(f"{option} is for the list, not for {ctx.invoked_subcommand}")
        return
    store = _store()
    found = store.conversations(deleted)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(c) | {"until": c.until} for c in found], indent=1))
        return
    if not found:
        told = "no conversation yet; `mlx-emotion chat` begins one"
        click.echo("nothing was deleted in the last week" if deleted else told, err=True)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("id", "until" if deleted else "updated", "messages", "model", "title"):
        table.add_column(column, no_wrap=column != "title")
    for c in found:
        when = (c.until or c.updated)[:16].replace("T", " ")
        table.add_row(c.id[:8], when, str(c.exchanges), Text(one_line(c.model)), Text(one_line(c.title)))
    print_table(table)


@command.command(name="export")
@click.argument("conversation")
@click.option("--format", "kind", type=click.Choice(["md", "json"]), default="md", show_default=True)
@click.option("--output", metavar="FILE", help="A file or a folder. Default: print it.")
def export(conversation: str, kind: str, output: str | None) -> None:
    """Write a conversation as Markdown, or as JSON that `import` reads."""
    from ..store import as_text, export_file

    store = _store()
    id_ = store.find(conversation).id
    if output is None:
        text = as_text(store.export(id_), kind)
        sys.stdout.write(one_line(text) if sys.stdout.isatty() else text)
    else:
        click.echo(str(export_file(store, id_, user_path(output), kind)))


@command.command(name="import")
@click.argument("file")
def import_(file: str) -> None:
    """Read a conversation from exported JSON; prints its new id."""
    click.echo(_store().import_file(file))


@command.command(name="rename")
@click.argument("conversation")
@click.argument("title")
def rename(conversation: str, title: str) -> None:
    """Give a conversation another title."""
    store = _store()
    store.rename(store.find(conversation).id, title)


@command.command(name="delete")
@click.argument("conversation")
def delete(conversation: str) -> None:
    """Delete a conversation; for a week `undelete` brings it back."""
    store = _store()
    found = store.find(conversation)
    store.delete(found.id)
    say(f"deleted {found.title!r}; `mlx-emotion history undelete {found.id[:8]}` brings it back", err=True)


@command.command(name="undelete")
@click.argument("conversation")
def undelete(conversation: str) -> None:
    """Bring a deleted conversation back."""
    store = _store()
    store.undelete(store.find(conversation, deleted=True).id)


def _store():
    from ..store import Store

    store = Store()
    click.get_current_context().call_on_close(store.close)
    if store.aside is not None:
        click.echo(f"mlx-emotion: the conversations could not be read; that file is kept as {store.aside}", err=True)
    return store
