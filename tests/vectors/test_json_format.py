"""The paper's JSON files: in, out, and everything that can be wrong with one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from random_packs import IDENTITY, make_pack

from mlx_emotion.errors import PackError, UsageError
from mlx_emotion.vectors import EmotionVectors
from mlx_emotion.vectors.travel import export_files, import_files


def good(layers: int = 4, width: int = 16) -> dict[str, list]:
    return {str(n): [[float(n + 1)] * width] for n in range(layers)}


def test_export_and_import_keep_every_value(tmp_path):
    pack = make_pack()
    written = export_files(pack, "json", tmp_path / "out" / "qwen2.5.json")
    assert [p.name for p in written] == [f"qwen2.5_{e}.json" for e in pack]
    back = import_files([tmp_path / "out"], IDENTITY)
    assert set(back) == set(pack)
    for emotion in pack:
        assert np.array_equal(back[emotion], pack[emotion])
    assert back.info.model == IDENTITY
    assert back.info.site == "attention"
    assert not back.calibrated
    assert back.scale("joy") == 1.0
    back.save(tmp_path / "back.safetensors")
    assert np.array_equal(EmotionVectors.load(tmp_path / "back.safetensors")["joy"], pack["joy"])


def test_the_authors_layout(tmp_path):
    path = tmp_path / "qwen2.5_anger.json"
    path.write_text(json.dumps(good()))
    pack = import_files([path], IDENTITY, site="residual")
    assert pack.info.site == "residual"
    assert pack["anger"].shape == (4, 16)
    assert pack["anger"][:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_layers_are_ordered_by_number_not_as_text(tmp_path):
    import dataclasses

    deep = dataclasses.replace(IDENTITY, layers=12)
    path = tmp_path / "x_joy.json"
    path.write_text(json.dumps(dict(reversed(good(12).items()))))
    assert import_files([path], deep)["joy"][:, 0].tolist() == list(range(1, 13))


def test_a_name_that_would_come_back_as_another(tmp_path):
    with pytest.raises(PackError, match="inner_joy would come back as another; use gguf"):
        export_files(make_pack("joy", "inner_joy"), "json", tmp_path / "p.json")
    assert not list(tmp_path.iterdir())


def test_one_emotion_goes_to_the_very_file(tmp_path):
    assert export_files(make_pack(), "json", tmp_path / "one.json", "fear") == [tmp_path / "one.json"]
    assert list(tmp_path.iterdir()) == [tmp_path / "one.json"]
    with pytest.raises(UsageError, match="did you mean 'fear'"):
        export_files(make_pack(), "json", tmp_path / "one.json", "feer")


def broken(key: str, value) -> str:
    return json.dumps({**good(), key: value})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not JSON"),
        ('{"0": [[1', "not JSON"),
        ("[1, 2]", "wanted one JSON object"),
        ("{}", "wanted one JSON object"),
        (json.dumps(good(3)), "no vector for layer 3"),
        (json.dumps(good(5)), "unknown layer '4'"),
        (broken("2", [[1.0] * 15]), r"layer 2 has shape \(1, 15\), wanted \(1, 16\)"),
        (broken("2", [[1.0] * 16] * 2), "layer 2 has shape"),
        (broken("2", [[1.0] * 15 + ["1.0"]]), "layer 2 is not"),
        (broken("2", [[1.0] * 15 + [None]]), "layer 2 is not"),
        (broken("2", [[1.0] * 15, [1.0]]), "layer 2 is not"),
        (broken("2", "text"), "layer 2 is not"),
        (broken("2", [[True] * 16]), "layer 2 is not"),
        (broken("2", [[10**400] * 16]), "layer 2 is not"),
        (broken("2", [[float("nan")] + [1.0] * 15]), "layer 2 has values that are not finite"),
        (broken("2", [[1e300] + [1.0] * 15]), "layer 2 has values that are not finite"),
        (json.dumps({str(n): [[0.0] * 16] for n in range(4)}), "all zero"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_file_is_one_line(text, told, tmp_path):
    path = tmp_path / "x_joy.json"
    path.write_text(text)
    with pytest.raises(PackError, match=told) as error:
        import_files([path], IDENTITY)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x_neutral.json", "x_.json", "x_base.json", "x_joy.txt"])
def test_a_wrong_name_is_refused(name, tmp_path):
    (tmp_path / name).write_text(json.dumps(good()))
    with pytest.raises(PackError, match=name):
        import_files([tmp_path / name], IDENTITY)


def test_nothing_to_import(tmp_path):
    with pytest.raises(PackError, match=r"no .json or .gguf"):
        import_files([tmp_path], IDENTITY)
    with pytest.raises(PackError, match="No such file"):
        import_files([tmp_path / "x_joy.json"], IDENTITY)


def test_two_files_of_one_emotion_do_not_silently_win(tmp_path):
    (tmp_path / "a_joy.json").write_text(json.dumps(good()))
    (tmp_path / "b_joy.json").write_text(broken("2", [[9.0] * 16]))
    with pytest.raises(PackError, match=r"a_joy\.json and .*b_joy\.json both hold joy"):
        import_files([tmp_path], IDENTITY)


def test_a_name_that_is_no_file_name_gets_one(tmp_path):
    (path,) = export_files(make_pack("love/hate"), "json", tmp_path / "x.json")
    assert path.name == "x_love-hate.json"
    assert path.is_file()
