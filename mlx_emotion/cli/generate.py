"""``mlx-emotion generate``."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import click

from ..errors import UsageError
from ..options import check_seed
from .options import early_feeling, generation_options, load, one_line, session_options

MAX_PROMPT = 1 << 20


@click.command(name="generate")
@click.argument("prompt", metavar="PROMPT|-")
@generation_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def command(prompt: str, as_json: bool, **given: Any) -> None:
    """Answer PROMPT, or standard input for -."""
    options, seed = session_options(given), check_seed(given["seed"])
    if prompt == "-":
        prompt = sys.stdin.read(MAX_PROMPT + 1)
    if not prompt.strip():
        raise UsageError("the prompt is empty")
    if len(prompt) > MAX_PROMPT:
        raise UsageError(f"the prompt is longer than {MAX_PROMPT} characters")
    from ..events import Done, Thought, Token

    feeling = early_feeling(given)
    if given["scale"] is not None and feeling is not None and feeling.neutral:
        raise UsageError("--scale says how strong, not what: name an emotion too, as in --emotion fear --scale 2")
    model = load(given)
    chat = model.chat(given["emotion"], **options)
    for event in chat.stream(prompt, seed=seed):
        if isinstance(event, Token) and not as_json:
            sys.stdout.write(one_line(event.text) if sys.stdout.isatty() else event.text)
            sys.stdout.flush()
        elif isinstance(event, Thought) and not as_json:
            click.secho(one_line(event.text), dim=True, nl=False, err=True)
        elif isinstance(event, Done):
            if as_json:
                print(json.dumps(dataclasses.asdict(model.generation(event)), ensure_ascii=False))
            else:
                print(flush=True)
