"""Write docs/models.md from what the tests of tests/architectures find: `python scripts/models_page.py`.

Every check of every architecture is run again, which takes a minute or two; one that fails ends the script.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "architectures"), str(ROOT / "tests")]

import architecture_checks as checks  # noqa: E402
import checkpoints  # noqa: E402
import tiny_models  # noqa: E402

from mlx_emotion.engine import shared  # noqa: E402

HEAD = """# Supported models

Written by `scripts/models_page.py`; do not edit. Each architecture is a tiny random model, and each was checked for:
logits bit-identical while nothing is added; every tapped layer acts; removal restores classes and logits exactly; the
dtype is kept in bfloat16; rows steered in one batch say and mean what each does alone; and a conversation whose last
answer is made again under another feeling, with `keep` and `refeel`, leaves the cache as if computed afresh.

## The models of arXiv 2502.04075

| model | served by | chat template | same numbers as transformers |
|---|---|---|---|
"""
ARCHITECTURES = """
"Same numbers" means: per-layer means over response tokens at both sites, emotion vectors of given pairs, and logits of
a 32-token generation, steered as in the authors' code and as in Eq. 1, against hooks on the Hugging Face model in
float32 (relative error at most 1e-4, cosine at least 0.99999): `pytest tests/parity`, with the extra `parity`. Where a
template puts a system message of its own when none is given (Qwen), it is kept out. Gemma has no system role: a system
message goes in front of the first user message. Vicuna is known by its name:
keep `vicuna` in the folder's. Baichuan 2 is read from safetensors; its 13B models have ALiBi.
`mlx_lm.convert` can load neither Baichuan 2 nor Qwen v1: `mlx_emotion.architectures.convert(source, output, bits,
group_size)` quantises them.

## Architectures

{count} architectures. *Site* is the one that was checked: `attention`, the default, or `residual` where no layer has
softmax attention: there it has to be asked for (`--site residual`); it can be everywhere. *Layers* are those tapped in
the tiny model. *Batch*: padding would reach the state of some recurrent models, so those take their prompts one by one;
some models of mlx-lm can't be batched at all. Of several stacked residual streams (gemma3n, deepseek_v41) the first is
read and steered.

| architecture | code | site | layers | batch | kinds of cache |
|---|---|---|---|---|---|
"""
REST = """
## Not steerable, not tested

| model file of mlx-lm | why |
|---|---|
"""


def check(name: str, tokenizer: object) -> str:
    """The line of ``name``, all checks passed."""
    case = checks.Case(name, tokenizer)
    for one in checks.CHECKS:
        one(case)
    checks.check_history(case, "refeel")
    case.taps.remove()
    return checks.row(case)


def paper() -> list[str]:
    lines = []
    for name, family in checkpoints.FAMILIES.items():
        code = "this project" if name.startswith("baichuan") else "mlx-lm"
        code = "mlx-lm, activation as in the reference" if name == "gemma" else code
        template = "its own" if family.template else "supplied here"
        parity = "yes" if name in checkpoints.WITH_TRANSFORMERS else "transformers does not have it"
        lines.append(f"| {name} | {code} | {template} | {parity} |")
    return lines


def main() -> None:
    from mlx_lm.tokenizer_utils import load

    with tempfile.TemporaryDirectory() as folder:
        checkpoints.write_tokenizer(Path(folder), checkpoints.OTHERS["wide"])
        tokenizer = load(Path(folder))
    lines = []
    for name in tiny_models.ARCHITECTURES:
        if name not in tiny_models.UNSTEERABLE:
            lines.append(shared().run(check, name, tokenizer))
            print(lines[-1], flush=True)
    reason = "it computes its layers from outside, by parts: there is no call to tap"
    why = dict.fromkeys(tiny_models.UNSTEERABLE, reason)
    rest = [f"| {name} | {reason} |" for name, reason in (why | tiny_models.UNTESTED).items()]
    text = HEAD + "\n".join(paper()) + "\n" + ARCHITECTURES.format(count=len(lines)) + "\n".join(lines)
    (ROOT / "docs" / "models.md").write_text(text + "\n" + REST + "\n".join(rest) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
