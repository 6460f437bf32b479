"""How long a set of the paper's JSON vectors takes to import: `python scripts/benchmark_vectors.py`.

Writes random vectors of Qwen2.5-7B's shape in the authors' layout, five emotions of 28 x 3584, and
measures importing them, saving the pack and loading it again. Takes a few seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from mlx_emotion.emotions import BASIC
from mlx_emotion.vectors import EmotionVectors, Identity
from mlx_emotion.vectors.travel import import_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--width", type=int, default=3584)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    model = Identity("benchmark", "", "0" * 32, "qwen2", given.layers, given.width)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for emotion in BASIC:
            # A number to a line, which makes the set the released one's size, 17 MB.
            rows = random.standard_normal((given.layers, given.width))
            data = {str(n): [row.tolist()] for n, row in enumerate(rows)}
            Path(folder, f"qwen2.5_{emotion}.json").write_text(json.dumps(data, indent=4))
        size = sum(f.stat().st_size for f in Path(folder).iterdir())
        seconds: dict[str, list[float]] = {"import": [], "save": [], "load": []}
        for _ in range(given.runs):
            began = time.perf_counter()
            pack = import_files([folder], model)
            imported = time.perf_counter()
            path = pack.save(Path(folder, "pack.safetensors"))
            saved = time.perf_counter()
            EmotionVectors.load(path)
            for what, value in zip(seconds, (imported - began, saved - imported, time.perf_counter() - saved)):
                seconds[what].append(value)
            path.unlink()
    print(f"{len(BASIC)} x {given.layers} x {given.width} numbers, {size / 1e6:.1f} MB of JSON")
    for what, values in seconds.items():
        print(f"{what:8}median {np.median(values):.3f} s, worst {max(values):.3f} s of {given.runs}")


if __name__ == "__main__":
    main()
