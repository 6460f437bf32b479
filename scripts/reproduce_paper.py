"""The whole protocol of arXiv 2502.04075 for a list of models: vectors, answers, tables, figures, one summary.

    python scripts/reproduce_paper.py mlx-community/Qwen2.5-7B-Instruct-4bit --output results
    python scripts/reproduce_paper.py MODEL MODEL --output results --judge http://localhost:8080/v1#judge \
        --classifier facebook/bart-large-mnli --perplexity-model mlx-community/Meta-Llama-3.1-8B-Instruct-4bit

Says how long it will take and how much disk it needs before it starts. Interrupted, the same command
goes on. Every model gets a folder with its pack and its report; summary.md sets the base rows of all
of them beside the paper's.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mlx_emotion.emotions import BASIC
from mlx_emotion.errors import MLXEmotionError, ModelError
from mlx_emotion.evaluation.metrics import PAPER_TABLES, paper_rows
from mlx_emotion.evaluation.plan import METHODS
from mlx_emotion.evaluation.report import NONE, interval, judged_by, not_comparable, number
from mlx_emotion.models import PATTERNS, embedded_path, missing_weights

SCALES = (-1, 0, 1, 2, 4)
QUERIES, QUESTIONS = 100, 400
"""Extraction queries an emotion, and questions of the evaluation, as in the paper."""

EXTRACTION_TOKENS, ANSWER_TOKENS = 128, 512
TYPICAL = 0.4
"""Share of the longest answer that answers take on average; for the estimate alone."""

BATCH = 16
GIB = 1 << 30


@dataclass(frozen=True)
class Size:
    """Bytes of a model's weights, and how many of them are still to be downloaded."""

    weights: int
    missing: int


def size_of(model: str) -> Size:
    """Raises ``ModelError`` for a model that is neither here nor on the hub."""
    path = embedded_path() if model == "embedded" else Path(model).expanduser()
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    if not path.is_dir():
        with contextlib.suppress(Exception):  # not in the cache
            cached = Path(snapshot_download(model, allow_patterns=PATTERNS, local_files_only=True))
            path = path if missing_weights(cached) else cached
    if path.is_dir():
        return Size(sum(f.stat().st_size for f in path.glob("*.safetensors")), 0)
    try:
        files = HfApi().model_info(model, files_metadata=True).siblings or []
    except Exception as error:  # the transport's own too, whose package differs between huggingface_hub versions
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"cannot find {model}: {said}") from None
    wanted = [f for f in files if any(fnmatch.fnmatch(f.rfilename, p) for p in PATTERNS)]
    missing = [f for f in wanted if not isinstance(try_to_load_from_cache(model, f.rfilename), str)]
    weights = sum(f.size or 0 for f in wanted if f.rfilename.endswith(".safetensors"))
    return Size(weights, sum(f.size or 0 for f in missing))


def answers(limit: int | None) -> tuple[int, int]:
    """(answers of all extractions, answers of the evaluation), roughly."""
    extraction = 2 * len(BASIC) * min(QUERIES, limit or QUERIES)
    questions = min(QUESTIONS, 6 * limit) if limit else QUESTIONS
    tables = 1 + (len(BASIC) + 1) * (len(SCALES) - 1)
    baselines = len(BASIC) * (1 + len(METHODS))
    statements = len(BASIC) * 3 + len(BASIC)
    return extraction, questions * (tables + baselines + statements)


def estimate(sizes: dict[str, Size], limit: int | None, max_tokens: int, bandwidth: float) -> tuple[float, int]:
    """(hours, bytes of disk). Each step of a batch reads the weights once: bandwidth is what bounds it."""
    extraction, evaluation = answers(limit)
    tokens = TYPICAL * (extraction * EXTRACTION_TOKENS + evaluation * max_tokens)
    hours = sum(tokens / BATCH * s.weights / (bandwidth * 1e9) for s in sizes.values()) / 3600
    disk = sum(s.missing for s in sizes.values()) + len(sizes) * int(evaluation * TYPICAL * max_tokens * 6 * 1.5)
    return hours, disk


def commands(model: str, folder: Path, args: argparse.Namespace) -> list[list[str]]:
    """The two commands that do the work for one model."""
    program = [sys.executable, "-m", "mlx_emotion"]
    pack = folder / "pack.safetensors"
    limit = [] if args.limit is None else ["--limit", str(args.limit)]
    emotions = ",".join(BASIC)
    extract = [*program, "extract", "--model", model, "--emotions", emotions, "--output", str(pack), "--no-calibrate"]
    extract += [
        "--keep-samples",
        "--max-tokens",
        str(min(EXTRACTION_TOKENS, args.max_tokens)),
        "--batch-size",
        str(BATCH),
        *limit,
    ]
    evaluate = [*program, "evaluate", "--model", model, "--vectors", str(pack), "--output", str(folder / "evaluation")]
    evaluate += ["--emotions", f"base,{emotions}", f"--scales={','.join(map(str, SCALES))}", *limit]
    evaluate += ["--max-tokens", str(args.max_tokens), "--batch-size", str(BATCH), "--seed", str(args.seed)]
    for option in ("judge", "classifier", "go_emotions", "perplexity_model", "queries", "parts"):
        if value := getattr(args, option):
            evaluate += [f"--{option.replace('_', '-')}", value]
    return [evaluate] if pack.is_file() else [extract, evaluate]


def summary(folders: dict[str, Path]) -> str:
    """The base rows of all models, each above the paper's for the same scale; then who judged."""
    columns = (
        ("perplexity", "perplexity_base", 2, 1), ("adherence", "topic_adherence_base", 1, 100),
        ("eps", "emotion_probability_base", 1, 100), ("eas", "emotion_absolute_base", 3, 1),
    )  # fmt: skip
    lines = ["| model | scale | perplexity | topic adherence % | EPS % | EAS | distinct-2 < 0.3 % |", "|" + "---|" * 7]
    judges = []
    for model, folder in folders.items():
        scores = json.loads((folder / "evaluation" / "scores.json").read_text(encoding="utf-8"))
        theirs, _ = paper_rows(scores["model"]["id"])
        metrics = [m for m, *_ in columns]
        judges.append(f"{model}: {judged_by(scores, metrics) or 'nothing'}.")
        if theirs and (reason := not_comparable(scores, metrics)):
            judges.append(f"**Not to be held against the paper's rows**: {reason}.")
        for condition in scores["conditions"]:
            scale = {"plain": 0.0}.get(condition["id"], condition["dose"])
            if condition["id"] != "plain" and not condition["id"].startswith("steering:base@"):
                continue
            means = condition["metrics"]
            cells = [interval(means.get(m), digits, factor == 100) for m, _, digits, factor in columns]
            cells.append(interval(means.get("low_distinct"), percent=True))
            lines.append(f"| {model} | {scale:g} | " + " | ".join(cells) + " |")
            if theirs and f"{scale:g}" in PAPER_TABLES["perplexity_base"][theirs]:
                cells = [number(factor * PAPER_TABLES[t][theirs][f"{scale:g}"], d) for _, t, d, factor in columns]
                lines.append(f"| *paper: {theirs}* | {scale:g} | " + " | ".join([*cells, NONE]) + " |")
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
    parser.add_argument("--yes", action="store_true", help="start without asking")
    parser.add_argument("--dry-run", action="store_true", help="estimate, and print the commands")
    args = parser.parse_args()
    try:
        sizes = {m: size_of(m) for m in args.models}
    except MLXEmotionError as error:
        print(f"reproduce_paper: {error}", file=sys.stderr)
        return error.exit_status
    hours, disk = estimate(sizes, args.limit, args.max_tokens, args.bandwidth)
    place = args.output.absolute()
    free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.is_dir())).free
    print(
        f"{len(sizes)} models; about {hours:.1f} hours at {args.bandwidth:g} GB/s, judging not counted; "
        f"{disk / GIB:.1f} GiB of disk, {free / GIB:.1f} GiB free"
    )
    folders = {m: args.output / m.strip("/").replace("/", "--") for m in args.models}
    if args.dry_run:
        for model, folder in folders.items():
            print("\n".join(" ".join(c) for c in commands(model, folder, args)))
        return 0
    if disk > free:
        print("reproduce_paper: not enough disk; free some, or give fewer models", file=sys.stderr)
        return 1
    if not args.yes and input("go on? [y/N] ").strip().lower() != "y":
        return 130
    for model, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        for command in commands(model, folder, args):
            print(f"\n{model}: {command[3]}", flush=True)
            # A process of its own, so that its memory is free for the next.
            if status := subprocess.run(command).returncode:
                return status
    (args.output / "summary.md").write_text(summary(folders), encoding="utf-8")
    print(args.output / "summary.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
