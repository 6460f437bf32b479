"""The JSON files of arXiv 2502.04075's authors: one emotion a file, named ``<prefix>_<emotion>.json``.

Each is an object whose keys are layer numbers as text, "0" to L - 1, and whose values are ``[[d
numbers]]``. They say nothing of the model, the site or the scale; the authors' are read and added at
the self-attention's output.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mlx_emotion.errors import PackError
from mlx_emotion.files import atomic_write

SUFFIX = ".json"
NUMBER, SPARE = 64, 1 << 20
"""Bytes that a number may take, and all else."""


def read(path: Path, layers: int, width: int) -> np.ndarray:
    """One emotion's vector ``[layers, width]`` float32. Raises ``PackError`` with the file and the layer."""
    try:
        size = path.stat().st_size
        if size > NUMBER * layers * width + SPARE:
            raise PackError(f"{path}: {size >> 20} MiB is too much for one vector of {layers} layers of {width}")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise PackError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise PackError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict) or not data:
        raise PackError(f'{path}: wanted one JSON object, {{"0": [[numbers]], "1": [[numbers]], ...}}')
    wanted = [str(layer) for layer in range(layers)]
    if missing := [k for k in wanted if k not in data]:
        raise PackError(f"{path}: no vector for layer {', '.join(missing[:8])}; the model has layers 0 to {layers - 1}")
    if len(data) > layers:
        extra = [k for k in data if k not in set(wanted)]
        raise PackError(f"{path}: unknown layer {extra[0]!r:.40}; the model has layers 0 to {layers - 1}")
    return np.stack([_row(path, key, data[key], width) for key in wanted])


def _row(path: Path, layer: str, value: Any, width: int) -> np.ndarray:
    try:
        row = np.array(value)
    except (ValueError, OverflowError):  # ragged
        row = np.array(None)
    if row.dtype.kind not in "fiu":
        raise PackError(f"{path}: layer {layer} is not [[numbers]]")
    if row.shape not in ((1, width), (width,)):
        raise PackError(f"{path}: layer {layer} has shape {row.shape}, wanted (1, {width}) for this model")
    with np.errstate(over="ignore"):
        row = row.astype(np.float32).reshape(width)
    if not np.isfinite(row).all():
        raise PackError(f"{path}: layer {layer} has values that are not finite in float32")
    return row


def write(path: Path, vector: np.ndarray) -> None:
    """Write ``vector`` ``[L, d]``, exact in float32. Raises ``PackError``."""
    data = {str(layer): [row.tolist()] for layer, row in enumerate(np.asarray(vector, np.float32))}
    with atomic_write(path, PackError) as temporary:
        temporary.write_text(json.dumps(data), encoding="utf-8")
