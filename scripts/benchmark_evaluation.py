"""Tokens a second of evaluation's own generation, against plain mlx-lm batching of the same prompts.

    python scripts/benchmark_evaluation.py [--model M] [--rounds 5] [--max-tokens 32]

What is measured is the stage itself: over two chunks of answers, sixteen at once and every row under another
feeling, each chunk written to the disk. In turns with mlx-lm; prints the median of the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import mlx_emotion
from mlx_emotion.emotions import BASIC
from mlx_emotion.evaluation.generate import Run, generate
from mlx_emotion.evaluation.plan import Plan, Settings
from mlx_emotion.session import Voice

BATCH = 16
QUESTIONS = 3
"""Of each of the six groups: with sixteen conditions more than two chunks."""


def measure(voice: Voice, rounds: int, most: int) -> list[float]:
    """The ratio of each round, ours over theirs."""
    import mlx.core as mx
    from mlx_lm import batch_generate
    from mlx_lm.sample_utils import make_sampler

    assert voice.vectors is not None, "this model has no pack"
    template, pack = voice.loaded.template, voice.vectors
    settings = Settings.make(
        pack, emotions=[e for e in BASIC if e in pack], intensities=[0, 0.5, 1, 1.5], limit=QUESTIONS,
        parts=["tables"], max_tokens=most, batch_size=BATCH,
    )  # fmt: skip
    plan = Plan(settings, pack)
    assert len(plan.chunks) >= 2, "too few emotions for two chunks"
    prompts = [template.encode(template.render([{"role": "user", "content": t.text}])) for t in plan.tasks]
    sampler = make_sampler(settings.temperature, settings.top_p)

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            tokens = generate(voice, plan, Run(folder), {"mean": pack})
            return tokens / (time.perf_counter() - began)

    def theirs() -> float:
        mx.random.seed(0)
        voice.taps.remove()
        try:
            began = time.perf_counter()
            found = batch_generate(
                voice.loaded.model, voice.loaded.tokenizer, prompts, max_tokens=most, return_token_ids=True,
                completion_batch_size=BATCH, prefill_batch_size=8, sampler=sampler,
            )  # fmt: skip
            return sum(map(len, found.token_ids or [])) / (time.perf_counter() - began)
        finally:
            voice.taps.attach()

    ours(), theirs()  # to warm up
    ratios: list[float] = []
    for n in range(rounds):
        # In turns, and the order changes: whatever else the machine does meets both.
        a, b = (ours(), theirs()) if n % 2 else reversed((theirs(), ours()))
        ratios.append(a / b)
        print(f"{a:8.1f} tokens/s steered  {b:8.1f} plain  {a / b:.3f}", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=32)
    args = parser.parse_args()
    ratios = mlx_emotion.load(args.model).run(measure, args.rounds, args.max_tokens)
    print(f"median ratio {statistics.median(ratios):.3f} (wanted: at least 0.9)")


if __name__ == "__main__":
    main()
