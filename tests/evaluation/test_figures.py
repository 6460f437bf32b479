"""Figures that need more than a tiny run has, and the script that reproduces the paper."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce_paper.py"


@pytest.fixture(scope="module")
def geometry() -> dict:
    rng = np.random.default_rng(0)
    vectors = {e: rng.normal(size=(4, 8)) for e in ("fear", "joy")}
    samples = {e: (v + 0.1 * rng.normal(size=(8, 4, 8))).astype(np.float32) for e, v in vectors.items()}
    return {"vectors": vectors, "samples": samples}


def test_tsne_parts_two_emotions_that_lie_apart(geometry):
    from mlx_emotion.evaluation import figures

    figure = figures.tsne({}, geometry)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == "all layers"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["fear (8)", "joy (8)"]
    fear, joy = (np.asarray(c.get_offsets()) for c in figure.axes[0].collections)
    within = max(np.ptp(fear, axis=0).max(), np.ptp(joy, axis=0).max())
    assert np.linalg.norm(fear.mean(0) - joy.mean(0)) > within


def test_distances_within_are_smaller_than_between(geometry):
    from mlx_emotion.evaluation import figures

    figure = figures.distances({}, geometry)
    within, between = figure.axes[0].containers

    def centre(bars):
        weights = [bar.get_height() for bar in bars]
        return np.average([bar.get_x() for bar in bars], weights=weights)

    assert centre(within) < centre(between)


def test_too_few_vectors_give_no_figure():
    from mlx_emotion.evaluation import figures

    few = {"vectors": {}, "samples": {"fear": np.ones((2, 4, 8), np.float32)}}
    assert figures.tsne({}, few) is figures.distances({}, few) is figures.norms({}, few) is None


def test_base_has_curves_too_and_repetition_needs_no_classifier():
    from mlx_emotion.evaluation import figures

    def condition(kind: str, emotion: str | None, dose: float | None, share: float) -> dict:
        summary = {"mean": share, "low": None, "high": None, "n": 1, "missing": 0}
        return {"kind": kind, "emotion": emotion, "dose": dose, "metrics": {"low_distinct": summary}}

    conditions = [condition("plain", None, None, 0.0), condition("steering", "base", 1.5, 0.5)]
    conditions.append(condition("steering", "base", 1.0, 0.25))
    scores = {"settings": {"unit": "intensity"}, "full": {"base": 1.0}, "conditions": conditions}
    scores["pack"] = {"calibrated": True}
    (axis,) = figures.dose_response(scores, {}).axes
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["base"]
    curve = axis.lines[0]
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([0, 1, 1.5], [0, 0.25, 0.5])
    assert (len(axis.lines), axis.get_xlabel()) == (2, "intensity")  # the second is calibration's 1.0
    scores["pack"] = {"calibrated": False}
    (axis,) = figures.dose_response(scores, {}).axes
    assert (len(axis.lines), axis.get_xlabel()) == (1, "scale")


def test_norms_and_cosines_show_every_emotion(geometry):
    from mlx_emotion.evaluation import figures

    assert len(figures.norms({}, geometry).axes[0].lines) == 2
    texts = [t.get_text() for t in figures.cosines({}, geometry).axes[0].texts]
    assert texts[0] == texts[3] == "1.00"


def test_reproduce_says_what_it_would_do(tiny_model_path, tmp_path):
    command = [sys.executable, str(SCRIPT), str(tiny_model_path), "--output", str(tmp_path / "out"), "--dry-run"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "hours" in found.stdout
    assert "GiB free" in found.stdout
    assert "--scales=-1,0,1,2,4" in found.stdout
    assert not (tmp_path / "out").exists()


def test_reproduce_without_a_network_knows_what_is_cached(tiny_model_path, tmp_path):
    folder = tmp_path / "models--some--model"
    shutil.copytree(tiny_model_path, folder / "snapshots" / "abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")

    def dry_run(model: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(SCRIPT), model, "--output", str(tmp_path / "out"), "--dry-run"]
        environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    assert "--model some/model" in dry_run("some/model").stdout
    found = dry_run("other/model")
    assert found.returncode == 1
    assert found.stderr.startswith("reproduce_paper: cannot find other/model: ")


def test_reproduce_a_tiny_model(tiny_model_path, tmp_path):
    command = [sys.executable, str(SCRIPT), str(tiny_model_path), "--output", str(tmp_path), "--yes"]
    small = ["--parts", "tables", "--limit", "1", "--max-tokens", "2", "--no-calibrate"]
    found = subprocess.run([*command, *small], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    text = (tmp_path / "summary.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row.split("|")[2].strip() for row in rows[2:]] == ["0", "-1", "1", "2", "4"]
    assert "topic adherence by built-in topic-word overlap" in text
    (scores,) = tmp_path.glob("*/evaluation/scores.json")
    assert json.loads(scores.read_text())["settings"]["max_tokens"] == 2
