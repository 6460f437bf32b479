"""How well the embedded model feels, stays on its topic, ends and varies: the numbers of `docs/results.md`.

    python scripts/evaluate_embedded_model.py --json docs/results/embedded-attention.json

Asks questions whose wordings are not in the training text (the topic files' ``held out`` sections),
at temperature 0.7, for each emotion and intensity, judges with the built-in lexicon, and prints tables.
The lexicon was written without sight of the corpus; afterwards the corpus's answers were made clearer
where the lexicon found nothing in them, so it is not a judge that never met the text. The second was
written after the corpus, without sight of it or of the first; then a third of its words were cut,
everyday ones for the most part, with which it found twice as many neutral replies emotional.
A reply is on topic if one of its topic's keywords is in it.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from corpus import Topic, expand, mentions
from corpus import load as load_corpus

import mlx_emotion
from mlx_emotion.batch import Finished, Job, run_batch
from mlx_emotion.emotions import Feeling
from mlx_emotion.errors import MLXEmotionError
from mlx_emotion.evaluation.lexicon import Lexicon, score, top
from mlx_emotion.files import atomic_write, check_writable
from mlx_emotion.guard import distinct_2
from mlx_emotion.models import EMBEDDED
from mlx_emotion.options import Options
from mlx_emotion.session import Voice
from mlx_emotion.vectors import shipped_packs

TEMPERATURE, TOP_P, MAX_TOKENS = 0.7, Options.top_p, 120
MIXES = ("anger:0.7,sadness:0.7", "fear:0.7,surprise:0.7", "joy:0.7,surprise:0.7", "sadness:0.7,tiredness:0.7",
         "calm:0.7,joy:0.7", "anger:0.7,disgust:0.7")  # fmt: skip

SECOND = Path(__file__).parent / "second_lexicon.json"

Reply = tuple[Topic, str, Finished]


def ask(model: mlx_emotion.Model, questions: list[tuple[Topic, str]], feeling: str, seed: int) -> list[Reply]:
    """One reply to every question, in batches of 32, in the order of the questions."""

    def work(voice: Voice) -> list[Reply]:
        import mlx.core as mx

        mx.random.seed(seed)
        template = voice.loaded.template
        dose = voice.dose(voice.scales(Feeling.of(feeling, voice.known), None))
        jobs = (
            Job(n, template.encode(template.render([{"role": "user", "content": text}])), dose)
            for n, (_, text) in enumerate(questions)
        )
        options: dict[str, Any] = {"temperature": TEMPERATURE, "top_p": TOP_P}
        done = [
            d
            for d in run_batch(voice, jobs, batch_size=32, max_tokens=MAX_TOKENS, **options)
            if isinstance(d, Finished)
        ]
        return [(*questions[d.key], d) for d in sorted(done, key=lambda d: d.key)]

    return model.run(work)


def measure(replies: list[Reply], emotion: str | None, second: Lexicon) -> dict[str, float]:
    """Shares over ``replies``; ``emotion`` is the one asked for, if any."""
    tops, seconds = ([judge(d.text) for _, _, d in replies] for judge in (top, second.top))
    n = len(replies)
    found = {
        "replies": n,
        "emotional": sum(t is not None for t in tops) / n,
        "emotional_second": sum(t is not None for t in seconds) / n,
        "on_topic": sum(mentions(d.text, t.keywords) for t, _, d in replies) / n,
        "ended": sum(d.reason == "stop" for _, _, d in replies) / n,
        "distinct_2_below_0.3": sum(distinct_2(d.tokens) < 0.3 for _, _, d in replies) / n,
        "mean_tokens": statistics.mean(len(d.tokens) for _, _, d in replies),
    }
    if emotion:
        found["target"] = sum(t == emotion for t in tops) / n
        found["target_second"] = sum(t == emotion for t in seconds) / n
        found["target_score"] = statistics.mean(score(d.text)[emotion] for _, _, d in replies)
    return found


def repeated(replies: list[Reply], corpus: set[str]) -> float:
    """Share of replies that are a corpus answer, word for word, and the same for more than three questions."""
    texts = collections.Counter(d.text for _, _, d in replies)
    return sum(c for text, c in texts.items() if c > 3 and text in corpus) / len(replies)


def tables(results: dict[str, Any]) -> str:
    """The results as two Markdown tables: feelings, and mixes."""
    lines = [
        "| feeling | asked emotion on top (second lexicon) | any emotion (second) | on topic | ended by itself "
        f"in {MAX_TOKENS} tokens | distinct-2 below 0.3 | repeated corpus answers |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        if "both_above_neutral" not in r:
            asked = f"{r['target']:.0%} ({r['target_second']:.0%})" if "target" in r else "–"
            lines.append(
                f"| {name} | {asked} | {r['emotional']:.0%} ({r['emotional_second']:.0%}) | {r['on_topic']:.0%} "
                f"| {r['ended']:.1%} | {r['distinct_2_below_0.3']:.0%} | {r['repeated']:.0%} |"
            )
    lines += ["", "| mix | both above their neutral level | on topic | ended |", "|---|---|---|---|"]
    for name, r in results.items():
        if "both_above_neutral" in r:
            lines.append(f"| {name[4:]} | {r['both_above_neutral']:.0%} | {r['on_topic']:.0%} | {r['ended']:.0%} |")
    return "\n".join(lines)


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--answers", type=Path, help="also write every reply here, as JSON lines")
    parser.add_argument("--site", default="attention")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--vectors", help="default: for the embedded model the pack that ships with it")
    parser.add_argument("--second", type=Path, default=SECOND, help="the second judge's lexicon")
    parser.add_argument("--questions", type=positive, default=100)
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--emotions", nargs="*")
    parser.add_argument("--intensities", nargs="*", type=float, default=[0.5, 1.0, 1.5])
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> None:
    vectors = args.vectors
    if not vectors and args.model == EMBEDDED:
        vectors = shipped_packs() / f"embedded-{args.site}.safetensors"
    try:
        second = Lexicon(json.loads(args.second.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        sys.exit(f"{args.second} is not a lexicon: {error}")
    for path in filter(None, (args.json, args.answers)):
        check_writable(path)
    model = mlx_emotion.load(args.model, vectors=vectors, site=args.site)
    if model.vectors is None:
        sys.exit(f"no pack for {model.id} on this machine; name one with --vectors")
    for feeling in args.emotions or MIXES:
        model.feeling(feeling)
    trained = json.loads((model.path / "training.json").read_text())["topics"]
    topics = [t for t in load_corpus() if t.name in trained]
    corpus = {r for t in topics for s, lines in t.sections.items() for ln in lines for r in expand(ln.text)}
    asked = [(t, t.sections["held out"][n].text) for n in (0, 1) for t in topics if not t.general]
    questions = asked[: args.questions]
    seeds = range(args.seeds)
    log = args.answers.open("w") if args.answers else None
    results: dict[str, Any] = {}

    def run(name: str, feeling: str, emotion: str | None) -> list[Reply]:
        by_seed = [ask(model, questions, feeling, seed) for seed in seeds]
        replies = [r for one in by_seed for r in one]
        results[name] = measure(replies, emotion, second)
        results[name]["repeated"] = max(repeated(one, corpus) for one in by_seed)
        if log:
            for t, q, d in replies:
                log.write(json.dumps({"feeling": feeling, "topic": t.name, "question": q, "text": d.text}) + "\n")
        print(f"{name:28}", *(f"{k} {v:.3g}" for k, v in results[name].items()), file=sys.stderr, flush=True)
        return replies

    written = [expand(line.text)[0] for t in topics for line in t.sections["plain"]]
    false = sum(second.top(text) is not None for text in written) / len(written)
    print(f"the second lexicon finds one in {false:.1%} of {len(written)} plain answers as written", file=sys.stderr)
    neutral = run("neutral", "neutral", None)
    level = {e: statistics.mean(score(d.text)[e] for _, _, d in neutral) for e in model.emotions}
    results["neutral"]["level"] = level
    for emotion in args.emotions or model.emotions:
        for intensity in args.intensities:
            replies = run(f"{emotion} {intensity:g}", f"{emotion}:{intensity:g}", emotion)
            if intensity == max(args.intensities):
                # The batch has no guard: those that loop are asked again in a conversation, which has.
                looped = [(q, n) for n, (_, q, d) in enumerate(replies) if distinct_2(d.tokens) < 0.3]
                guarded = 0
                for question, n in looped:
                    options = {"temperature": TEMPERATURE, "top_p": TOP_P, "max_tokens": MAX_TOKENS}
                    text = model.generate(question, f"{emotion}:{intensity:g}", seed=n, **options).text
                    guarded += distinct_2(model.run(lambda voice, t=text: voice.loaded.template.encode(t))) < 0.3
                results[f"{emotion} {intensity:g}"]["guarded_below_0.3"] = guarded
    if not args.emotions:
        for mix in MIXES:
            replies = run(f"mix {mix}", mix, None)
            names = [n for n, _ in Feeling.of(mix).weights]
            both = [all(score(d.text)[n] > level[n] for n in names) for _, _, d in replies]
            results[f"mix {mix}"]["both_above_neutral"] = sum(both) / len(both)
            results[f"mix {mix}"]["means_above_neutral"] = [
                statistics.mean(score(d.text)[n] for _, _, d in replies) - level[n] for n in names
            ]
    print(tables(results))
    if args.json:
        with atomic_write(args.json) as fresh:
            fresh.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    try:
        evaluate(arguments())
    except (OSError, ValueError, MLXEmotionError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
