"""``mlx-emotion vectors import|export|push|pull|diff|merge``: packs in, out and side by side."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import SITES, say, say_doubts

if TYPE_CHECKING:
    from ..vectors import EmotionVectors


def _load(pack: str, samples: bool = False) -> EmotionVectors:
    from ..vectors import EmotionVectors
    from .options import resolve

    return EmotionVectors.load(resolve(pack), samples)


@click.command(name="import")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--model", "-m", required=True, metavar="M", help="The model the vectors are for: folder or hub id.")
@click.option("--output", "-o", metavar="PACK", help="Where the pack goes. Default: where packs are looked for.")
@click.option(
    "--site",
    type=click.Choice(SITES),
    help="Where they act. Default: attention for JSON, residual for GGUF.",
)
@click.option("--force", is_flag=True, help="Take a GGUF written from another model's pack, where the shapes allow it.")
def import_(paths: tuple[str, ...], model: str, output: str | None, site: str | None, force: bool) -> None:
    """Make a pack from the paper's JSON files or from GGUF control vectors, or from a folder of them.

    A file is one emotion, named <prefix>_<emotion>.json or .gguf.
    """
    from ..errors import UsageError
    from ..files import packs_folder
    from ..models import identify
    from ..vectors.travel import import_files

    identity, _ = identify(model)
    pack = import_files(paths, identity, site, force)
    path = Path(output) if output else packs_folder() / f"{identity.id.replace('/', '--')}-{pack.info.site}.safetensors"
    if output is None and path.exists():
        raise UsageError(f"{path} is there already; give another place with --output, or `vectors merge` the two")
    pack.save(path)
    say_doubts(pack)
    click.echo(str(path))


@click.command(name="export")
@click.argument("pack")
@click.option(
    "--format",
    "form",
    type=click.Choice(["gguf", "json"]),
    required=True,
    help="gguf: control vectors of llama.cpp and repeng; json: the paper's files.",
)
@click.option("--emotion", "-e", metavar="E", help="One emotion. Default: all, a file each.")
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="FILE",
    help="With --emotion the file; else FILE's name gets _<emotion> before its suffix.",
)
def export(pack: str, form: str, emotion: str | None, output: str) -> None:
    """Write a pack's vectors as files for other programs."""
    from ..vectors.travel import export_files

    found = _load(pack)
    for path in export_files(found, form, output, emotion):
        click.echo(str(path))
    scales = ", ".join(f"{n} {found.scale(n):.3g}" for n in ([emotion] if emotion else found))
    click.echo(f"vectors are unscaled; intensity 1.0 is scale {scales}", err=True)


@click.command(name="push")
@click.argument("pack")
@click.argument("repo")
@click.option("--private", is_flag=True, help="If the repository has to be made, make it private.")
def push(pack: str, repo: str, private: bool) -> None:
    """Upload PACK to REPO (owner/name) on the Hugging Face hub, with a model card."""
    from ..vectors import hub

    click.echo(hub.push(_load(pack), repo, private))


@click.command(name="pull")
@click.argument("repo")
@click.option("--model", "-m", metavar="M", help="Only packs for this model.")
def pull(repo: str, model: str | None) -> None:
    """Download the packs of REPO on the Hugging Face hub to where packs are looked for."""
    from ..files import packs_folder
    from ..models import identify
    from ..vectors import hub

    identity = identify(model)[0] if model else None
    for path in hub.pull(repo, packs_folder(), identity):
        click.echo(str(path))


@click.command(name="diff")
@click.argument("a")
@click.argument("b")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def diff(a: str, b: str, as_json: bool) -> None:
    """What differs between two packs: metadata, emotions, and how alike the vectors are."""
    from ..vectors.algebra import diff as compare

    found = compare(_load(a), _load(b))
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=1))
        return
    for key, left, right in found.metadata:
        say(f"{key}: {left} | {right}")
    for which, names in (("A", found.only_a), ("B", found.only_b)):
        if names:
            say(f"only in {which}: {', '.join(names)}")
    if found.common:
        click.echo(f"{'emotion':20}{'cosine':>8}{'norm A':>10}{'norm B':>10}  least alike layer")
    for name, like in found.common.items():
        say(
            f"{name:20}{like.cosine:>8.4f}{like.norms[0]:>10.3f}{like.norms[1]:>10.3f}"
            f"  {like.worst_layer} ({like.worst_cosine:.4f})"
        )


@click.command(name="merge")
@click.argument("packs", nargs=-1, required=True, metavar="A B...")
@click.option("--output", "-o", required=True, metavar="PACK", help="The new pack.")
@click.option("--prefer", type=click.Choice(["first", "last"]), help="Which to take of an emotion that several have.")
def merge(packs: tuple[str, ...], output: str, prefer: str | None) -> None:
    """One pack with the emotions of several, all of one model and site."""
    from ..vectors.algebra import merge as join

    pack = join([_load(p, samples=True) for p in packs], prefer)
    pack.save(output)
    say_doubts(pack)
    click.echo(output)


commands = [import_, export, push, pull, diff, merge]
