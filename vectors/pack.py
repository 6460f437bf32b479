"""The pack format: safetensors with one float32 array ``[L, d]`` an emotion, and JSON metadata.

Tensors: ``ev.<emotion>`` ``[L, d]``; ``activation_norm`` ``[L]``, the mean norm of the tapped
activations over neutral response tokens; and, where the extraction kept them, ``samples.<emotion>``
``[N, L, d]`` float16, the shift of each query. The metadata is one JSON text under ``mlx_emotion``.
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_emotion.emotions import BASE, BASIC, GREY, Emotion, Feeling, catalogue, check_name
from mlx_emotion.errors import PackError
from mlx_emotion.files import atomic_write

SCHEMA = 1
MAX_HEADER = 4 << 20
MAX_LAYERS, MAX_WIDTH, MAX_EMOTIONS = 1024, 1 << 17, 512
SITES = ("attention", "residual")
MAX_DEPTH = 8
DTYPES = ("F32", "F16", "F64")
MAX_SCALE = float(np.finfo(np.float32).max)
MAX_TOLD = 8
"""How many wrong fields an error names."""
SMALLEST = 1 / 1024
"""The scale that calibration gives where none is fluent: so little is not felt."""


@dataclass(frozen=True)
class Identity:
    """What a model is, as far as a pack is concerned.

    ``fingerprint`` differs between quantisations and fine-tunes; ``layers`` and ``width`` are L and d.
    """

    id: str
    revision: str
    fingerprint: str
    architecture: str
    layers: int
    width: int


REQUIRED = ("model", "site", "emotions")
FIELDS: dict[str, type] = {
    "model": dict,
    "site": str,
    "emotions": dict,
    **dict.fromkeys(("positions", "method", "created"), str),
    **dict.fromkeys(("queries", "decoding", "calibration", "versions"), dict),
}


@dataclass
class PackInfo:
    """A pack's metadata.

    ``emotions`` maps each name to ``{"instructions": [...], "count": queries used, "scale": raw scale
    of intensity 1.0 or null}``, and for an emotion of a user's own also its ``valence``, ``arousal`` and
    ``colour``; ``base_scale`` is that scale for the base vector.
    """

    model: Identity
    site: str
    emotions: dict[str, dict[str, Any]]
    positions: str = "response"
    method: str = "mean"
    queries: dict[str, str] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    base_scale: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @property
    def catalogue(self) -> dict[str, Emotion]:
        """The pack's emotions: as it defines them, else as in the built-in catalogue."""
        own = {
            name: Emotion.custom(
                name,
                entry["valence"],
                entry["arousal"],
                entry.get("colour") or GREY,
                entry.get("instructions") or (),
            )
            for name, entry in self.emotions.items()
            if "valence" in entry
        }
        return catalogue(self.emotions.keys()) | own

    @classmethod
    def from_json(cls, text: str) -> PackInfo:
        """Raises ``ValueError`` that names every field which is missing or wrong."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("metadata is not an object")
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema {data.get('schema')!r:.60}, this version reads {SCHEMA}")
        if problems := list(_problems(data)):
            more = f"; and {len(problems) - MAX_TOLD} more" if len(problems) > MAX_TOLD else ""
            raise ValueError("; ".join(problems[:MAX_TOLD]) + more)
        return cls(**{**data, "model": Identity(**data["model"])})


def _problems(data: dict[str, Any]) -> Iterator[str]:
    """What is wrong with metadata, field by field."""
    if unknown := set(data) - {f.name for f in dataclasses.fields(PackInfo)}:
        yield f"unknown fields {', '.join(sorted(unknown))}"
    for name, kind in FIELDS.items():
        if name in data or name in REQUIRED:
            yield from _unlike(name, data.get(name), kind)
    if isinstance(data.get("site"), str) and data["site"] not in SITES:
        yield f"site {data['site']!r:.60}, wanted attention or residual"
    yield from _unlike_scale("base_scale", data.get("base_scale"))
    for name in ("queries", "versions"):
        if isinstance(data.get(name), dict) and not all(isinstance(v, str) for v in data[name].values()):
            yield f"field {name} has values that are not text"
    share = data["calibration"].get("share", 1.0) if isinstance(data.get("calibration"), dict) else 1.0
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        yield f"calibration.share is {share!r:.60}, wanted more than 0 and at most 1"
    if _depth(data) > MAX_DEPTH:
        yield f"metadata is nested more than {MAX_DEPTH} deep"
    model, emotions = data.get("model"), data.get("emotions")
    if isinstance(model, dict):
        for name, kind in Identity.__annotations__.items():
            yield from _unlike(f"model.{name}", model.get(name), {"str": str, "int": int}[kind])
        if unknown := set(model) - set(Identity.__annotations__):
            yield f"unknown fields {', '.join(f'model.{n}' for n in sorted(unknown))}"
        for name, most in (("layers", MAX_LAYERS), ("width", MAX_WIDTH)):
            if isinstance(model.get(name), int) and not 1 <= model[name] <= most:
                yield f"{name} is {model[name]!r:.60}, wanted 1 to {most}"
    if isinstance(emotions, dict):
        if not 1 <= len(emotions) <= MAX_EMOTIONS:
            yield f"emotions is {len(emotions)}, wanted 1 to {MAX_EMOTIONS}"
        for name, entry in emotions.items():
            yield from _problems_of(name, entry)


def _depth(value: Any) -> int:
    """How many objects and lists lie in one another, counted up to a little more than ``MAX_DEPTH``."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        level = [v for c in level for v in (c.values() if isinstance(c, dict) else c) if isinstance(v, dict | list)]
        depth += 1
    return depth


def _problems_of(name: str, entry: Any) -> Iterator[str]:
    """What is wrong with one emotion's metadata."""
    if not name.isprintable() or not name.strip():
        yield f"{name!r:.60} cannot be the name of an emotion"
    yield from _unlike(f"emotions.{name}", entry, dict)
    if not isinstance(entry, dict):
        return
    yield from _unlike(f"count of {name}", entry.get("count", 0), int)
    yield from _unlike_scale(f"scale of {name}", entry.get("scale"))
    for what in ("valence", "arousal") if "valence" in entry or "arousal" in entry else ():
        if not isinstance(entry.get(what), int | float) or not -1 <= entry[what] <= 1:
            yield f"{what} of {name} is {entry.get(what)!r:.60}, wanted -1 to 1"
    wordings = entry.get("instructions") or []
    if not isinstance(wordings, list) or not all(isinstance(w, str) for w in wordings):
        yield f"instructions of {name} are not a list of texts"
    colour = entry.get("colour") or GREY
    if not isinstance(colour, str) or not re.fullmatch("#[0-9a-fA-F]{6}", colour):
        yield f"colour of {name} is {colour!r:.60}, wanted #rrggbb"


def _unlike(name: str, value: Any, kind: type) -> Iterator[str]:
    """That ``value`` is no ``kind``, if so."""
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = {dict: "an object", str: "text", int: "a number"}[kind]
        yield f"field {name} is {'missing' if value is None else repr(value)[:60]}, wanted {wanted}"


def _unlike_scale(name: str, value: Any) -> Iterator[str]:
    if value is not None and not (isinstance(value, int | float) and abs(value) <= MAX_SCALE):
        yield f"{name} is {value!r:.60}, wanted a finite number or null"


class EmotionVectors(Mapping[str, np.ndarray]):
    """The emotion vectors of one model: name -> float32 array ``[L, d]``, layers counted from 0.

    ``pack["base"]`` is the mean of those of the basic five that the pack has.
    """

    def __init__(
        self,
        vectors: Mapping[str, np.ndarray],
        info: PackInfo,
        activation_norm: np.ndarray | None = None,
        samples: Mapping[str, np.ndarray] | None = None,
        path: Path | None = None,
    ) -> None:
        self._vectors = {k: np.asarray(v, np.float32) for k, v in vectors.items()}
        self.info = info
        shape = (info.model.layers,)
        self.activation_norm = np.zeros(shape, np.float32) if activation_norm is None else activation_norm
        self.samples = dict(samples or {})
        self.path = path
        problems = self._problems()
        if problems:
            raise PackError(f"{path or 'pack'}: " + "; ".join(problems))

    def __getitem__(self, name: str) -> np.ndarray:
        if name == BASE and name not in self._vectors:
            return self.base
        return self._vectors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def __repr__(self) -> str:
        i = self.info
        return f"EmotionVectors({', '.join(self)}; {i.model.id}, {i.site}, {i.model.layers}x{i.model.width})"

    @property
    def base(self) -> np.ndarray:
        """The base vector ``[L, d]``: the mean over the basic five (arXiv 2502.04075, section 3.1)."""
        names = [n for n in BASIC if n in self._vectors] or list(self._vectors)
        return np.mean([self._vectors[n] for n in names], axis=0)

    def scale(self, name: str) -> float:
        """The raw scale that is intensity 1.0 of ``name``; 1 for a pack that is not calibrated."""
        found = self.info.base_scale if name == BASE else self.info.emotions[name].get("scale")
        return 1.0 if found is None else float(found)

    @property
    def calibrated(self) -> bool:
        return all(e.get("scale") is not None for e in self.info.emotions.values())

    @property
    def doubts(self) -> str:
        """A line that says why intensity 1.0 may not be the full useful dose; empty where nothing says so."""
        if not self.calibrated:
            return (
                "this pack is not calibrated: intensity 1.0 is scale 1, which may be too weak or too strong; "
                "see `mlx-emotion calibrate`"
            )
        scales = {n: e["scale"] for n, e in self.info.emotions.items()} | {BASE: self.info.base_scale}
        least = 1.001 * SMALLEST * (self.info.calibration or {}).get("share", 1.0)  # scales are kept to four digits
        names = ", ".join(n for n, scale in scales.items() if scale is not None and scale <= least)
        if names:
            return (
                f"{names}: no scale was fluent, so intensity 1.0 does next to nothing; "
                "see what the model answers unsteered, or use --scale"
            )
        if self.info.base_scale is None:  # as after a merge that changed the base vector
            return "base is not calibrated: its intensity 1.0 is scale 1; see `mlx-emotion calibrate`"
        return ""

    def scales(self, feeling: Feeling, raw: float | None = None) -> dict[str, float]:
        """Raw scale per emotion of ``feeling``; ``raw`` replaces the calibrated scales by one number."""
        return {n: w * (self.scale(n) if raw is None else raw) for n, w in feeling.weights}

    def mix(self, scales: Mapping[str, float]) -> np.ndarray | None:
        """The weighted sum of vectors ``[L, d]`` float32, or ``None`` where every scale is 0."""
        parts = [np.float32(s) * self[n] for n, s in scales.items() if s]
        return np.asarray(np.sum(parts, axis=0, dtype=np.float32)) if parts else None

    def only(self, *emotions: str) -> EmotionVectors:
        """The same pack with ``emotions`` alone. Raises ``UsageError`` for one that it has not."""
        names = [check_name(n, self) for n in emotions]
        info = dataclasses.replace(self.info, emotions={n: self.info.emotions[n] for n in names})
        samples = {n: self.samples[n] for n in names if n in self.samples}
        return EmotionVectors({n: self[n] for n in names}, info, self.activation_norm, samples, self.path)

    def mismatches(self, model: Identity, site: str | None = None) -> list[str]:
        """Every way in which this pack is not for ``model``, as ``what: the pack's, the model's``."""
        own = self.info.model
        found = [
            f"{what}: pack {getattr(own, what)}, model {getattr(model, what)}"
            for what in ("architecture", "layers", "width", "fingerprint")
            if getattr(own, what) != getattr(model, what)
        ]
        if found and own.id != model.id:
            found.insert(0, f"id: pack {own.id}, model {model.id}")
        if site is not None and site != self.info.site:
            found.append(f"site: pack {self.info.site}, asked {site}")
        return found

    def fits(self, model: Identity) -> bool:
        """Whether the arrays have the model's shape, so that ``--force`` can go on."""
        return (self.info.model.layers, self.info.model.width) == (model.layers, model.width)

    def _problems(self) -> list[str]:
        info, problems = self.info, []
        shape = (info.model.layers, info.model.width)
        if missing := set(info.emotions) - set(self._vectors):
            problems.append(f"no vector for {', '.join(sorted(missing))}")
        if extra := set(self._vectors) - set(info.emotions):
            problems.append(f"no metadata for {', '.join(sorted(extra))}")
        for name, v in self._vectors.items():
            if v.shape != shape:
                problems.append(f"{name} has shape {v.shape}, wanted {shape}")
            elif not np.isfinite(v).all():
                problems.append(f"{name} has values that are not finite")
            elif not v.any():
                problems.append(f"{name} is all zero")
        problems += [f"samples of {n} are not finite" for n, s in self.samples.items() if not np.isfinite(s).all()]
        if self.activation_norm.shape != shape[:1]:
            problems.append(f"activation_norm has shape {self.activation_norm.shape}, wanted {shape[:1]}")
        elif not np.isfinite(self.activation_norm).all():
            problems.append("activation_norm has values that are not finite")
        return problems

    def save(self, path: str | Path) -> Path:
        """Write the pack, whole or not at all. Raises ``PackError``."""
        from safetensors.numpy import save_file

        tensors = {f"ev.{n}": np.ascontiguousarray(v) for n, v in self._vectors.items()}
        tensors["activation_norm"] = np.ascontiguousarray(self.activation_norm, np.float32)
        tensors |= {f"samples.{n}": np.ascontiguousarray(v, np.float16) for n, v in self.samples.items()}
        path = Path(path)
        try:
            with atomic_write(path, PackError) as temporary:
                save_file(tensors, temporary, {"mlx_emotion": self.info.to_json()})
        except Exception as error:
            if isinstance(error, PackError):
                raise
            raise PackError(f"cannot write {path}: {error}") from None
        self.path = path
        return path

    @classmethod
    def load(cls, path: str | Path, samples: bool = False) -> EmotionVectors:
        """Read and check a pack; ``samples`` also reads the per-query shifts. Raises ``PackError``."""
        path = Path(path)
        info = read_info(path)
        from safetensors import SafetensorError, safe_open

        vectors: dict[str, np.ndarray] = {}
        kept: dict[str, np.ndarray] = {}
        norm = None
        limit = info.model.layers * info.model.width
        try:
            with safe_open(path, "numpy") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    kind, _, name = key.partition(".")
                    part = file.get_slice(key)
                    shape = tuple(part.get_shape())
                    if part.get_dtype() not in DTYPES:  # numpy has no names for some of the others
                        raise PackError(f"{path}: tensor {key!r:.60} is {part.get_dtype()}, wanted F32")
                    size = int(np.prod(shape, dtype=np.int64))
                    if kind == "ev" and size <= limit:
                        vectors[name] = file.get_tensor(key)
                    elif kind == "samples" and name in info.emotions and len(shape) == 3 and size == shape[0] * limit:
                        if samples:
                            kept[name] = file.get_tensor(key)
                    elif key == "activation_norm" and size <= MAX_LAYERS:
                        norm = file.get_tensor(key)
                    else:
                        one = (info.model.layers, info.model.width)
                        wanted = (
                            f"samples.<emotion> (n, {one[0]}, {one[1]})" if kind == "samples" else f"ev.<emotion> {one}"
                        )
                        raise PackError(f"{path}: tensor {key!r:.60} has shape {shape}, wanted {wanted}")
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise PackError(f"{path}: not a readable pack: {error}") from None
        return cls(vectors, info, norm, kept, path)


def read_info(path: str | Path) -> PackInfo:
    """A pack's metadata alone, without its arrays. Raises ``PackError``."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            if len(head) < 8:
                raise PackError(f"{path}: not a pack: the file has only {len(head)} bytes")
            (length,) = struct.unpack("<Q", head)
            if length > MAX_HEADER:
                raise PackError(f"{path}: not a pack: its header would have {length} bytes")
            raw = file.read(length)
    except FileNotFoundError:
        raise PackError(f"{path}: no such pack; `mlx-emotion vectors list` shows those on this machine") from None
    except OSError as error:
        raise PackError(f"{path}: {error.strerror or error}") from None
    try:
        if len(raw) < length:
            raise ValueError("the file is cut short")
        header = json.loads(raw)
        text = header.get("__metadata__", {}).get("mlx_emotion")
        if text is None:
            raise ValueError("no mlx_emotion metadata")
        return PackInfo.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PackError(f"{path}: not a pack: {error}") from None


def shipped_packs() -> Path:
    """The folder of the packs that come with the package."""
    return Path(__file__).parent / "packs"
