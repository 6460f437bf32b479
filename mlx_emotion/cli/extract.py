"""``mlx-emotion extract``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import ADAPTER, MODEL, SITE, TRUST, say_doubts
from .progress import stage_bars, stop_on_interrupt


@click.command(name="extract")
@MODEL
@click.option("--emotions", metavar="A,B", help="Which emotions. Default: all of the query set.")
@click.option("--queries", metavar="FILE", help="A JSON file, emotion -> questions, in place of the shipped set.")
@click.option("--limit", type=int, metavar="N", help="At most N queries an emotion.")
@click.option("--batch-size", type=int, default=16, show_default=True, metavar="B", help="Answers made at once.")
@click.option("--max-tokens", type=int, default=128, show_default=True, metavar="N", help="Longest answer.")
@SITE
@click.option(
    "--method",
    metavar="W",
    default="mean",
    show_default=True,
    help="mean: over the answers' tokens; last: at the last prompt token; pca: first component.",
)
@click.option("--define", metavar="FILE", help="A TOML file with emotions of your own.")
@click.option("--think", is_flag=True, help="Let a thinking model reason first; the means are of its answers alone.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="For calibration's sampling.")
@click.option("--keep-samples", is_flag=True, help="Keep each query's vector in the pack, for plots.")
@click.option("--output", "-o", metavar="FILE", help="Where the pack goes. Default: where packs are looked for.")
@click.option("--restart", is_flag=True, help="Forget an unfinished extraction instead of going on with it.")
@click.option("--no-calibrate", is_flag=True, help="Leave intensity 1.0 at scale 1.")
@ADAPTER
@TRUST
def command(
    model: str | None,
    emotions: str | None,
    queries: str | None,
    limit: int | None,
    batch_size: int,
    max_tokens: int,
    site: str | None,
    method: str,
    define: str | None,
    think: bool,
    seed: int,
    keep_samples: bool,
    output: str | None,
    restart: bool,
    no_calibrate: bool,
    adapter: str | None,
    trust_remote_code: bool,
) -> None:
    """Make a pack: emotion vectors of a model.

    Each query is answered twice, plainly and with an instruction to show the emotion; the mean
    difference of activations, layer by layer, is the emotion's vector. Interrupted, the same command
    goes on where it was.
    """
    from ..errors import UsageError
    from ..extraction import Plan
    from ..options import check_seed

    check_seed(seed)
    names = [e.strip() for e in emotions.split(",") if e.strip()] if emotions is not None else None
    plan = Plan.make(names, queries, limit, max_tokens, keep_samples, method, define, think)
    from .. import load

    loaded = load(model, site=site or "attention", adapter=adapter, trust_remote_code=trust_remote_code)
    from ..library import lost_by, make_pack

    if not output and (lost := lost_by(loaded, plan)):
        raise UsageError(f"{lost}; give --output, and `mlx-emotion vectors merge` joins two packs")
    with stop_on_interrupt() as stop, stage_bars() as show:
        pack = make_pack(
            loaded,
            progress=show,
            stopped=stop.is_set,
            plan=plan,
            path=Path(output) if output else None,
            batch_size=batch_size,
            calibrate=not no_calibrate,
            seed=seed,
            restart=restart,
            replace=True,  # asked above, with another way out
        )
    click.echo(str(pack.path))
    if not no_calibrate:
        say_doubts(pack)
