"""GGUF control vectors: the round trip, files of llama.cpp's and repeng's making, hostile ones."""

from __future__ import annotations

import dataclasses
import struct

import gguf
import numpy as np
import pytest
from random_packs import IDENTITY, make_pack

from mlx_emotion.errors import PackError, UsageError
from mlx_emotion.vectors.travel import export_files, import_files


def foreign(path, directions: dict[int, np.ndarray], kind: str = "controlvector", hint: str | None = "llama"):
    """A file as repeng writes it."""
    writer = gguf.GGUFWriter(path, kind)
    if hint:
        writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer, value in directions.items():
        writer.add_tensor(f"direction.{layer}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ones(width: int = 16) -> np.ndarray:
    return np.ones(width, np.float32)


def test_the_round_trip_keeps_vectors_and_metadata(tmp_path):
    pack = make_pack(site="residual", base_scale=2.5, method="pca", decoding={"max_tokens": 9})
    pack.info.emotions["nostalgia"] = {
        **pack.info.emotions.pop("joy"),
        "valence": 0.3,
        "arousal": -0.4,
        "colour": "#112233",
    }
    pack._vectors["nostalgia"] = pack._vectors.pop("joy")
    export_files(pack, "gguf", tmp_path / "out" / "m.gguf")
    back = import_files([tmp_path / "out"], IDENTITY)
    assert set(back) == set(pack)
    for emotion in pack:
        assert np.array_equal(back[emotion], pack[emotion])
    assert np.array_equal(back.activation_norm, pack.activation_norm)
    ours, theirs = dataclasses.asdict(pack.info), dataclasses.asdict(back.info)
    assert theirs.pop("created") != ours.pop("created")
    assert theirs == ours
    assert back.info.catalogue["nostalgia"].colour == "#112233"


def test_what_llama_cpp_reads(tmp_path):
    pack = make_pack("joy", site="residual")
    (path,) = export_files(pack, "gguf", tmp_path / "joy.gguf", "joy")
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    tensors = {t.name: t for t in reader.tensors}
    assert list(tensors) == ["direction.1", "direction.2", "direction.3"]  # llama.cpp refuses direction.0
    for layer in (1, 2, 3):
        found = tensors[f"direction.{layer}"]
        assert found.tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(found.data, pack["joy"][layer])


def test_a_file_of_repengs(tmp_path):
    path = foreign(tmp_path / "happy.gguf", {1: ones(), 3: 2 * ones()})
    pack = import_files([path], IDENTITY)
    assert pack.info.site == "residual"
    assert pack["happy"][:, 0].tolist() == [0.0, 1.0, 0.0, 2.0]
    assert pack.scale("happy") == 1.0


def test_only_residual_packs_convert(tmp_path):
    with pytest.raises(PackError, match="extract --site residual"):
        export_files(make_pack(), "gguf", tmp_path / "x.gguf", "joy")
    assert not list(tmp_path.iterdir())
    path = foreign(tmp_path / "joy.gguf", {1: ones()})
    with pytest.raises(UsageError, match="site residual, not attention"):
        import_files([path], IDENTITY, site="attention")


def test_a_file_from_another_models_pack_is_refused_unless_forced(tmp_path):
    (path,) = export_files(make_pack("joy", site="residual"), "gguf", tmp_path / "joy.gguf", "joy")
    other = dataclasses.replace(IDENTITY, fingerprint="e" * 32)
    with pytest.raises(PackError, match=r"another model: .*fingerprint.*--force"):
        import_files([path], other)
    assert import_files([path], other, force=True).info.model == other


@pytest.mark.parametrize(
    ("hint", "architecture"),
    [("llama", "mistral"), ("qwen2moe", "qwen2_moe"), ("command-r", "cohere"), ("phi3", "phi3")],
)
def test_llama_cpps_names_of_architectures(hint, architecture, tmp_path):
    path = foreign(tmp_path / "joy.gguf", {1: ones()}, hint=hint)
    assert list(import_files([path], dataclasses.replace(IDENTITY, architecture=architecture))) == ["joy"]
    other = dataclasses.replace(IDENTITY, architecture="gemma")
    with pytest.raises(PackError, match=f"made for architecture {hint}, .* is gemma; --force"):
        import_files([path], other)
    assert list(import_files([path], other, force=True)) == ["joy"]


@pytest.mark.parametrize(
    ("directions", "options", "told"),
    [
        ({1: ones(15)}, {}, r"direction.1 is float32 \(15,\), wanted float32 or float16 \(16,\)"),
        ({4: ones()}, {}, "direction.4 is beyond"),
        ({1: np.full(16, np.nan, np.float32)}, {}, "not finite"),
        ({1: 0 * ones()}, {}, "all zero"),
        ({1: np.ones(16, np.int32)}, {}, "is int32"),
        ({1: ones()}, {"hint": "qwen2"}, "made for architecture qwen2"),
        ({1: ones()}, {"kind": "llama"}, "a model is not a control vector"),
        ({}, {}, "no tensor direction.N"),
    ],
)
def test_a_wrong_vector_is_one_line(directions, options, told, tmp_path):
    path = foreign(tmp_path / "joy.gguf", directions, **options)
    with pytest.raises(PackError, match=told) as error:
        import_files([path], IDENTITY)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [" ", "[]", "{}", '{"schema": 1}', "[" * 100_000])
def test_metadata_of_ours_that_is_broken(text, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "joy.gguf", "controlvector")
    writer.add_string("mlx_emotion.pack", text)
    writer.add_tensor("direction.1", ones())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(PackError, match=r"joy\.gguf: its mlx_emotion metadata is broken"):
        import_files([tmp_path / "joy.gguf"], IDENTITY)


def test_a_file_of_ours_that_lacks_layers(tmp_path):
    pack = make_pack("joy", site="residual")
    writer = gguf.GGUFWriter(tmp_path / "joy.gguf", "controlvector")
    writer.add_string("mlx_emotion.pack", pack.info.to_json())
    writer.add_tensor("direction.1", ones())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(PackError, match="1 emotions and 1 layers, wanted 1 and 3"):
        import_files([tmp_path / "joy.gguf"], IDENTITY)


def test_a_large_model_is_told_by_its_size(tmp_path):
    path = foreign(tmp_path / "joy.gguf", {1: ones()}, kind="llama")
    with open(path, "r+b") as file:
        file.truncate(64 << 20)
    with pytest.raises(PackError, match="64 MiB is too much for a control vector"):
        import_files([path], IDENTITY)


HEADER = struct.pack("<IIQQ", 0x46554747, 3, 1, 1)
KEY = struct.pack("<Q", 1) + b"k"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGU",
        b"not a gguf file at all",
        b"GGUF",
        HEADER[:20],
        struct.pack("<IIQQ", 0x46554747, 99, 0, 0),
        struct.pack("<IIQQ", 0x46554747, 3, 2**60, 2**60),
        HEADER + struct.pack("<Q", 2**62),
        HEADER + KEY + struct.pack("<IIQ", 9, 0, 2**60),  # an array of 2^60 bytes
        HEADER + KEY + struct.pack("<IIQ", 9, 0, 2**20) + bytes(2**20),  # an object of Python's for each byte
        HEADER + KEY + struct.pack("<IIQ", 9, 9, 2**40) * 5000,  # arrays of arrays of arrays
        HEADER + KEY + struct.pack("<I", 77),
    ],
)
def test_hostile_headers_end_at_once(content, tmp_path):
    path = tmp_path / "joy.gguf"
    path.write_bytes(content)
    with pytest.raises(PackError, match="GGUF") as error:
        import_files([path], IDENTITY)
    assert "\n" not in str(error.value)


def test_every_cut_of_a_good_file_is_refused(tmp_path):
    (path,) = export_files(make_pack("joy", site="residual"), "gguf", tmp_path / "joy.gguf", "joy")
    whole = path.read_bytes()
    assert import_files([path], IDENTITY)
    for keep in range(0, len(whole) - 64, 97):
        path.write_bytes(whole[:keep])
        with pytest.raises(PackError):
            import_files([path], IDENTITY)
