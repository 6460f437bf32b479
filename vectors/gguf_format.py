"""GGUF control vectors, as llama.cpp reads them and repeng writes them: one emotion a file.

A tensor ``direction.N`` ``[d]`` float32 is added to the output of decoder layer N, counted from 0.
llama.cpp leaves layers without one alone and refuses ``direction.0``, so layer 0's vector travels in
the metadata. Because they act on a layer's output, only packs of site ``residual`` convert.

Keys of our own: ``mlx_emotion.pack``, the metadata as JSON of a pack with this emotion alone;
``mlx_emotion.layer_0`` ``[d]`` and ``mlx_emotion.activation_norm`` ``[L]``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from mlx_emotion.errors import PackError
from mlx_emotion.files import atomic_write

from .pack import EmotionVectors, Identity, PackInfo

SUFFIX = ".gguf"
KIND = "controlvector"
OWN = "mlx_emotion"
SPARE = 16 << 20
"""Bytes of a file that may be something else than vectors."""


# llama.cpp's names of architectures where they are not ours without dashes.
LLAMA_CPP = {
    "cohere": "commandr", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "gemma3_text": "gemma3",
    "mistral": "llama", "mixtral": "llama", "phi": "phi2",
}  # fmt: skip


def read(path: Path, model: Identity, force: bool = False) -> tuple[np.ndarray, PackInfo | None, np.ndarray | None]:
    """(vector ``[L, d]`` float32, metadata, activation norm ``[L]``) of a control vector for ``model``.

    The latter two are ``None`` in a file that this project did not write. ``force`` takes one whose hint names
    another architecture. Raises ``PackError``.
    """
    fields, tensors = _open(path, model)
    found = np.zeros((model.layers, model.width), np.float32)
    for name, value in tensors.items():
        match = re.fullmatch(r"direction\.(\d{1,6})", name)
        if not match:
            raise PackError(f"{path}: tensor {name!r:.60}, wanted only direction.N; this is not a control vector")
        layer = int(match[1])
        if layer >= model.layers:
            raise PackError(f"{path}: {name} is beyond {model.id}, which has layers 0 to {model.layers - 1}")
        if value.dtype not in (np.float32, np.float16) or value.shape != (model.width,):
            raise PackError(
                f"{path}: {name} is {value.dtype} {value.shape}, wanted float32 or float16 ({model.width},)"
            )
        found[layer] = value
    if not tensors:
        raise PackError(f"{path}: no tensor direction.N; this is not a control vector")
    text = fields.get(f"{OWN}.pack")
    if text is None:
        hint = fields.get(f"{KIND}.model_hint")
        names = {model.architecture, LLAMA_CPP.get(model.architecture, model.architecture)}
        if not force and hint is not None and _plain(hint) not in map(_plain, names):
            raise PackError(
                f"{path}: made for architecture {hint!s:.60}, {model.id} is {model.architecture}; "
                "--force imports it all the same"
            )
        return found, None, None
    try:
        info = PackInfo.from_json(text)
        if len(info.emotions) != 1 or len(tensors) < model.layers - 1:
            raise ValueError(
                f"{len(info.emotions)} emotions and {len(tensors)} layers, wanted 1 and {model.layers - 1}"
            )
        first = np.array(fields[f"{OWN}.layer_0"], np.float32)
        norm = np.array(fields[f"{OWN}.activation_norm"], np.float32)
        if first.shape != (model.width,) or norm.shape != (model.layers,):
            raise ValueError(f"{OWN}.layer_0 or {OWN}.activation_norm has the wrong length")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PackError(f"{path}: its {OWN} metadata is broken: {error}") from None
    found[0] = first
    return found, info, norm


def _plain(architecture: Any) -> str:
    return re.sub(r"[-_]", "", str(architecture).lower())


def _open(path: Path, model: Identity) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A control vector's metadata and tensors. A file of another kind is told from its size or first fields."""
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):
        # gguf 0.19 reads on beyond the end of a short file, as often as a count in it says.
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
            found = super()._get(offset, dtype, count, override_order)
            if len(found) < count:
                raise ValueError("the file is cut short")
            return found

        # It also makes an object for each item of an array.
        items = 0

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == GGUFValueType.ARRAY:
                self.items += int(self._get(orig_offs + 4, np.uint64)[0])
                if self.items > 4 * (model.layers + model.width):
                    raise PackError(f"{path}: not a GGUF control vector: its arrays are too long; is it a model?")
            return super()._get_field_parts(orig_offs, raw_type)

    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise PackError(f"{path}: {error.strerror or error}") from None
    if magic != b"GGUF":
        raise PackError(f"{path}: not a GGUF file")
    if size > 4 * model.layers * model.width + SPARE:
        raise PackError(f"{path}: {size >> 20} MiB is too much for a control vector of {model.id}; is it a model?")
    try:
        reader = Reader(path)
        fields = {k: f.contents() for k, f in reader.fields.items()}
        tensors = {t.name: np.array(t.data) for t in reader.tensors}
    except PackError:
        raise
    except Exception as error:  # the reader raises whatever its arithmetic on a broken file does
        raise PackError(f"{path}: not a readable GGUF file: {error}".splitlines()[0]) from None
    kind = fields.get("general.architecture")
    if kind != KIND:
        raise PackError(f"{path}: a GGUF of kind {kind!r:.60}, wanted {KIND!r}; a model is not a control vector")
    return fields, tensors


def write(path: Path, pack: EmotionVectors, emotion: str) -> None:
    """Write one emotion of a ``residual`` pack. Raises ``PackError``."""
    from gguf import GGUFWriter

    if pack.info.site != "residual":
        raise PackError(
            f"{pack.path or 'this pack'} is of site {pack.info.site}, but a GGUF control vector is added to a layer's "
            "output; only packs made with `extract --site residual` convert"
        )
    info, vector = pack.only(emotion).info, pack[emotion]
    with atomic_write(path, PackError) as temporary:
        writer = GGUFWriter(temporary, KIND)
        try:
            writer.add_string(f"{KIND}.model_hint", info.model.architecture)
            writer.add_uint32(f"{KIND}.layer_count", len(vector) - 1)
            writer.add_string(f"{OWN}.pack", info.to_json())
            writer.add_array(f"{OWN}.layer_0", vector[0].tolist())
            writer.add_array(f"{OWN}.activation_norm", pack.activation_norm.tolist())
            for layer in range(1, len(vector)):
                writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(vector[layer]))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
