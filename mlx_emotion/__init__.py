"""Local chat models that express emotion, under control.

    import mlx_emotion
    model = mlx_emotion.load()
    print(model.generate("I heard a noise upstairs.", feeling="fear").text)

Importing this costs next to nothing; MLX is loaded with the first model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compare import Answer as Answer
    from .emotions import CATALOGUE as CATALOGUE
    from .emotions import Emotion as Emotion
    from .emotions import Feeling as Feeling
    from .engine import hurry as hurry
    from .errors import Interrupted as Interrupted
    from .errors import MLXEmotionError as MLXEmotionError
    from .errors import ModelError as ModelError
    from .errors import PackError as PackError
    from .errors import StoreError as StoreError
    from .errors import UsageError as UsageError
    from .events import Done as Done
    from .events import FeelingChanged as FeelingChanged
    from .events import GuardTripped as GuardTripped
    from .events import Reading as Reading
    from .events import Thought as Thought
    from .events import Token as Token
    from .files import load_config as load_config
    from .library import Available as Available
    from .library import Step as Step
    from .library import available as available
    from .library import in_folders as in_folders
    from .library import make_pack as make_pack
    from .model import Chat as Chat
    from .model import Generation as Generation
    from .model import Model as Model
    from .model import extract as extract
    from .model import load as load
    from .models import default_model as default_model
    from .store import Conflict as Conflict
    from .store import Exchange as Exchange
    from .store import Reply as Reply
    from .store import Store as Store
    from .store import export_file as export_file
    from .vectors import EmotionVectors as EmotionVectors

__version__ = "0.1.0"

_HOMES = {
    "CATALOGUE": "emotions", "Emotion": "emotions", "Feeling": "emotions",
    "MLXEmotionError": "errors", "UsageError": "errors", "ModelError": "errors", "PackError": "errors",
    "StoreError": "errors", "Interrupted": "errors", "hurry": "engine",
    "Done": "events", "FeelingChanged": "events", "GuardTripped": "events", "Thought": "events",
    "Token": "events",
    "Reading": "events", "Answer": "compare", "load_config": "files",
    "Available": "library", "Step": "library", "available": "library", "in_folders": "library",
    "make_pack": "library", "default_model": "models", "export_file": "store",
    "Conflict": "store", "Exchange": "store", "Reply": "store", "Store": "store",
    "Chat": "model", "Generation": "model", "Model": "model", "extract": "model", "load": "model",
    "EmotionVectors": "vectors",
}  # fmt: skip
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
