"""The command line. Each command is a file of its own that is imported when it is asked for."""

from __future__ import annotations

import importlib
import os
import sys

import click

from ..errors import MLXEmotionError

# Name -> help line; here, so that --help imports none of the commands.
COMMANDS = {
    "chat": "Talk with a model that feels something.",
    "generate": "Answer one prompt.",
    "extract": "Make a pack: extract emotion vectors from a model.",
    "calibrate": "Find how strong intensity 1.0 is for a pack.",
    "evaluate": "Measure a model: the papers' tables and figures.",
    "readout": "What a model's activations say about each emotion, token by token.",
    "queries": "Have a model write queries to extract with.",
    "vectors": "Packs: list, show, check, import, export, push, pull, diff, merge.",
    "history": "Conversations of the app: list, export, import, rename, delete, undelete.",
    "models": "Which usable models are on this machine, and which have a pack.",
    "doctor": "Check that this installation works.",
    "paths": "Where this program keeps its files.",
}


class Commands(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f".{name}", __name__).command

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mlx-emotion", prog_name="mlx-emotion")
def root() -> None:
    """Local chat models that express emotion, under control."""


def fail(message: str, status: int) -> int:
    from .options import say

    say(f"mlx-emotion: {message}", err=True)
    return status


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 fine, 1 an error, 2 wrong usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    for name in ("stdin", "stdout", "stderr"):  # closed by whoever started this
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115  # to the end
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # bytes that are not text must not end in a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "backslashreplace")
    try:
        # Not root.main(): it would end a closed pipe with status 1.
        with root.make_context("mlx-emotion", given) as context:
            result = root.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as end:  # --help, --version
        return end.exit_code
    except MLXEmotionError as error:
        return fail(str(error), error.exit_status)
    except click.UsageError as error:
        if error.ctx and isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # a group alone
            click.echo(error.ctx.get_help())
            return 0
        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        return fail(f"{' '.join(error.format_message().split())}{where}", 2)
    except click.ClickException as error:
        return fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        if "mlx_emotion.engine" in sys.modules:
            sys.modules["mlx_emotion.engine"].shared().hurry = True
        return fail("interrupted", 130)
    except BrokenPipeError:
        # The reader has gone (`| head -1`), which is no error; keep the interpreter's own flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk behind `>`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"cannot go on: {where}{error.strerror or error}", 1)
