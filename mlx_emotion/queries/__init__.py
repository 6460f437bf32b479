"""The query sets that come with the package, and reading a user's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..emotions import BASE
from ..errors import QueryError
from ..files import check_size

MAX_BYTES = 64 << 20
SETS = ("extraction", "evaluation")


def shipped(name: str = "extraction") -> tuple[dict[str, list[str]], dict[str, str]]:
    """A set of this package and its ``{"name", "sha256"}``."""
    return read(Path(__file__).parent / f"{name}.json", name)


def read(path: str | Path, name: str | None = None) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Read queries in the papers' format: one JSON object, emotion -> list of questions.

    Returns the object and ``{"name", "sha256"}`` of the file. Raises ``QueryError``.
    """
    data, source = load(path)
    return check(data, path), source | ({"name": name} if name else {})


def load(path: str | Path) -> tuple[Any, dict[str, str]]:
    """What a JSON file of queries holds, unchecked, and its ``{"name", "sha256"}``. Raises ``QueryError``."""
    path = Path(path)
    check_size(path, MAX_BYTES, QueryError, "a query file is a small JSON object")
    try:
        raw = path.read_bytes()
        return json.loads(raw), {"name": path.name, "sha256": hashlib.sha256(raw).hexdigest()}
    except OSError as error:
        raise QueryError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise QueryError(f"{path}: not JSON: {error}") from None


def check(data: Any, path: str | Path) -> dict[str, list[str]]:
    """``data`` if it is a query set. Raises ``QueryError``, which names ``path``."""
    if not isinstance(data, dict) or not data:
        raise QueryError(f'{path}: wanted one JSON object, {{"emotion": ["question", ...], ...}}')
    for emotion, questions in data.items():
        if not isinstance(emotion, str) or emotion == BASE or not emotion.isprintable() or not emotion.strip():
            raise QueryError(f"{path}: {emotion!r} cannot be the name of an emotion")
        if not isinstance(questions, list) or not questions:
            raise QueryError(f"{path}: {emotion!r} must be a list of questions that is not empty")
        for n, question in enumerate(questions):
            if not isinstance(question, str) or not question.strip():
                raise QueryError(f"{path}: question {n} of {emotion!r} is {question!r}, wanted text that is not empty")
            try:
                question.encode()
            except UnicodeEncodeError:
                raise QueryError(f"{path}: question {n} of {emotion!r} has half a character in it") from None
    return data
