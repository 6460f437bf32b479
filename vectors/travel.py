"""Packs from and to the formats that others use: a file or several to one pack, a pack to files."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mlx_emotion.definitions import proper_name
from mlx_emotion.emotions import BASE
from mlx_emotion.errors import PackError, UsageError

from . import gguf_format, json_format
from .algebra import merge
from .pack import EmotionVectors, Identity, PackInfo

FORMATS = ("gguf", "json")


def import_files(
    paths: Iterable[str | Path], model: Identity, site: str | None = None, force: bool = False
) -> EmotionVectors:
    """One pack for ``model`` from the authors' JSON files or from GGUF control vectors, or folders of them.

    ``site`` is where the vectors act: ``attention`` for JSON, whose files do not say; always ``residual``
    for GGUF. ``force`` takes a GGUF that was written from another model's pack. Without calibration,
    intensity 1.0 is scale 1. Raises ``PackError`` or ``UsageError``.
    """
    files = [file for path in paths for file in _files(Path(path))]
    if not files:
        raise UsageError("nothing to import; give JSON or GGUF files, or a folder of them")
    packs: dict[str, EmotionVectors] = {}
    for file in files:
        pack = _import(file, model, site, force)
        (name,) = pack
        if name in packs and not np.array_equal(packs[name][name], pack[name]):
            raise PackError(f"{packs[name].path} and {file} both hold {name}; import one of them")
        packs[name] = pack
    return merge(packs.values())


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    suffixes = (json_format.SUFFIX, gguf_format.SUFFIX)
    # macOS keeps what a stick cannot in `._name` beside each file.
    found = sorted(f for f in path.iterdir() if f.suffix in suffixes and not f.name.startswith("."))
    if not found:
        raise PackError(f"{path}: no .json or .gguf file in this folder")
    return found


def _import(path: Path, model: Identity, site: str | None, force: bool) -> EmotionVectors:
    info: PackInfo | None = None
    norm: np.ndarray | None = None
    if path.suffix == gguf_format.SUFFIX:
        vector, info, norm = gguf_format.read(path, model, force)
        if site not in (None, "residual"):
            raise UsageError(f"{path}: a GGUF control vector acts on a layer's output, site residual, not {site}")
        site = "residual"
    elif path.suffix == json_format.SUFFIX:
        vector = json_format.read(path, model.layers, model.width)
    else:
        raise PackError(f"{path}: wanted a .json or a .gguf file, or a folder of them")
    name = next(iter(info.emotions)) if info else path.stem.rpartition("_")[2].lower()
    if name == BASE:
        raise PackError(f"{path}: the base vector is computed from the others; leave this file out")
    try:
        proper_name(name)
    except ValueError as error:
        raise PackError(f"{path}: {error}; the file's should be <prefix>_<emotion>{path.suffix}") from None
    if info is None:
        info = PackInfo(
            model=model,
            site=site or "attention",
            emotions={name: {"instructions": [], "count": 0, "scale": None}},
            method="imported",
            queries={"name": f"imported from {path.suffix[1:]} files"},
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
    pack = EmotionVectors({name: vector}, info, norm, path=path)
    if (wrong := pack.mismatches(model)) and not force:
        raise PackError(f"{path} was made for another model: {'; '.join(wrong)}; --force imports it all the same")
    info.model = model
    return pack


def export_files(pack: EmotionVectors, form: str, output: str | Path, emotion: str | None = None) -> list[Path]:
    """Write ``emotion`` to the file ``output``, or every emotion to ``<output's stem>_<emotion>`` beside it.

    ``form`` is ``gguf`` or ``json``. Where ``output`` is a folder, the files go there. Returns the files.
    Vectors are written as they are: their scale of intensity 1.0 travels in a GGUF's metadata, and not
    at all in JSON. Raises ``PackError`` or ``UsageError``.
    """
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}: known are {', '.join(FORMATS)}")
    output, suffix = Path(output), f".{form}"
    if output.is_dir():
        output = output / f"{pack.path.stem if pack.path else 'pack'}{suffix}"
        one = False
    else:
        one = emotion is not None
    stem = output.name.removesuffix(suffix)
    names = pack.only(emotion) if emotion is not None else pack
    written = []
    if form == "json" and (wrong := [n for n in names if "_" in n]):
        raise PackError(
            f"a JSON file's name ends with _ and its emotion, so {wrong[0]} would come back as another; use gguf"
        )
    for name in names:
        safe = re.sub(r"[^\w -]", "-", name)
        path = output if one else output.with_name(f"{stem}_{safe}{suffix}")
        if form == "gguf":
            gguf_format.write(path, pack, name)
        else:
            json_format.write(path, pack[name])
        written.append(path)
    return written
