"""``mlx-emotion evaluate``."""

from __future__ import annotations

import functools
from typing import Any

import click
from click.core import ParameterSource

from ..errors import UsageError
from .options import load, loading_options, say, think_option
from .progress import progress_bar, stop_on_interrupt


def _names(_: Any, option: Any, value: str | None) -> list[str] | None:
    if value is None:
        return None
    found = [v.strip() for v in value.split(",") if v.strip()]
    if not found:
        raise UsageError(f"--{option.name.replace('_', '-')} is empty")
    return found


def _numbers(_: Any, option: Any, value: str | None) -> list[float] | None:
    try:
        return None if value is None else [float(v) for v in value.split(",")]
    except ValueError:
        raise UsageError(f"--{option.name} is {value!r}, wanted numbers such as 0,1,2,4") from None


# What answers depend on: option -> setting.
_SAME = (
    "emotions", "scales", "intensities", "queries", "limit", "parts", "top_p", "max_tokens", "batch_size", "seed",
    "think",
)  # fmt: skip
JUDGING = ("judge", "classifier", "go_emotions", "labels", "perplexity_model", "metrics", "ask_again")
SETTINGS = {"temp": "temperature", **{name: name for name in _SAME}}


@click.command(name="evaluate")
@loading_options
@click.option("--output", "-o", required=True, metavar="DIR", help="Where everything goes; a run of its own each.")
@click.option("--stage", type=click.Choice(["generate", "score", "report"]), help="This step alone. Default: all.")
@click.option("--emotions", callback=_names, metavar="A,B|base", help="Which. Default: base and the basic five.")
@click.option("--scales", callback=_numbers, metavar="0,1,2,4", help="Doses as raw multipliers, as in the paper.")
@click.option("--intensities", callback=_numbers, metavar="0,0.5,1,1.5", help="Doses by calibration. The default.")
@click.option("--queries", metavar="FILE", help="emotion -> questions, or a list like EQ+. Default: the shipped set.")
@click.option("--limit", type=int, metavar="N", help="At most N queries of each group.")
@click.option("--parts", callback=_names, metavar="A,B", help="Experiments: tables, baselines, statements, "
              "circumplex, fading, probes, geometry, readout. Default: all.")  # fmt: skip
@click.option("--metrics", callback=_names, metavar="A,B", help="perplexity, adherence, eps, eas, classifier. "
              "Default: all.")  # fmt: skip
@click.option(
    "--judge",
    default="builtin",
    show_default=True,
    metavar="J",
    help="Topic and emotion scores: builtin, a local model, or URL#MODEL of an OpenAI-compatible endpoint.",
)
@click.option(
    "--classifier",
    default="builtin",
    show_default=True,
    metavar="C",
    help="builtin, or an NLI model such as facebook/bart-large-mnli.",
)
@click.option(
    "--go-emotions",
    default="builtin",
    show_default=True,
    metavar="C",
    help="builtin, or a classifier with GoEmotions labels.",
)
@click.option("--labels", metavar="FILE", help="Another table of labels and their directions on the circumplex.")
@click.option("--perplexity-model", default="self", show_default=True, metavar="M", help="The model that judges text.")
@click.option("--temp", type=float, default=0.6, show_default=True, metavar="T", help="Sampling temperature.")
@click.option("--top-p", type=float, default=0.9, show_default=True, metavar="P", help="Nucleus sampling.")
@click.option("--max-tokens", type=int, default=128, show_default=True, metavar="N", help="Longest answer.")
@think_option("off")
@click.option("--batch-size", type=int, default=16, show_default=True, metavar="B", help="Answers made at once.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="Of sampling and of intervals.")
@click.option("--ask-again", is_flag=True, help="Ask for the verdicts that an earlier scoring did not get.")
@click.option("--restart", is_flag=True, help="Forget what DIR holds of an earlier run.")
@click.pass_context
def command(context: click.Context, **given: Any) -> None:
    """Measure a model: the papers' tables and figures, as DIR/report.html.

    Answers are generated, scored and reported; interrupted, the same command goes on where it was.
    """
    from ..evaluation.run import Judging, Run, make_answers, make_report, need_figures, plan_for, score
    from ..models import default_model

    run, stage = Run(given["output"]), given["stage"]
    if run.folder.exists() and not run.folder.is_dir():
        raise UsageError(f"{run.folder} is a file; --output is the folder for the results")
    said = {k: v for k, v in given.items() if context.get_parameter_source(k) is not ParameterSource.DEFAULT}
    idle = [k for k in JUDGING if k in said]
    if idle and stage in ("generate", "report"):
        why = "a report is of what was scored before" if stage == "report" else "answers are made without it"
        raise UsageError(f"--{idle[0].replace('_', '-')} is for --stage score; {why}")
    if stage in ("score", "report"):
        if given["restart"]:
            raise UsageError(f"--restart makes all answers anew, which --stage {stage} does not")
        settings = {SETTINGS[k]: v for k, v in said.items() if k in SETTINGS}
        if run.file.exists():  # else the stage says what is missing
            run.check_given(settings, *(said.get(k) for k in ("model", "adapter", "vectors", "site")))
    judging = Judging(
        given["judge"],
        given["classifier"],
        given["go_emotions"],
        given["perplexity_model"],
        given["labels"],
        trust_remote_code=given["trust_remote_code"],
        ask_again=given["ask_again"],
        **({"metrics": tuple(given["metrics"])} if given["metrics"] else {}),
    )
    if stage in (None, "score"):
        judging.check()
    if stage in (None, "report"):
        need_figures()  # before hours of work, not after
    if stage in (None, "generate"):
        model = load(given)
        plan = plan_for(
            model,
            **{setting: given[option] for option, setting in SETTINGS.items()},
        )
        if given["intensities"] and plan.settings.unit == "scale":
            click.echo("the pack is not calibrated: intensity 1.0 is once the vector, and is called scale 1", err=True)
        click.echo(f"{len(plan.tasks)} answers to make in {run.folder}", err=True)
        with stop_on_interrupt() as stop, progress_bar("generating") as update:
            name, adapter = given["model"] or default_model(), given["adapter"]
            warn = functools.partial(say, err=True)
            make_answers(model, name, plan, run, given["restart"], update, stop.is_set, adapter, warn)
        model.close()
        del model, plan  # its memory is the judges' now
    if stage in (None, "score"):
        with stop_on_interrupt() as stop, progress_bar("scoring") as update:
            score(run, judging, update, stop.is_set)
    if stage in (None, "report"):
        for path in make_report(run)[:2]:
            click.echo(str(path))
