"""``mlx-emotion calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import ADAPTER, MODEL, SITE, TRUST, Range, name_width, say, say_doubts
from .progress import progress_bar, stop_on_interrupt

if TYPE_CHECKING:
    from ..session import Voice


@click.command(name="calibrate")
@click.argument("pack", required=False)
@MODEL
@click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="For sampling.")
@click.option(
    "--share",
    type=Range(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    metavar="X",
    help="Intensity 1.0 as a share of the strongest fluent dose.",
)
@SITE
@ADAPTER
@click.option("--force", is_flag=True, help="Calibrate a pack of another model, where the shapes allow it.")
@TRUST
def command(
    pack: str | None,
    model: str | None,
    seed: int,
    share: float,
    site: str | None,
    adapter: str | None,
    force: bool,
    trust_remote_code: bool,
) -> None:
    """Find how strong intensity 1.0 is for PACK on this model, and write it into the pack.

    Without PACK, the model's own pack on this machine.
    """
    from .. import load
    from ..calibration import Calibration
    from ..errors import PackError
    from ..files import stamp
    from ..options import check_seed
    from ..vectors import EmotionVectors, shipped_packs
    from .options import resolve

    check_seed(seed)
    path = resolve(pack) if pack else None
    was = stamp(path) if path else None  # loading a model may take long, and another program may write there meanwhile
    vectors = EmotionVectors.load(path, samples=True) if path else None
    loaded = load(model, vectors=vectors, site=site, adapter=adapter, force=force, trust_remote_code=trust_remote_code)
    if path is None and loaded.vectors is not None and loaded.vectors.path is not None:
        path = Path(loaded.vectors.path)
        was, vectors = stamp(path), EmotionVectors.load(path, samples=True)
    if path is None or vectors is None:
        hint = loaded.run(lambda voice: voice.extraction)
        raise PackError(f"no pack for {loaded.id} on this machine; make one with `{hint}`")
    if not pack and path.parent == shipped_packs():
        raise PackError(f"{path} ships with the package; name it to calibrate it, or extract a pack of your own")
    with stop_on_interrupt() as stop, progress_bar("calibrating") as update:

        def work(voice: Voice) -> None:
            calibration = Calibration(voice, vectors, seed, stop.is_set, share)
            calibration.run(update)
            if stamp(path) != was:
                raise PackError(f"{path} has changed meanwhile; nothing was written: calibrate again")
            vectors.save(path)
            calibration.forget()

        loaded.run(work)
    wide = name_width(vectors)
    for name, entry in vectors.info.emotions.items():
        say(f"{name:{wide}}{entry['scale']:g}")
    click.echo(f"{'base':{wide}}{vectors.info.base_scale:g}")
    say_doubts(vectors)
