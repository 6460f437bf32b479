"""The whole protocol of arXiv 2502.04075 for a list of models: vectors, answers, tables, figures, one summary.

    python scripts/reproduce_paper.py mlx-community/Qwen2.5-7B-Instruct-4bit --output results
    python scripts/reproduce_paper.py MODEL MODEL --output results --judge http://localhost:8080/v1#judge \
        --classifier facebook/bart-large-mnli --perplexity-model mlx-community/Meta-Llama-3.1-8B-Instruct-4bit

Says how long it will take and how much disk it needs before it starts. Interrupted, the same command
goes on. Every model gets a folder with its pack and its report; summary.md sets the base rows of all
of them beside the paper's. A model that fails does not stop the others; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_emotion.emotions import BASE, BASIC
from mlx_emotion.errors import MLXEmotionError, ModelError, PackError
from mlx_emotion.evaluation.generate import TURN_TOKENS
from mlx_emotion.evaluation.judges import BUILTIN
from mlx_emotion.evaluation.metrics import paper_rows
from mlx_emotion.evaluation.plan import Plan, Settings
from mlx_emotion.evaluation.probes import METHOD_QUERIES
from mlx_emotion.evaluation.report import base_rows, judged_by, not_comparable
from mlx_emotion.files import atomic_write
from mlx_emotion.models import PATTERNS, embedded_path, missing_weights, read_config, sizes
from mlx_emotion.queries import shipped
from mlx_emotion.vectors import EmotionVectors, Identity, PackInfo

SCALES = (-1, 0, 1, 2, 4)
EXTRACTION_TOKENS, ANSWER_TOKENS = 128, 512
TYPICAL = 0.4
"""Share of the longest answer that answers take on average; for the estimate alone."""

BATCH = 16
JUDGE_TOKENS, JUDGE_SECONDS, CLASSIFIER_SECONDS = 32, 0.5, 0.5
"""A local judge's verdict; what an endpoint takes for one, four at a time; what a classifier takes for an answer."""

CALIBRATION_ANSWERS = 150
"""Of a pack's emotion, roughly."""

LINE = 800
"""Bytes of an answer's line and of its verdicts, without its text."""

GIB = 1 << 30


@dataclass(frozen=True)
class Size:
    """Bytes of a model's weights, and how many of them are still to be downloaded; numbers in one of its vectors."""

    weights: int
    missing: int
    vector: int


def size_of(model: str) -> Size:
    """Raises ``ModelError`` for a model that is neither here nor on the hub."""
    path = embedded_path() if model == "embedded" else Path(model).expanduser()
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache

    if not path.is_dir():
        with contextlib.suppress(Exception):  # not in the cache
            cached = Path(snapshot_download(model, allow_patterns=PATTERNS, local_files_only=True))
            path = path if missing_weights(cached) else cached
    if path.is_dir():
        return Size(sum(f.stat().st_size for f in path.glob("*.safetensors")), 0, vector_size(path))
    try:
        files = HfApi().model_info(model, files_metadata=True).siblings or []
        vector = vector_size(Path(hf_hub_download(model, "config.json")).parent)
    except Exception as error:  # the transport's own too, whose package differs between huggingface_hub versions
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"cannot find {model}: {said}") from None
    wanted = [f for f in files if any(fnmatch.fnmatch(f.rfilename, p) for p in PATTERNS)]
    missing = [f for f in wanted if not isinstance(try_to_load_from_cache(model, f.rfilename), str)]
    weights = sum(f.size or 0 for f in wanted if f.rfilename.endswith(".safetensors"))
    return Size(weights, sum(f.size or 0 for f in missing), vector)


def vector_size(path: Path) -> int:
    """Layers times width of the model in a folder."""
    layers, width = sizes(read_config(path))
    return layers * width


def plan_of(args: argparse.Namespace) -> Plan:
    """What the evaluation of any model asks, for the estimate alone. Raises ``MLXEmotionError``."""
    emotions, _ = shipped()
    scale = None if args.no_calibrate else 1.5
    info = PackInfo(Identity("", "", "", "", 1, 1), "attention", {e: {"scale": scale} for e in emotions})
    info.base_scale = scale
    pack = EmotionVectors({e: np.ones((1, 1)) for e in emotions}, info)
    parts = args.parts.split(",") if args.parts else None
    names = [BASE, *BASIC]
    settings = Settings.make(pack, emotions=names, scales=SCALES, queries=args.queries, limit=args.limit, parts=parts)
    return Plan(settings, pack)


def estimate(
    found: dict[str, Size], plan: Plan, args: argparse.Namespace, judges: dict[str, Size]
) -> tuple[float, int]:
    """(hours, bytes of disk). Each step of a batch reads the weights once: bandwidth is what bounds it.

    ``judges`` are the local models that judge, by option.
    """
    emotions, limit = len(plan.pack), args.limit
    queries = min(100, limit or 100)
    few = min(METHOD_QUERIES, 2 * (limit or METHOD_QUERIES)) if plan.methods or "geometry" in plan.settings.parts else 0
    made = 2 * emotions * queries + 2 * len(plan.settings.asked) * few * max(len(plan.methods), bool(few))
    turns = sum(t.turn is not None for t in plan.tasks)
    single = len(plan.tasks) - turns
    passes = TYPICAL * (made * EXTRACTION_TOKENS + single * args.max_tokens) / BATCH  # of all weights
    passes += TYPICAL * turns * min(args.max_tokens, TURN_TOKENS)
    if not args.no_calibrate:
        passes += emotions * CALIBRATION_ANSWERS * TYPICAL * EXTRACTION_TOKENS / BATCH
    rate = args.bandwidth * 1e9
    seconds = sum(passes * s.weights / rate for s in found.values())
    table = sum(t.condition.part in ("tables", "baselines", "statements") for t in plan.tasks)
    judging = 0.0
    if "judge" in judges:
        judging += 2 * table * JUDGE_TOKENS / BATCH * judges["judge"].weights / rate
    elif (args.judge or BUILTIN) != BUILTIN:
        judging += 2 * table * JUDGE_SECONDS
    # Reading a text takes about as long as writing a twentieth of it.
    self_judged = [s.weights for s in found.values()]
    reads = [judges["perplexity"].weights] * len(found) if "perplexity" in judges else self_judged
    seconds += sum(table * TYPICAL * args.max_tokens / 20 / 8 * w / rate for w in reads)
    for given, count in ((args.classifier, 2 * table + turns), (args.go_emotions, len(plan.tasks) - table - turns)):
        judging += count * CLASSIFIER_SECONDS if (given or BUILTIN) != BUILTIN else 0
    seconds += judging * len(found)
    text = len(plan.tasks) * (LINE + int(TYPICAL * args.max_tokens * 6 * 1.5))
    vectors = 4 * emotions * 4 + (2 * queries * emotions + few * emotions) * 2  # a copy for the report; half precision
    disk = sum(s.missing + text + vectors * s.vector for s in found.values())
    return seconds / 3600, disk + sum(s.missing for s in judges.values())


def pack_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What a pack depends on, kept beside it."""
    tokens = min(EXTRACTION_TOKENS, args.max_tokens)
    return {"limit": args.limit, "max_tokens": tokens, "calibrated": not args.no_calibrate, "seed": args.seed}


def is_made(folder: Path, args: argparse.Namespace) -> bool:
    """Whether the pack in ``folder`` is there, whole. Raises ``PackError`` for one of other settings."""
    pack, beside = folder / "pack.safetensors", folder / "pack.json"
    if not beside.is_file():
        return False  # begun, perhaps: extracting again goes on
    wanted = pack_settings(args)
    try:
        there = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        raise PackError(
            f"{beside} can't be read, so what {pack} was made with is not known; remove {beside} to make it anew"
        )
    if other := [f"{k}: there {there.get(k)}, asked {v}" for k, v in wanted.items() if there.get(k) != v]:
        raise PackError(f"{pack} is of another run ({'; '.join(other)}); give another --output, or remove {folder}")
    return pack.is_file()


def commands(model: str, folder: Path, args: argparse.Namespace) -> list[list[str]]:
    """The commands that do the work for one model. Raises ``PackError`` for a pack of other settings."""
    program = [sys.executable, "-m", "mlx_emotion"]
    pack = folder / "pack.safetensors"
    limit = [] if args.limit is None else ["--limit", str(args.limit)]
    emotions = ",".join(BASIC)
    # All emotions, which the circumplex needs.
    extract = [*program, "extract", "--model", model, "--output", str(pack), "--keep-samples", *limit]
    extract += ["--max-tokens", str(pack_settings(args)["max_tokens"]), "--batch-size", str(BATCH)]
    extract += ["--seed", str(args.seed), *(["--no-calibrate"] if args.no_calibrate else [])]
    evaluate = [*program, "evaluate", "--model", model, "--vectors", str(pack), "--output", str(folder / "evaluation")]
    evaluate += ["--emotions", f"base,{emotions}", f"--scales={','.join(map(str, SCALES))}", *limit]
    evaluate += ["--max-tokens", str(args.max_tokens), "--batch-size", str(BATCH), "--seed", str(args.seed)]
    for option in ("judge", "classifier", "go_emotions", "perplexity_model", "queries", "parts"):
        if value := getattr(args, option):
            evaluate += [f"--{option.replace('_', '-')}", value]
    return [evaluate] if is_made(folder, args) else [extract, evaluate]


stopping = threading.Event()
"""Set when this script was told to stop: whatever the command under way makes of it, no other begins."""


def work(command: list[str]) -> int:
    """The exit status of ``command``, which is told of Ctrl-C and then stops at a safe place."""
    # A process of its own, so that its memory is free for the next; a session of its own, so that it is told once.
    child = subprocess.Popen(command, start_new_session=True)

    def tell(number: int, _: object) -> None:
        stopping.set()
        child.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    told = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        told.append(signal.SIGHUP)
    old = {s: signal.signal(s, tell) for s in told}
    try:
        return child.wait()
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def reproduce(model: str, folder: Path, args: argparse.Namespace) -> int:
    """The exit status of the first command for ``model`` that fails, or 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for command in commands(model, folder, args):
        print(f"\n{model}: {command[3]}", flush=True)
        status = work(command)
        if not status and command[3] == "extract":
            with atomic_write(folder / "pack.json") as fresh:
                fresh.write_text(json.dumps(pack_settings(args)) + "\n", encoding="utf-8")
        if status or stopping.is_set():
            return 130 if stopping.is_set() else status
    return 0


def agreed() -> bool:
    """Whether the user wants to go on; nobody can say so without a terminal."""
    if not sys.stdin.isatty():
        print("reproduce_paper: no terminal to ask on; give --yes", file=sys.stderr)
        return False
    try:
        return input("go on? [y/N] ").strip().lower() == "y"
    except (EOFError, KeyboardInterrupt):
        print()
        return False


def summary(folders: dict[str, Path]) -> str:
    """The base rows of all models, each above the paper's for the same scale; then who judged."""
    metrics = ("perplexity", "adherence", "eps", "eas")
    lines = ["| model | scale | perplexity | topic adherence % | EPS % | EAS | distinct-2 < 0.3 % |", "|" + "---|" * 7]
    judges = []
    for model, folder in folders.items():
        scores = json.loads((folder / "evaluation" / "scores.json").read_text(encoding="utf-8"))
        judges.append(f"{model}: {judged_by(scores, metrics) or 'nothing'}.")
        if paper_rows(scores["model"]["id"])[0] and (reason := not_comparable(scores, metrics)):
            judges.append(f"**Not to be held against the paper's rows**: {reason}.")
        for theirs, scale, cells in base_rows(scores, (*metrics, "low_distinct")):
            name = f"*paper: {theirs}*" if theirs else model
            lines.append(f"| {name} | {scale:g} | " + " | ".join(cells) + " |")
    judged = "\n\n".join(["Judged, but for the paper's rows, which have its own judges:", *judges])
    return "\n".join(["# Base vector, by model", "", *lines, "", judged, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", help="folders or Hugging Face ids")
    parser.add_argument("--output", type=Path, required=True, help="a folder for everything")
    parser.add_argument("--limit", type=int, help="at most this many queries of a group, for a trial")
    parser.add_argument("--max-tokens", type=int, default=ANSWER_TOKENS, help="longest answer (the paper's 512)")
    parser.add_argument("--queries", help="the questions to answer, such as the released EQ+ file")
    parser.add_argument("--parts", help="of the evaluation, such as tables,geometry; all by default")
    parser.add_argument("--judge")
    parser.add_argument("--classifier")
    parser.add_argument("--go-emotions")
    parser.add_argument("--perplexity-model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bandwidth", type=float, default=100, help="of the memory, in GB/s, for the estimate of time")
    parser.add_argument("--no-calibrate", action="store_true", help="leave intensity 1.0 at once the vector")
    parser.add_argument("--yes", action="store_true", help="start without asking")
    parser.add_argument("--dry-run", action="store_true", help="estimate, and print the commands")
    args = parser.parse_args()
    folders = {m: args.output / m.strip("/").replace("/", "--") for m in args.models}
    local = {"judge": args.judge, "perplexity": args.perplexity_model}
    local = {k: m for k, m in local.items() if m and m not in (BUILTIN, "self") and "://" not in m}
    try:
        found = {m: size_of(m) for m in args.models}
        plan = plan_of(args)
        hours, disk = estimate(found, plan, args, {option: size_of(m) for option, m in local.items()})
        todo = {m: commands(m, folder, args) for m, folder in folders.items()}
    except MLXEmotionError as error:
        print(f"reproduce_paper: {error}", file=sys.stderr)
        return error.exit_status
    place = args.output.absolute()
    free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.is_dir())).free
    print(
        f"{len(found)} models, {len(plan.tasks)} answers each; about {hours:.1f} hours at {args.bandwidth:g} GB/s; "
        f"{disk / GIB:.1f} GiB of disk, {free / GIB:.1f} GiB free"
    )
    if args.dry_run:
        for model in folders:
            print("\n".join(" ".join(c) for c in todo[model]))
        return 0
    if disk > free:
        print("reproduce_paper: not enough disk; free some, or give fewer models", file=sys.stderr)
        return 1
    if not args.yes and not agreed():
        return 130 if sys.stdin.isatty() else 2
    done: dict[str, Path] = {}
    failed: list[str] = []
    status = 0
    for model, folder in folders.items():
        status = reproduce(model, folder, args)
        if status == 0:
            done[model] = folder
        elif status == 130:
            break
        else:
            failed.append(f"{model} (status {status})")
    if done:
        with atomic_write(args.output / "summary.md") as fresh:
            fresh.write_text(summary(done), encoding="utf-8")
        print(args.output / "summary.md")
    if status == 130:
        print("reproduce_paper: stopped; the same command goes on", file=sys.stderr)
        return 130
    if failed:
        print(f"reproduce_paper: failed: {', '.join(failed)}; the others are in summary.md", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # between two commands
        sys.exit(130)
    except (OSError, MLXEmotionError) as error:
        sys.exit(f"reproduce_paper: {error}; what is done is kept, and the same command goes on")
