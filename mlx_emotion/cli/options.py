"""Options that several commands share, and how they become a model and a feeling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import HISTORY, POSITIONS, THINK

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ..emotions import Feeling
    from ..model import Model
    from ..vectors import EmotionVectors

SITES = ("attention", "residual")  # again: the library's are in modules that import numpy and mlx

MODEL = click.option(
    "--model", "-m", metavar="M", help="A model folder or Hugging Face id. Default: the configured one, else embedded."
)
SITE = click.option(
    "--site",
    type=click.Choice(SITES),
    help="Where vectors are read and added. Default: the pack's; of a new pack, attention.",
)
ADAPTER = click.option("--adapter", metavar="FOLDER", help="A LoRA adapter to put on the model.")
TRUST = click.option("--trust-remote-code", is_flag=True, help="Let Python files that come with a model run.")


class Range(click.FloatRange):
    """A range that NaN is not in: click compares, and with NaN no comparison holds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{number} is not in the range {self._describe_range()}.", param, ctx)
        return number


def think_option(default: str) -> Callable:
    """``--think``; where many answers are made, reasoning is off by default."""
    return click.option(
        "--think",
        type=click.Choice(THINK),
        default=default,
        show_default=True,
        help="Whether a thinking model's reasoning is left unsteered, steered too, or switched off.",
    )


def resolve(name: str) -> Path:
    """A pack by file, or by name among the user's and the shipped ones."""
    from ..files import packs_folder
    from ..vectors import shipped_packs

    for path in (Path(name), packs_folder() / f"{name}.safetensors", shipped_packs() / f"{name}.safetensors"):
        if path.is_file():
            return path
    return Path(name)


_LOADING = [
    MODEL,
    click.option(
        "--vectors",
        metavar="PACK",
        callback=lambda _, __, given: given and str(resolve(given)),
        help="A pack, by file or name. Default: the one on this machine made for the model.",
    ),
    SITE,
    ADAPTER,
    click.option("--force", is_flag=True, help="Use a pack of another model, where the shapes allow it."),
    TRUST,
]
_FEELING = [
    click.option("--emotion", "-e", metavar="SPEC", default="neutral", show_default=True,
                 help="fear, fear:0.5, fear:0.8,joy:0.2, valence=-0.5,arousal=0.8, base or neutral."),
    click.option("--scale", type=float, metavar="X", help="A raw multiplier, in place of calibrated intensities."),
    click.option("--positions", type=click.Choice(POSITIONS), default="response", show_default=True,
                 help="Which tokens are steered."),
    click.option("--history", type=click.Choice(HISTORY), default="keep", show_default=True,
                 help="What a change of feeling does to what was said before."),
    think_option("plain"),
    click.option("--system", metavar="TEXT", help="A system message."),
    click.option("--temp", type=float, default=0.6, show_default=True, metavar="T", help="Sampling temperature."),
    click.option("--top-p", type=float, default=0.9, show_default=True, metavar="P", help="Nucleus sampling."),
    click.option("--max-tokens", type=int, default=512, show_default=True, metavar="N", help="Longest reply."),
    click.option("--context", type=int, metavar="N",
                 help="Most tokens that the model reads; older exchanges leave first. Default: all that it can."),
    click.option("--seed", type=int, metavar="S", help="Same seed, same machine, same versions: same text."),
    click.option("--no-guard", is_flag=True, help="Do not weaken the feeling when a reply begins to loop."),
]  # fmt: skip


def loading_options(command: Callable) -> Callable:
    """The options that choose a model and its pack."""
    for option in reversed(_LOADING):
        command = option(command)
    return command


def generation_options(command: Callable) -> Callable:
    """The options of ``chat`` and ``generate``."""
    for option in reversed([*_LOADING, *_FEELING]):
        command = option(command)
    return command


def load(given: dict[str, Any]) -> Model:
    """The model that the loading options ask for."""
    from .. import load as load_model

    return load_model(
        given["model"],
        vectors=given["vectors"],
        site=given["site"],
        force=given["force"],
        adapter=given["adapter"],
        trust_remote_code=given["trust_remote_code"],
    )


def early_feeling(given: dict[str, Any]) -> Feeling | None:
    """The feeling that is asked for, before any model is loaded; ``None`` where only the model can say what it is.

    Raises ``UsageError`` for one that is surely wrong.
    """
    from ..emotions import Feeling
    from ..errors import UsageError
    from ..model import known_emotions

    try:
        return Feeling.of(given["emotion"], known_emotions())
    except UsageError:
        if given["vectors"] is None and given["model"] is None:
            raise
        return None


def session_options(given: dict[str, Any]) -> dict[str, Any]:
    """What a conversation needs of the feeling options, checked before any model is loaded."""
    from ..options import Options

    chosen = {
        "temperature": given["temp"],
        "top_p": given["top_p"],
        "max_tokens": given["max_tokens"],
        "context": given["context"],
        "positions": given["positions"],
        "history": given["history"],
        "think": given["think"],
        "system": given["system"],
        "scale": given["scale"],
        "guard": not given["no_guard"],
    }
    Options(**chosen)
    return chosen


def print_table(table: Table) -> None:
    """Print a table; a reader that has gone is told to ``main``, where rich would end the program with status 1."""
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    Quiet().print(table)


def name_width(names: Iterable[str]) -> int:
    """The width of a column of emotions' names, with a gap after the longest."""
    return max(12, *(len(name) + 2 for name in names))


def say(text: str, err: bool = False) -> None:
    """Print text that may come from elsewhere: a model, a pack, the hub."""
    click.echo(one_line(text), err=err)


def say_doubts(pack: EmotionVectors) -> None:
    """Tell why intensity 1.0 of ``pack`` may not be the full useful dose, if something says so."""
    if doubts := pack.doubts:
        say(doubts, err=True)


def cell(text: str) -> Text:
    """``text`` from elsewhere as a cell of a table: no markup, no escapes."""
    from rich.text import Text

    return Text(one_line(text).replace("\n", "⏎"))


def one_line(text: str) -> str:
    """``text`` with what could move the cursor, change colours or turn the writing round taken out."""
    import unicodedata

    turning = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    kept = (c for c in text if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in turning))
    return "".join(kept)
