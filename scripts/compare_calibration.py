"""Candidates for calibration side by side: what each measures at rising scales, beside what is wanted.

    python scripts/compare_calibration.py --emotions fear joy --scales 0.5 1 2 4

Per emotion and scale: the excess of the steered replies' negative log-likelihood over the model's own
emotional replies (nats per token, the chosen criterion), the p95 of the per-token KL divergence of
steered from plain (nats), distinct-2 relative to plain, and, for judging the candidates, the share of
replies whose top emotion in the lexicon is the asked one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import mlx_emotion
from mlx_emotion.calibration import MARGIN, Calibration, Fluency
from mlx_emotion.evaluation.lexicon import top
from mlx_emotion.session import Voice
from mlx_emotion.steering import Row


def p95_kl(voice: Voice, prompts: list[list[int]], replies: list[list[int]], vector: np.ndarray) -> float:
    """95th percentile over reply tokens of KL(steered || plain), both reading the same steered replies."""
    import mlx.core as mx

    found: list[float] = []
    for prompt, reply in zip(prompts, replies):
        if not reply:
            continue
        tokens, start = mx.array([[*prompt, *reply]]), len(prompt) - 1
        logs = []
        for dose in (voice.taps.dose(vector), None):
            logits = voice.model(tokens, cache=voice.model.cache(Row.steered(dose, start)))[0, start:-1]
            logits = logits.astype(mx.float32)
            logs.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        steered, plain = logs
        found += (mx.exp(steered) * (steered - plain)).sum(-1).tolist()
    return float(np.percentile(found, 95))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--site", default="attention")
    parser.add_argument("--vectors")
    parser.add_argument("--emotions", nargs="*")
    parser.add_argument("--scales", nargs="*", type=float, default=[0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = mlx_emotion.load(args.model, site=args.site, vectors=args.vectors)
    rows = []

    def work(voice: Voice) -> None:
        assert voice.vectors is not None
        calibration = Calibration(voice, voice.vectors, seed=0)
        plain: Fluency = calibration.fluency(calibration.generate(calibration.plain, None), [calibration.plain])
        for name in args.emotions or voice.vectors:
            asked = calibration.asked(name)
            reference = calibration.fluency(calibration.generate(asked, None), [asked])
            for scale in args.scales:
                vector = np.float32(scale) * voice.vectors[name]
                replies = calibration.generate(calibration.plain, vector)
                found = calibration.fluency(replies, [calibration.plain, asked])
                texts = [voice.loaded.tokenizer.decode(r) for r in replies]
                row = {
                    "emotion": name,
                    "scale": scale,
                    "excess_nll": round(found.nll - reference.nll, 3),
                    "fluent": found.within(reference),
                    "p95_kl": round(p95_kl(voice, calibration.plain, replies, vector), 3),
                    "distinct_2_ratio": round(found.distinct / plain.distinct, 3),
                    "target": round(sum(top(t) == name for t in texts) / len(texts), 3),
                    "example": texts[0].strip(),
                }
                rows.append(row)
                print(json.dumps(row), flush=True)

    print(f"margin {MARGIN:.3f} nats", flush=True)
    model.run(work)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
