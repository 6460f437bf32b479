"""The model that ships: it has its packs, feels what it is told to, ends its replies, and is a plain mlx-lm model."""

import subprocess
import sys

import pytest

from mlx_emotion.evaluation.lexicon import top
from mlx_emotion.model import find_packs
from mlx_emotion.models import embedded_path, identify
from mlx_emotion.vectors import EmotionVectors

QUESTIONS = [
    "I have a job interview tomorrow.",
    "There was a letter for you at the door.",
    "My neighbours are moving away next week.",
    "What do you think of the old house on the hill?",
    "I am going to cook dinner tonight.",
    "The train was two hours late again.",
]


def test_its_packs_fit_and_are_calibrated():
    identity, _ = identify("embedded")
    packs = [EmotionVectors.load(path) for path in find_packs(identity)]
    assert sorted(pack.info.site for pack in packs) == ["attention", "residual"]
    for pack in packs:
        assert pack.mismatches(identity) == []
        assert pack.calibrated
        assert pack.info.base_scale is not None


@pytest.mark.parametrize("emotion", ["joy", "fear"])
def test_it_feels_what_it_is_told_to(embedded, emotion):
    """Bounds far from what it does, so that another machine's rounding changes nothing."""

    def shown(intensity):
        replies = [embedded.generate(q, f"{emotion}:{intensity}", seed=n) for n, q in enumerate(QUESTIONS)]
        assert [r.finish_reason for r in replies] == ["stop"] * len(QUESTIONS)
        return sum(top(r.text) == emotion for r in replies)

    assert shown(1) >= 3
    assert shown(0) <= 2


def test_mlx_lm_s_own_command_answers():
    command = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(embedded_path())]
    done = subprocess.run([*command, "--prompt", "Hello.", "--max-tokens", "8"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Generation: " in done.stdout
