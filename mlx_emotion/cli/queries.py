"""``mlx-emotion queries``: query sets to extract with."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import click

from ..options import check_seed
from .options import MODEL, TRUST, Range
from .progress import progress_bar, stop_on_interrupt

SAVE_SECONDS = 5.0


@click.group(name="queries")
def command() -> None:
    """Write query sets with a model."""


@command.command(name="generate")
@click.option("--emotion", "-e", required=True, metavar="E", help="The emotion or persona the queries are for.")
@click.option(
    "-n", "count", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N", help="How many."
)
@MODEL
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="FILE",
    help="A JSON file for `extract --queries`. One that is there already is added to.",
)
@click.option("--temp", type=Range(0, 10), default=1.0, show_default=True, metavar="T", help="Sampling temperature.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    metavar="B",
    help="Questions written at once.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="Same seed: same questions.")
@TRUST
def generate(
    emotion: str,
    count: int,
    model: str | None,
    output: str,
    temp: float,
    batch_size: int,
    seed: int,
    trust_remote_code: bool,
) -> None:
    """Have a model write N distinct questions that can be answered with an emotion or without.

    What is written so far is kept; the same command goes on from there.
    """
    check_seed(seed)
    from .. import load
    from ..definitions import proper_name
    from ..errors import Interrupted, QueryError, UsageError
    from ..files import atomic_write, check_writable
    from ..queries import read
    from ..queries.generate import asker
    from ..queries.generate import generate as write_queries

    try:
        proper_name(emotion)
    except ValueError as error:
        raise UsageError(f"--emotion: {error}") from None
    path = Path(output)
    queries = read(path)[0] if path.exists() else {}
    known = queries.get(emotion, [])
    found = known
    if len(known) < count:
        check_writable(path, QueryError)
        saved = time.monotonic()
        speaker = load(model, trust_remote_code=trust_remote_code)
        with stop_on_interrupt() as stop, progress_bar("writing questions") as update:

            def save() -> None:
                others = queries
                with contextlib.suppress(QueryError):  # being written by another program, which may add to it too
                    others = read(path)[0] if path.exists() else {}
                with atomic_write(path, QueryError) as temporary:
                    text = json.dumps({**others, emotion: list(found)}, ensure_ascii=False, indent=1)
                    temporary.write_text(text + "\n", encoding="utf-8")

            def report(questions: list[str]) -> None:
                nonlocal found, saved
                found = questions
                update(len(found), count, "")
                if len(found) > len(known) and time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()

            def work(voice) -> None:
                import mlx.core as mx

                mx.random.seed(seed + len(known))  # going on, not the same questions again
                ask = asker(voice, batch_size, temp, stop.is_set)
                write_queries(emotion, count, ask, known, report)

            try:
                speaker.run(work)
            finally:
                if found and found != known:
                    save()
        if stop.is_set():
            raise Interrupted(f"stopped; {path} has {len(found)} of {count} questions")
        if len(found) < count:
            where = f"{path} has {len(found)} of {count}" if found else "it wrote none, and no file was made"
            raise QueryError(f"{speaker.id} does not write enough different questions for {emotion}: {where}")
    click.echo(str(path))
