"""Speed and cost, as ratios within one run: steering against plain mlx-lm, extraction against batching, start-up.

    python scripts/benchmark.py --json build/benchmark.json

Prints a table; a ratio under its bound is marked. Timings are of this machine and this moment; the
ratios are what to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

import mlx_emotion
from mlx_emotion.batch import Finished, Job, run_batch
from mlx_emotion.engine import shared
from mlx_emotion.events import Done, Token
from mlx_emotion.extraction import Extraction, Plan, library_versions
from mlx_emotion.session import Voice
from mlx_emotion.steering import Row, SteeringCache
from mlx_emotion.vectors import EmotionVectors, PackInfo

PAIRS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:  # the user's packs and settings are no part of this
        os.environ["MLX_EMOTION_HOME"] = home
        measure(args)


def measure(args: argparse.Namespace) -> None:
    results: dict[str, dict] = {}
    for name in args.only:
        for key, value in PARTS[name]().items():
            results[key] = value
            bound = value.get("bound")
            shown = ""
            if bound is not None:
                sign, good = (">=", value["value"] >= bound) if value["at_least"] else ("<=", value["value"] <= bound)
                shown = f"  ({sign} {bound}{'' if good else ', MISSED'})"
            print(f"{key:58}{value['value']:>10.4g}{shown}  {value.get('note', '')}", flush=True)
    if args.json:
        machine = {"platform": platform.platform(), "processor": platform.machine(), **library_versions()}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


def entry(value: float, bound: float | None = None, at_least: bool = True, note: str = "") -> dict:
    return {"value": float(value), "bound": bound, "at_least": at_least, "note": note}


def random_pack(model: mlx_emotion.Model) -> EmotionVectors:
    """Vectors too small to change the text much, so that both sides generate alike."""
    i = model.identity
    v = np.random.default_rng(0).standard_normal((i.layers, i.width)).astype(np.float32) * 1e-3
    info = PackInfo(i, model.site, {"fear": {"instructions": [], "count": 1, "scale": 1.0}})
    return EmotionVectors({"fear": v}, info)


def decode_ratios(model: mlx_emotion.Model, tokens: int) -> tuple[float, float, float]:
    """(median ratio of steered to plain tokens/s, of ``chat.stream`` to plain, plain tokens/s), interleaved.

    ``steered`` is mlx-lm's ``stream_generate`` with a dose; ``chat.stream`` is what the product does, with its
    guard and from another thread. All choose the likeliest token.
    """
    model.use(random_pack(model))
    message = "I heard a noise upstairs."

    def generated(voice: Voice, steered: bool) -> float:
        from mlx_lm import stream_generate

        template, tokenizer = voice.loaded.template, voice.loaded.tokenizer
        prompt = template.encode(template.render([{"role": "user", "content": message}]))
        model_, cache = voice.taps.model, None
        if steered:
            voice.taps.attach()
            dose = voice.dose((("fear", 1.0),))
            model_, cache = voice.model, voice.model.cache(Row.steered(dose, len(prompt) - 1))
        else:
            voice.taps.remove()
        last = began = 0.0
        for n, _ in enumerate(
            stream_generate(model_, tokenizer, prompt, max_tokens=tokens, prompt_cache=cache)  # type: ignore
        ):
            last = time.perf_counter()
            if n == 0:
                began = last
        return (tokens - 1) / (last - began)

    def chatted() -> float:
        model.run(lambda voice: voice.taps.attach())
        began = last = 0.0
        made = 0
        for event in model.chat("fear", temperature=0.0, max_tokens=tokens).stream(message, seed=0):
            if isinstance(event, Token):
                last = time.perf_counter()
                began = began or last
            elif isinstance(event, Done):
                made = event.tokens  # fewer than asked for where the guard ended a loop
        return (made - 1) / (last - began)

    def endless(voice: Voice) -> None:
        voice.loaded.tokenizer.eos_token_ids = []  # all write the same number of tokens

    model.run(endless)
    ways = [lambda: model.run(generated, False), lambda: model.run(generated, True), chatted]
    for way in ways:
        way()
    found: list[list[float]] = []
    for n in range(PAIRS):
        speeds = [0.0] * len(ways)
        for i in range(len(ways)) if n % 2 else reversed(range(len(ways))):
            speeds[i] = ways[i]()
        found.append(speeds)
    steered, product = (statistics.median(speeds[i] / speeds[0] for speeds in found) for i in (1, 2))
    return steered, product, statistics.median(speeds[0] for speeds in found)


def decode() -> dict[str, dict]:
    out = {}

    def add(name: str, bound: float, ratios: tuple[float, float, float]) -> None:
        note = f"plain {ratios[2]:.3g} tokens/s"
        out[f"decode: {name}, steered / mlx_lm.stream_generate"] = entry(ratios[0], bound, note=note)
        out[f"decode: {name}, chat.stream / mlx_lm.stream_generate"] = entry(ratios[1], bound, note=note)

    add("embedded", 0.97, decode_ratios(mlx_emotion.load("embedded"), 100))
    with tempfile.TemporaryDirectory() as folder:
        path = qwen_shape(Path(folder) / "qwen2.5-0.5b-shape")
        add("Qwen2.5-0.5B's shape, 4-bit", 0.99, decode_ratios(mlx_emotion.load(str(path)), 12))
    return out


def qwen_shape(folder: Path) -> Path:
    """A random model of Qwen2.5-0.5B's shape, 4-bit, with the embedded model's tokenizer."""
    config = {
        "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864,
        "num_attention_heads": 14, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 151936,
        "max_position_embeddings": 32768, "rope_theta": 1e6, "tie_word_embeddings": True,
    }  # fmt: skip
    from mlx_emotion.models import embedded_path

    shutil.copytree(embedded_path(), folder, ignore=shutil.ignore_patterns("model*", "config.json", "*.md"))

    def work() -> None:
        import mlx.core as mx
        from mlx.utils import tree_flatten
        from mlx_lm.models.qwen2 import Model, ModelArgs
        from mlx_lm.utils import quantize_model

        mx.random.seed(0)
        model, quantised = quantize_model(Model(ModelArgs.from_dict(config)), config, group_size=64, bits=4)
        weights = dict(tree_flatten(model.parameters()))
        mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
        (folder / "config.json").write_text(json.dumps(quantised))

    shared().run(work)
    return folder


def change() -> dict[str, dict]:
    model = mlx_emotion.load("embedded")
    model.use(random_pack(model))

    def first_difference() -> int:
        """Tokens from the change of feeling to the first whose log-probabilities it moved."""

        def work(voice: Voice) -> int:
            import mlx.core as mx
            from mlx_lm.generate import generate_step

            ids = voice.loaded.template.encode("A message.")
            dose = voice.dose((("fear", 1000.0),))
            runs = []
            for changes in (False, True):
                cache = voice.model.cache(row := Row())
                logs = []
                steps = generate_step(mx.array(ids), voice.model, max_tokens=20, prompt_cache=cache)  # type: ignore
                for n, (_, logprobs) in enumerate(steps):
                    logs.append(np.array(logprobs.astype(mx.float32)))
                    if changes and n == 9:
                        row.set(dose, row.offset)
                runs.append(np.stack(logs))
            return int(np.abs(runs[0] - runs[1]).max(axis=1).nonzero()[0][0]) - 9

        return model.run(work)

    same, other = model.chat("fear", max_tokens=16), model.chat("fear", max_tokens=16)
    prefilled = []
    for chat in (same, other):
        list(chat.stream("Hello there.", seed=1))
    other.feel("neutral")
    for chat in (same, other):
        prefilled.append(list(chat.stream("And again.", seed=1))[-1].prefilled)
    return {
        "change of feeling: tokens until visible": entry(first_difference(), 2, at_least=False),
        "change of feeling: tokens prefilled again with keep": entry(prefilled[1] - prefilled[0], 0, at_least=False),
    }


def extraction() -> dict[str, dict]:
    model = mlx_emotion.load("embedded")
    out = {}

    def work(voice: Voice) -> None:
        import mlx.core as mx
        from mlx_lm import batch_generate

        plan = Plan.make(emotions=["fear", "joy"], limit=16)
        jobs = list(Extraction(voice, plan, restart=True)._jobs())
        prompts = [j.prompt for j in jobs]

        passed = valid = 0
        advance = SteeringCache.advance

        def counting(cache: SteeringCache, tokens: mx.array, *args) -> None:
            nonlocal passed, valid
            before = sum(row.offset for row in cache.rows)
            advance(cache, tokens, *args)
            passed += tokens.size
            valid += sum(row.offset for row in cache.rows) - before

        def ours(batch_size: int, chosen: list[Job]) -> tuple[float, dict]:
            began = time.perf_counter()
            options = {"batch_size": batch_size, "max_tokens": 64, "capture": True}
            done = {d.key: d for d in run_batch(voice, iter(chosen), **options) if isinstance(d, Finished)}
            return sum(len(d.tokens) for d in done.values()) / (time.perf_counter() - began), done

        def theirs() -> float:
            voice.taps.remove()
            began = time.perf_counter()
            result = batch_generate(
                voice.taps.model, voice.loaded.tokenizer, [list(p) for p in prompts], max_tokens=64,
                completion_batch_size=16, return_token_ids=True,
            )  # fmt: skip
            seconds = time.perf_counter() - began
            voice.taps.attach()
            return sum(len(t) for t in result.token_ids or []) / seconds

        theirs(), ours(16, jobs)
        against, singles = [], []
        for _ in range(5):
            plain = theirs()
            speed, together = ours(16, jobs)
            against.append(speed / plain)
            slow, _ = ours(1, jobs[:16])
            singles.append(speed / slow)
        _, alone = ours(1, jobs)
        with mock.patch.object(SteeringCache, "advance", counting):
            _, counted = ours(16, jobs)
        response = sum(len(d.tokens) + (d.reason == "stop") for d in counted.values())
        out["extraction: forwarded / (prompt + response) tokens"] = entry(
            valid / (sum(map(len, prompts)) + response),
            1.0,
            at_least=False,
            note=f"batch 16; {1 - valid / passed:.1%} pad",
        )
        out["extraction: batch 16 / mlx_lm.batch_generate"] = entry(statistics.median(against), 0.9)
        out["extraction: batch 16 / batch 1"] = entry(statistics.median(singles), 1.8)
        same = sum(alone[k].tokens == together[k].tokens for k in alone) / len(alone)
        out["extraction: batch 16, share of answers identical to batch 1"] = entry(same, 1.0)

        def vector(answers: dict) -> np.ndarray:
            keys = [k for k in answers if k[0] == "fear" and k[2] == 0]
            return np.mean([answers[(e, i, 1)].mean - answers[(e, i, 0)].mean for e, i, _ in keys], axis=0).ravel()

        a, b = vector(alone), vector(together)
        cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        out["extraction: batch 16, cosine of the vector with batch 1"] = entry(cosine, 0.9999)
        peaks = []
        for limit in (20, 100):
            mx.clear_cache()
            mx.reset_peak_memory()
            Extraction(voice, Plan.make(emotions=["fear"], limit=limit), restart=True).run()
            peaks.append(mx.get_peak_memory())
        out["extraction: peak memory, 100 queries / 20"] = entry(
            peaks[1] / peaks[0], 1.05, at_least=False, note=f"{peaks[1] / 1e6:.0f} MB"
        )

    model.run(work)
    return out


def start() -> dict[str, dict]:
    def median_seconds(command: list[str], times: int) -> float:
        found = []
        for _ in range(times):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    def first_token() -> float:
        command = [sys.executable, "-m", "mlx_emotion", "generate", "I heard a noise upstairs.", "--emotion", "fear"]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        token = process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.communicate()
        if process.returncode or not token:
            sys.exit(f"{' '.join(command)} failed with status {process.returncode}")
        return seconds

    first_token()
    return {
        "start: mlx-emotion --help, seconds": entry(
            median_seconds([sys.executable, "-m", "mlx_emotion", "--help"], 5), 0.3, at_least=False
        ),
        "start: first token of the embedded model, seconds": entry(
            statistics.median(first_token() for _ in range(3)), 4.0, at_least=False
        ),
    }


PARTS = {"decode": decode, "change": change, "extraction": extraction, "start": start}

if __name__ == "__main__":
    main()
