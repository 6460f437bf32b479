"""``mlx-emotion chat``: the terminal app, or plain, line by line."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import MLXEmotionError, UsageError
from ..options import check_seed, check_text
from .options import early_feeling, generation_options, load, one_line, session_options

if TYPE_CHECKING:
    from ..events import Event
    from ..model import Chat, Model
    from ..store import Exchange

HELP = """\
/feel SPEC       change the feeling: fear, fear:0.8,joy:0.2, valence=-0.5,arousal=0.8
/intensity X     set how strong it is, 0 to 1.5 (or 0 % to 150 %)
/neutral         feel nothing
/again [SPEC]    answer the last message again, maybe with another feeling
/reset           forget the conversation
/save [FILE]     write the conversation to a new JSON file; `mlx-emotion history import` takes it
/help            this list
/quit            leave (also Ctrl-D)"""


@click.command(name="chat")
@generation_options
@click.option("--plain", is_flag=True, help="Line by line, without the terminal app.")
@click.option("--resume", is_flag=False, flag_value="", metavar="[ID]", help="Go on with a conversation.")
def command(plain: bool, resume: str | None, **given: Any) -> int | None:
    """Talk with a model that feels something.

    On a terminal this opens the app. With standard input not a terminal, each line is one message.
    """
    options, seed = session_options(given), check_seed(given["seed"])
    early_feeling(given)
    if given["vectors"] is not None:
        from ..vectors import read_info

        read_info(given["vectors"])
    interactive = sys.stdin.isatty()
    if interactive and sys.stdout.isatty() and not plain:
        from ..tui import run

        loading = {n: given[n] for n in ("vectors", "site", "force", "adapter", "trust_remote_code")}
        return run(given["model"], feeling=given["emotion"], seed=seed, resume=resume, loading=loading, options=options)
    if resume is not None:
        raise UsageError("--resume needs the terminal app: a terminal, and no --plain")
    model = load(given)
    chat = model.chat(given["emotion"], **options)
    talk = PlainChat(model, chat, seed, interactive)
    if interactive:
        talk.say(f"{model.id}, {model.quantization}; feeling {chat.feeling}. /help lists the commands.")
        if model.id == "embedded":
            talk.say("This is a small companion model trained on this project's own text; give --model for a real one.")
        if model.vectors is not None and model.vectors.doubts:
            talk.say(model.vectors.doubts)
    return talk.run()


class PlainChat:
    """The loop: a line is a message, or a command when it begins with a slash."""

    def __init__(self, model: Model, chat: Chat, seed: int | None, interactive: bool) -> None:
        self.model, self.chat, self.seed, self.interactive = model, chat, seed, interactive
        self.felt = chat.feeling  # the last one that was not neutral, for /intensity
        self.exchanges: list[Exchange] = []
        self.attempt = 0  # of the last message's answers

    def say(self, text: str) -> None:
        """To stderr: answers alone go to stdout."""
        click.echo(one_line(text), err=True)

    def lines(self) -> Iterator[str]:
        if not self.interactive:
            yield from sys.stdin
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history for input())
        while True:
            try:
                yield input(f"{self.chat.feeling}> ")
            except EOFError:
                self.say("")
                return
            except KeyboardInterrupt:
                self.say("\n/quit or Ctrl-D leaves")

    def run(self) -> int:
        """Until the lines end. Returns the exit status: that of the last line of a pipe that went wrong, else 0."""
        from ..store import Exchange
        from . import fail

        status = 0
        for line in self.lines():
            text = line.strip()
            if not text:
                continue
            try:
                if not re.match(r"/\w*(\s|$)", text):  # "/usr/bin is full" is a message
                    self.attempt = 0
                    check_text(text, "the message")  # what is refused is not a part of the conversation
                    self.answer(Exchange(text), self.chat.stream(text, seed=self.seed))
                elif self.obey(*text.split(maxsplit=1)):
                    return status
            except MLXEmotionError as error:
                if self.interactive:
                    self.say(str(error))
                else:  # the lines after it are still answered
                    status = fail(one_line(str(error)), error.exit_status)
        return status

    def answer(self, exchange: Exchange, events: Iterator[Event]) -> None:
        """Write a reply as it comes, and keep it with ``exchange``."""
        from ..events import Done, GuardTripped, Thought, Token
        from ..store import Reply

        reply = Reply.begun(self.model, str(self.chat.feeling), self.chat.options.scale, "cancelled")
        text = ""
        try:
            for event in events:
                if isinstance(event, Token):
                    text += event.text
                    sys.stdout.write(one_line(event.text))
                    sys.stdout.flush()
                elif isinstance(event, Thought):
                    click.secho(one_line(event.text), dim=True, nl=False, err=True)
                elif isinstance(event, Done):
                    reply = reply.ended(event)
                    if event.thinking and not event.text:
                        self.say("(only thoughts so far: a larger --max-tokens leaves room for the answer)")
                    print(flush=True)
                    if event.finish_reason == "loop":
                        self.say("(the reply was looping and was ended)")
                elif isinstance(event, GuardTripped):
                    self.say(f" (looping: the feeling is weakened to {event.factor:.0%}) ")
        except KeyboardInterrupt:
            events.close()  # type: ignore[attr-defined]  # a generator
            print(flush=True)
            if not self.interactive:
                raise
            self.say("(stopped)")
        finally:
            reply = replace(reply, text=text.strip())
            if reply.text or not exchange.replies:  # made again, with nothing said: the one before stands
                exchange = exchange.with_reply(reply)
            self.exchanges = [*(e for e in self.exchanges if e.id != exchange.id), exchange]

    def obey(self, name: str, rest: str = "") -> bool:
        """Carry out a slash command; ``True`` to leave."""
        rest = rest.strip()
        if not self.chat.feeling.neutral:
            self.felt = self.chat.feeling
        if name in ("/quit", "/exit"):
            return True
        if name == "/help":
            self.say(HELP)
        elif name == "/feel":
            if not rest:
                raise UsageError(f"feeling {self.chat.feeling}; known are {', '.join(self.model.emotions)}")
            self.say(f"feeling {self.chat.feel(rest)}")
        elif name == "/intensity":
            self.say(f"feeling {self.chat.feel(self.with_intensity(rest))}")
        elif name == "/neutral":
            self.say(f"feeling {self.chat.feel('neutral')}")
        elif name == "/again":
            self.attempt += 1  # with the same seed it would be the same answer
            seed = None if self.seed is None else (self.seed + self.attempt) % 2**63
            if not self.exchanges:
                raise UsageError("nothing to answer again yet")
            self.answer(self.exchanges[-1], self.chat.again(rest or None, seed=seed))
        elif name == "/reset":
            self.chat.reset()
            self.exchanges = []
            self.say("forgotten")
        elif name == "/save":
            self.say(f"saved to {self.save(rest)}")
        else:
            raise UsageError(f"no command {name}; /help lists them")
        return False

    def with_intensity(self, text: str):
        """The present feeling with its strongest emotion at ``text``, the others in proportion."""
        try:
            number = float(text.rstrip("% ")) / (100 if text.endswith("%") else 1)
        except ValueError:
            raise UsageError(f"{text!r} is not a number; write /intensity 0.5 or /intensity 50%") from None
        if self.felt.neutral:
            raise UsageError("feeling neutral; choose an emotion first, with /feel")
        from ..emotions import MAX_INTENSITY

        if not 0 <= number <= MAX_INTENSITY:
            raise UsageError(f"intensity is {number:g}, wanted 0 to {MAX_INTENSITY:g}")
        return self.felt.scaled(number / max(w for _, w in self.felt.weights)) if number else "neutral"

    def save(self, name: str) -> Path:
        from datetime import datetime

        from ..files import atomic_write, conversations_folder, user_path
        from ..store import as_text, exported, now

        stamp = f"{datetime.now():%Y-%m-%d-%H%M%S}.json"
        path = user_path(name) if name else conversations_folder() / stamp
        if path.exists():
            raise UsageError(f"{path} is there already; give another name")
        if not self.exchanges:
            raise UsageError("nothing was said yet")
        head = {"title": self.exchanges[0].user, "model": self.model.id}
        content = exported(head | {"created": self.exchanges[0].created, "updated": now()}, self.exchanges)
        with atomic_write(path) as temporary:
            temporary.write_text(as_text(content, "json"), encoding="utf-8")
        return path
