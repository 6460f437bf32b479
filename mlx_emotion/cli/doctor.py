"""``mlx-emotion doctor``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator

import click

from ..errors import MLXEmotionError
from .options import say


@click.command(name="doctor")
@click.option("--model", "-m", metavar="M", help="The model to test. Default: the configured one, else embedded.")
def command(model: str | None) -> None:
    """Check that this installation works: libraries, device, folders, the model, one reply."""
    failed = 0
    for what, check in _checks(model):
        try:
            say(f"ok    {what:10}{check()}")
        except Exception as error:  # whatever is wrong is what the user came to see
            failed += 1
            say(f"FAIL  {what:10}{str(error).splitlines()[0] if str(error) else type(error).__name__}")
    if failed:
        raise MLXEmotionError(f"{failed} of the checks failed")


def _checks(model: str | None) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "python", lambda: f"{platform.python_version()} on {platform.platform()}"
    yield "libraries", _libraries
    yield "device", _device
    yield "folders", _folders
    yield "steering", lambda: _steering(model)


def _libraries() -> str:
    from ..extraction import library_versions

    return ", ".join(f"{n} {v}" for n, v in library_versions().items())


def _device() -> str:
    from ..engine import shared

    def ask() -> str:
        import mlx.core as mx

        text = str(mx.default_device())
        if sys.platform == "darwin" and "gpu" not in text:
            raise MLXEmotionError(f"{text}; on a Mac the GPU should be the default device")
        return text

    return shared().run(ask)


def _folders() -> str:
    import tempfile

    from ..files import packs_folder

    folder = packs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    return f"{folder} can be written"


def _steering(name: str | None) -> str:
    from .. import load

    model = load(name)
    feeling = model.emotions[0] if model.emotions else None
    reply = model.generate("Hello.", feeling, max_tokens=8, seed=0)
    packed = f"{len(model.emotions)} emotions" if feeling else "no pack yet"
    return f"{model.id} ({model.quantization}, {packed}) is steered at {model.site}, {reply.tokens_per_second} tokens/s"
