"""``mlx-emotion paths``."""

from __future__ import annotations

import click


@click.command(name="paths")
def command() -> None:
    """Where this program keeps its files."""
    from ..files import all_paths

    for what, path in all_paths().items():
        click.echo(f"{what:14}{path}")
