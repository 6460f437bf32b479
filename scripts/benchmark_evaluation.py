"""Tokens a second of evaluation's generation, every row under another feeling, against plain mlx-lm batching.

    python scripts/benchmark_evaluation.py [--model M] [--rounds 5]

Same prompts, same sampler, batch 16, one after the other in turns; prints the median of the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time

import mlx_emotion
from mlx_emotion.batch import Finished, Job, run_batch
from mlx_emotion.queries import shipped
from mlx_emotion.session import Voice

BATCH, PROMPTS, TOKENS = 16, 64, 32


def measure(voice: Voice, rounds: int) -> list[float]:
    """The ratio of each round, ours over theirs."""
    import mlx.core as mx
    from mlx_lm import batch_generate
    from mlx_lm.sample_utils import make_sampler

    assert voice.vectors is not None, "this model has no pack"
    template, pack = voice.loaded.template, voice.vectors
    questions = [q for group in shipped("evaluation")[0].values() for q in group][:: 550 // PROMPTS][:PROMPTS]
    prompts = [template.encode(template.render([{"role": "user", "content": q}])) for q in questions]
    doses = [
        voice.taps.dose(d) for e in pack for s in (0.5, 1.0) if (d := pack.mix({e: s * pack.scale(e)})) is not None
    ]
    sampler = make_sampler(0.6, 0.9)

    def ours() -> float:
        mx.random.seed(0)
        jobs = (Job(i, p, doses[i % len(doses)]) for i, p in enumerate(prompts))
        began = time.perf_counter()
        results = run_batch(voice, jobs, batch_size=BATCH, max_tokens=TOKENS, temperature=0.6, top_p=0.9)
        tokens = sum(len(r.tokens) for r in results if isinstance(r, Finished))
        return tokens / (time.perf_counter() - began)

    def theirs() -> float:
        mx.random.seed(0)
        voice.taps.remove()
        try:
            began = time.perf_counter()
            found = batch_generate(
                voice.loaded.model, voice.loaded.tokenizer, prompts, max_tokens=TOKENS, return_token_ids=True,
                completion_batch_size=BATCH, prefill_batch_size=8, sampler=sampler,
            )  # fmt: skip
            return sum(map(len, found.token_ids or [])) / (time.perf_counter() - began)
        finally:
            voice.taps.attach()

    ours(), theirs()  # to warm up
    ratios = []
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
    args = parser.parse_args()
    ratios = mlx_emotion.load(args.model).run(measure, args.rounds)
    print(f"median ratio {statistics.median(ratios):.3f} (wanted: at least 0.9)")


if __name__ == "__main__":
    main()
