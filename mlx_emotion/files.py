"""Where the user's files live, the configuration, and writing that leaves no half file behind."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import MLXEmotionError, UsageError

HOME_VARIABLE = "MLX_EMOTION_HOME"
APP = "mlx-emotion"
MAX_TEXT = 16 << 20
"""Bytes that a file of settings may have."""


def user_path(given: str) -> Path:
    """The path that a user means; ``~`` is their home. Raises ``UsageError`` for the home of nobody."""
    try:
        return Path(given).expanduser()
    except RuntimeError:
        raise UsageError(f"{given}: there is no such user here") from None


def _folder(kind: str) -> Path:
    if home := os.environ.get(HOME_VARIABLE):
        return user_path(home) / kind
    import platformdirs

    # On a Mac config and data share one folder; the file names below stay distinct.
    return Path(
        {
            "config": platformdirs.user_config_dir,
            "data": platformdirs.user_data_dir,
            "cache": platformdirs.user_cache_dir,
        }[kind](APP)
    )


def config_file() -> Path:
    """The TOML file with the user's settings."""
    return _folder("config") / "config.toml"


def packs_folder() -> Path:
    """Where ``extract`` puts packs and where they are looked for."""
    return _folder("data") / "packs"


def conversations_folder() -> Path:
    return _folder("data") / "conversations"


def extraction_folder() -> Path:
    """Unfinished extractions, to go on with."""
    return _folder("cache") / "extraction"


def all_paths() -> dict[str, Path]:
    """Every place this project keeps a user's files, by what is there."""
    return {
        "config": config_file(),
        "packs": packs_folder(),
        "conversations": conversations_folder(),
        "extraction": extraction_folder(),
    }


def load_config() -> dict[str, Any]:
    """The user's settings; empty without a file. Raises ``UsageError`` for a file that is not TOML."""
    path = config_file()
    return read_toml(path) if path.exists() else {}


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content. Raises ``UsageError`` with the line at fault."""
    import tomllib

    check_size(path, MAX_TEXT, UsageError, "settings and definitions are small files")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
        raise UsageError(f"{path}: not TOML: {error}") from None


@contextlib.contextmanager
def atomic_write(path: Path, error: type[MLXEmotionError] = MLXEmotionError) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well it takes ``path``'s place.

    On any exception, and if the machine stops, ``path`` is as it was. An ``OSError`` (no space, no
    permission) becomes ``error`` with one line.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files only their owner can read
        temporary.replace(path)
    except OSError as problem:
        raise error(f"cannot write {path}: {problem.strerror or problem}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What differs once another program has written ``path``; ``None`` where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def check_size(path: Path, most: int, error: type[MLXEmotionError], what: str) -> None:
    """Raise ``error``, which says ``what``, for a file of more than ``most`` bytes. One that is not there passes."""
    found = stamp(path)
    if found and found[1] > most:
        raise error(f"{path}: larger than {most >> 20} MiB; {what}")


def check_writable(path: Path, error: type[MLXEmotionError] = MLXEmotionError) -> None:
    """Raise ``error`` where no file can be written to ``path``; makes its folder."""
    if path.is_dir():
        raise error(f"cannot write {path}: it is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as problem:
        raise error(f"cannot write {path}: {problem.strerror or problem}") from None
