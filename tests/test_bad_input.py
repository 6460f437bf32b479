"""What is wrong with a user's files ends each command with one line: the file, the field, what was expected."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest

from mlx_emotion import models
from mlx_emotion.cli import main
from mlx_emotion.errors import ModelError
from mlx_emotion.models import identify
from mlx_emotion.vectors import PackInfo


@pytest.fixture
def refused(capsys):
    """``refused(*arguments)``: the one line a command that cannot go on ends with."""

    def call(*arguments):
        status = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert (status, captured.out, captured.err.count("\n")) == (1, "", 1), captured
        return captured.err.strip()

    return call


@pytest.fixture
def copy(tiny_model_path, tmp_path):
    return shutil.copytree(tiny_model_path, tmp_path / "copy")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("model_type", "unheard_of", "copy: Model type unheard_of not supported"),
        ("model_type", "../evil", "copy: Model type ../evil not supported"),
        ("model_type", None, "copy/config.json: model_type is missing, wanted a name such as llama"),
        ("model_type", 5, "copy/config.json: model_type is 5, wanted a name such as llama"),
        ("num_hidden_layers", 2, "copy: config.json says num_hidden_layers 2, the weights have 3 layers"),
        ("num_hidden_layers", 5, "copy: config.json says num_hidden_layers 5, the weights have 3 layers"),
        ("num_hidden_layers", 0, "copy/config.json: num_hidden_layers is 0, wanted a number from 1 up"),
        ("num_hidden_layers", "3", "copy/config.json: num_hidden_layers is '3', wanted a number from 1 up"),
        ("num_hidden_layers", None, "copy: its config.json lacks 'num_hidden_layers'"),
    ],
)
def test_a_config_that_is_wrong(field, value, told, refused, copy):
    config = json.loads((copy / "config.json").read_text())
    config[field] = value
    (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    assert told in refused("generate", "hi", "-m", copy)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", b"{", "config.json: not JSON"),
        ("config.json", b"[]", "config.json: wanted one JSON object"),
        ("model.safetensors", b"x" * 50, "model.safetensors: "),
        ("model.safetensors", None, "no model*.safetensors"),
        ("tokenizer.json", b"{}", "cannot load the tokenizer of "),
    ],
)
def test_a_model_folder_that_is_broken(name, content, told, refused, copy):
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    line = refused("generate", "hi", "-m", copy)
    assert str(copy) in line
    assert told in line


@pytest.mark.parametrize(
    "header",
    [
        "[" * 200_000,
        f'{{"a": {{"dtype": "F32", "shape": [1], "data_offsets": [{1 << 70}, {1 << 71}]}}}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["x", 4]}}',
        '{"a": 1}',
    ],
    ids=["nested", "far", "text", "number"],
)
def test_a_header_that_is_hostile(header, refused, copy):
    path = copy / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    told = f"{path}: its safetensors header is corrupt"
    assert told in refused("generate", "hi", "-m", copy)
    with pytest.raises(ModelError) as caught:  # what `models` and `vectors check` ask
        identify(str(copy))
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (None, "adapter path does not exist"),
        ({}, "adapter_config.json"),
        ({"adapter_config.json": "{}"}, "its adapter_config.json lacks 'num_layers'"),
    ],
)
def test_an_adapter_that_is_broken(files, told, refused, tiny_model_path, tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
    # Some models load well with more layers in their weights than they use.
    monkeypatch.setattr(models, "_wrong_layers", lambda path: "the weights have 47 layers")
    line = refused("generate", "hi", "-m", tiny_model_path, "--adapter", folder)
    assert f"the adapter {folder} on" in line
    assert told in line


def edit(path, value):
    """A change to metadata: ``value`` at the dotted ``path``; ``...`` takes the field away."""

    def change(metadata, _):
        *parents, name = path.split(".")
        for parent in parents:
            metadata = metadata[parent]
        if value is ...:
            del metadata[name]
        else:
            metadata[name] = value

    return change


def vector(name, change):
    def apply(_, tensors):
        tensors[name] = change(tensors[name])

    return apply


PACKS = {
    "nan": (vector("ev.joy", lambda v: v * np.nan), "joy has values that are not finite"),
    "inf": (vector("ev.joy", lambda v: v * np.inf), "joy has values that are not finite"),
    "zero": (vector("ev.joy", lambda v: v * 0), "joy is all zero"),
    "wide": (vector("ev.joy", lambda v: np.hstack([v, v])), "'ev.joy' has shape (3, 128), wanted ev.<emotion> (3, 64)"),
    "narrow": (vector("ev.joy", lambda v: v[:, :9].copy()), "joy has shape (3, 9), wanted (3, 64)"),
    "missing layers": (vector("ev.joy", lambda v: v[:2]), "joy has shape (2, 64), wanted (3, 64)"),
    "norm": (vector("activation_norm", lambda v: v * np.nan), "activation_norm has values that are not finite"),
    "no model": (edit("model", ...), "field model is missing, wanted an object"),
    "model": (edit("model", "x"), "field model is 'x', wanted an object"),
    "width": (edit("model.width", "64"), "field model.width is '64', wanted a number"),
    "fingerprint": (edit("model.fingerprint", 5), "field model.fingerprint is 5, wanted text"),
    "surplus": (edit("model.colour", 5), "unknown fields model.colour"),
    "site": (edit("site", "head"), "site 'head', wanted attention or residual"),
    "emotions": (edit("emotions", ["joy"]), "field emotions is ['joy'], wanted an object"),
    "emotion": (edit("emotions.joy", 1), "field emotions.joy is 1, wanted an object"),
    "scale": (edit("emotions.joy.scale", "big"), "scale of joy is 'big', wanted a finite number or null"),
    "base": (edit("base_scale", float("inf")), "base_scale is inf, wanted a finite number or null"),
}


@pytest.mark.parametrize("case", PACKS)
def test_a_pack_that_is_wrong(case, refused, tiny_model_path, tmp_path):
    from safetensors.numpy import save_file

    change, told = PACKS[case]
    identity, _ = identify(str(tiny_model_path))
    info = PackInfo(identity, "attention", {"joy": {"instructions": [], "count": 1, "scale": None}})
    metadata = json.loads(info.to_json())
    tensors = {"ev.joy": np.ones((3, 64), np.float32), "activation_norm": np.ones(3, np.float32)}
    change(metadata, tensors)
    path = tmp_path / "pack.safetensors"
    save_file(tensors, path, {"mlx_emotion": json.dumps(metadata)})
    for command in (("vectors", "check", path), ("generate", "hi", "-m", tiny_model_path, "--vectors", path)):
        line = refused(*command)
        assert line.startswith(f"mlx-emotion: {path}: ")
        assert told in line


def test_a_typo_in_a_definition(refused, tiny_model_path, tmp_path):
    path = tmp_path / "emotions.toml"
    path.write_text('[[emotion]]\nname = "nostalgia"\nvalense = 0.3\n')
    line = refused("extract", "-m", tiny_model_path, "--define", path)
    assert line.startswith(f"mlx-emotion: {path}: emotion nostalgia: unknown field 'valense': known are name, ")
    path.write_text("[[emotion]\n")
    assert f"{path}: not TOML: " in refused("extract", "-m", tiny_model_path, "--define", path)
    path.unlink()
    assert f"{path}: No such file" in refused("extract", "-m", tiny_model_path, "--define", path)
