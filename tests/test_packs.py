"""Packs: what is written comes back; whatever else comes is refused in one line."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_emotion.emotions import Feeling
from mlx_emotion.errors import PackError
from mlx_emotion.vectors import EmotionVectors, Identity, PackInfo, read_info
from mlx_emotion.vectors.pack import SMALLEST

IDENTITY = Identity("some/model", "abc", "f" * 32, "llama", 3, 8)


def make(emotions=("fear", "joy"), site="attention", **more) -> EmotionVectors:
    rng = np.random.default_rng(0)
    info = PackInfo(IDENTITY, site, {e: {"instructions": ["x"], "count": 2, "scale": None} for e in emotions}, **more)
    return EmotionVectors({e: rng.standard_normal((3, 8)) for e in emotions}, info, np.ones(3, np.float32))


def test_round_trip(tmp_path):
    pack = make()
    pack.samples = {"fear": np.ones((2, 3, 8), np.float16)}
    pack.info.emotions["fear"]["scale"] = 2.5
    path = pack.save(tmp_path / "p.safetensors")
    back = EmotionVectors.load(path, samples=True)
    assert list(back) == ["fear", "joy"]
    for name in pack:
        assert back[name].dtype == np.float32
        np.testing.assert_array_equal(back[name], pack[name])
    assert back.info == pack.info
    assert back.samples["fear"].shape == (2, 3, 8)
    assert back.scale("fear") == 2.5
    assert back.scale("joy") == 1.0
    assert not back.calibrated


def test_a_pack_says_why_its_full_dose_is_in_doubt():
    pack = make()
    assert pack.doubts.startswith("this pack is not calibrated")
    least = float(f"{SMALLEST:.4g}")
    pack.info.emotions["fear"]["scale"], pack.info.emotions["joy"]["scale"] = least, 0.4
    assert pack.doubts.startswith("fear: no scale was fluent")
    pack.info.emotions["fear"]["scale"], pack.info.base_scale = 1.0, least / 2
    pack.info.calibration = {"share": 0.5}
    assert pack.doubts.startswith("base: ")
    pack.info.base_scale = 0.9 * SMALLEST  # half of a scale that was fluent
    assert pack.doubts == ""
    pack.info.base_scale = 2.0
    assert pack.doubts == ""


def test_mixing_is_a_weighted_sum():
    pack = make()
    pack.info.emotions["fear"]["scale"] = 2.0
    scales = pack.scales(Feeling.of("fear:0.5,joy:0.25"))
    assert scales == pytest.approx({"fear": 1.0, "joy": 0.25})
    np.testing.assert_allclose(pack.mix(scales), pack["fear"] + 0.25 * pack["joy"], rtol=1e-6)
    assert pack.scales(Feeling.of("fear:0.5"), raw=4) == {"fear": 2.0}
    assert pack.mix({}) is None
    np.testing.assert_allclose(pack["base"], (pack["fear"] + pack["joy"]) / 2)


def test_every_mismatch_is_listed():
    other = Identity("other/model", "abc", "0" * 32, "qwen2", 4, 8)
    text = "; ".join(make().mismatches(other, "residual"))
    for word in ("some/model", "qwen2", "layers: pack 3, model 4", "fingerprint", "site: pack attention"):
        assert word in text
    assert make().mismatches(IDENTITY, "attention") == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = make().save(tmp_path / "p.safetensors")
    before = path.read_bytes()

    def full(_tensors, place, *_more):
        Path(place).write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(PackError, match="No space left"):
        make().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def hostile(tmp_path):
    """name -> bytes of files that are no packs."""
    good = make().save(tmp_path / "good.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + length])
    yield "empty", b""
    yield "short", good[:5]
    yield "cut header", good[: 8 + length // 2]
    yield "cut data", good[:-10]
    yield "huge header", struct.pack("<Q", 1 << 60) + good[8:]
    yield "not json", struct.pack("<Q", 8) + b"not json"
    yield "list", struct.pack("<Q", 2) + b"[]"
    yield "nested", struct.pack("<Q", 200_000) + b"[" * 200_000
    wrong = json.loads(json.dumps(header))
    wrong["ev.fear"]["data_offsets"] = [0, 1 << 50]
    raw = json.dumps(wrong).encode()
    yield "offsets", struct.pack("<Q", len(raw)) + raw + good[8 + length :]
    whole = dict(header)
    del header["__metadata__"]
    raw = json.dumps(header).encode()
    for dtype, size in (("F8_E4M3", 1), ("F8_E5M2", 1), ("BF16", 2)):
        wrong = {**whole, "ev.fear": {"dtype": dtype, "shape": [3, 8], "data_offsets": [0, 24 * size]}}
        raw = json.dumps({k: v for k, v in wrong.items() if k in ("__metadata__", "ev.fear")}).encode()
        yield dtype, struct.pack("<Q", len(raw)) + raw + bytes(24 * size)
    yield "no metadata", struct.pack("<Q", len(raw)) + raw + good[8 + length :]


def test_hostile_files_are_one_line_errors(tmp_path):
    for name, content in hostile(tmp_path):
        path = tmp_path / "bad.safetensors"
        path.write_bytes(content)
        with pytest.raises(PackError) as caught:
            EmotionVectors.load(path)
        assert str(path) in str(caught.value), name
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 99}, "schema 99"),
        ({"surprise": 1}, "unknown fields surprise"),
        ({"site": "mlp"}, "site 'mlp'"),
        ({"model": {"id": "x"}}, "missing"),
        ({"emotions": {"fear": {"scale": "big"}}}, "scale of fear"),
        ({"calibration": {"share": "x"}}, "calibration.share is 'x'"),
        ({"calibration": {"share": None}}, "calibration.share is None"),
        ({"queries": {"name": 5}}, "queries has values that are not text"),
        ({"decoding": {"a": json.loads("[" * 600 + "]" * 600)}}, "nested more than 8 deep"),
    ],
)
def test_wrong_metadata(tmp_path, change, says):
    path = make().save(tmp_path / "p.safetensors")
    data = json.loads(make().info.to_json()) | change
    save_file({"ev.fear": np.ones((3, 8), np.float32)}, path, {"mlx_emotion": json.dumps(data)})
    with pytest.raises(PackError, match=says):
        read_info(path)


def test_every_wrong_field_is_told_at_once():
    data = json.loads(make().info.to_json())
    data |= {"site": "mlp", "base_scale": 10**400, "method": 5}
    data["model"]["width"] = "8"
    data["emotions"]["fear"] = {"count": "x", "colour": 7, "valence": 3, "instructions": "y"}
    with pytest.raises(ValueError, match="site 'mlp'") as caught:
        PackInfo.from_json(json.dumps(data))
    for told in (
        "base_scale is 1",
        "field method is 5",
        "field model.width is '8'",
        "count of fear",
        "valence of fear",
    ):
        assert told in str(caught.value)
    assert str(caught.value).endswith("; and 1 more")


@pytest.mark.parametrize(
    ("value", "says"),
    [(np.full((3, 8), np.nan), "not finite"), (np.zeros((3, 8)), "all zero"), (np.ones((3, 9)), "shape")],
)
def test_wrong_values(value, says):
    with pytest.raises(PackError, match=says):
        EmotionVectors({"fear": value}, make(("fear",)).info)


def test_a_missing_pack_says_where_to_look(tmp_path):
    with pytest.raises(PackError, match="no such pack; `mlx-emotion vectors list`"):
        EmotionVectors.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("name", "samples", "says"),
    [
        (
            "fear",
            np.ones((2, 3), np.float16),
            r"'samples.fear' has shape \(2, 3\), wanted samples.<emotion> \(n, 3, 8\)",
        ),
        ("fear", np.full((2, 3, 8), np.nan, np.float16), "samples of fear are not finite"),
        ("nobody", np.ones((2, 3, 8), np.float16), "'samples.nobody' has shape"),
    ],
)
def test_samples_that_are_none(name, samples, says, tmp_path):
    pack = make()
    pack.samples = {name: samples}
    path = pack.save(tmp_path / "p.safetensors")
    with pytest.raises(PackError, match=says):
        EmotionVectors.load(path, samples=True)
