"""The stages of an evaluation, one after another or each alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EvaluationError
from .generate import Report, Run, Stopped, Warn, generate, never, quiet, silent
from .judges import first_line, need_extra
from .plan import Plan, Settings, check_plan
from .probes import other_vectors, probe_logits, read_questions
from .score import Judging, read_scores
from .score import score as score_answers

if TYPE_CHECKING:
    from ..model import Model
    from ..session import Voice

STAGES = ("generate", "score", "report")


def plan_for(model: Model, **settings: Any) -> Plan:
    """The plan of an evaluation of ``model``; ``settings`` are those of ``Settings.make``.

    Raises ``EvaluationError`` for a model without a pack, ``UsageError`` for what is wrong with a setting.
    """
    pack = model.vectors
    if pack is None:
        raise EvaluationError(
            f"no pack for {model.id}, so there is nothing to evaluate; make one with "
            f"`{model.run(lambda voice: voice.extraction)}`"
        )
    plan = Plan(Settings.make(pack, **settings), pack)
    check_plan(plan)
    return plan


def make_answers(
    model: Model,
    name: str,
    plan: Plan,
    run: Run,
    restart: bool = False,
    progress: Report = quiet,
    stopped: Stopped = never,
    adapter: str | None = None,
    warn: Warn = silent,
) -> None:
    """Stage ``generate``: everything that needs the model. Does what an earlier, unfinished run left undone.

    ``name`` and ``adapter`` are how ``model`` was loaded; ``warn`` is told what may be wrong.
    """

    def work(voice: Voice) -> None:
        packs = other_vectors(voice, plan, run, progress, stopped)
        if "probes" in plan.settings.parts and not run.probes.is_file():
            probe_logits(voice, plan, run, progress, stopped)
        if "readout" in plan.settings.parts and not run.readouts.is_file():
            read_questions(voice, plan, run, progress, stopped)
        generate(voice, plan, run, packs, progress, stopped)

    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"cannot use {run.folder}: {error.strerror or error}") from None
    with run.alone():
        run.begin(name, model.identity, model.quantization, plan, restart, adapter, warn)
        model.run(work)


def score(run: Run, judging: Judging, progress: Report = quiet, stopped: Stopped = never) -> dict[str, Any]:
    """Stage ``score``: judge the answers and write ``scores.json`` and ``scores.csv``. Raises ``EvaluationError``."""
    with run.alone(), _whole(run):
        return score_answers(run, judging, progress, stopped)


@contextlib.contextmanager
def _whole(run: Run) -> Iterator[None]:
    """One line instead of a traceback for files that were damaged, or are of another version."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise EvaluationError(
            f"the files in {run.folder} are damaged or of another version ({what}); the answers are kept, "
            "run the stage before again, or --restart"
        ) from error


def make_report(run: Run) -> list[Path]:
    """Stage ``report``: figures, ``report.md`` and ``report.html``; returns what was written.

    Raises ``EvaluationError``.
    """
    need_figures()
    from .figures import draw
    from .report import write

    with run.alone(), _whole(run):
        scores = read_scores(run)
        pictures = draw(run, scores, geometry(run))
        return [*write(run, scores, pictures), *(p for paths in pictures.values() for p in paths)]


def need_figures() -> None:
    """Raises ``EvaluationError`` where what draws the figures is not installed."""
    for module in ("matplotlib", "sklearn"):
        need_extra(module, "the report")


def geometry(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """Vectors ``[L, d]`` by emotion and per-query shifts ``[N, L, d]`` by emotion, as far as there are any."""
    from ..vectors import EmotionVectors

    found: dict[str, dict[str, np.ndarray]] = {"vectors": {}, "samples": {}}
    if "geometry" not in run.read()["settings"]["parts"]:
        return found
    for path in (run.vectors("mean"), run.vectors("pca")):
        if path.is_file():
            pack = EmotionVectors.load(path, samples=True)
            found["vectors"] = found["vectors"] or dict(pack)
            found["samples"] = found["samples"] or {e: np.asarray(v, np.float32) for e, v in pack.samples.items()}
    return found


__all__ = ["STAGES", "Judging", "Run", "make_answers", "make_report", "need_figures", "plan_for", "score"]
