"""A progress bar on stderr, and Ctrl-C that stops the work at a safe place."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..library import Step


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Gives ``update(done, total, note)``; draws a bar with the time left, on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(label, total=None, note="")
        last: tuple[int, int] | None = None

        def update(done: int, total: int, note: str = "") -> None:
            nonlocal last
            # What an earlier run did must not count in the speed, nor what was done before this.
            if last is None or total != last[1] or done < last[0]:
                bar.reset(task, total=total, completed=done)
            last = done, total
            bar.update(task, completed=done, total=total, note=note)

        yield update


@contextlib.contextmanager
def stage_bars() -> Iterator[Callable[[Step], None]]:
    """A bar for each stage of the making of a pack, one after the other."""
    with contextlib.ExitStack() as shown:
        stage, update = "", None

        def show(step: Step) -> None:
            nonlocal stage, update
            if step.stage != stage or update is None:
                shown.close()
                if step.began:
                    click.echo(f"going on: {step.began} of {step.total} answers are there", err=True)
                stage, update = step.stage, shown.enter_context(progress_bar(step.stage))
            update(step.done, step.total, step.note)

        yield show


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """While the block runs, the first Ctrl-C (or SIGTERM) sets the event; a second one interrupts at once."""
    stop = threading.Event()

    def handler(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    old = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, h in old.items():
            signal.signal(s, h)
