"""Model code that mlx-lm lacks, offered to it through the ``get_model_classes`` argument of its loader."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def find_classes(config: dict[str, Any]) -> tuple[type, type] | None:
    """(Model, ModelArgs) of this package's module named after ``model_type``; ``None`` if mlx-lm has to serve."""
    name = str(config.get("model_type", ""))
    if not name.isidentifier() or importlib.util.find_spec(f"{__name__}.{name}") is None:
        return None
    module = importlib.import_module(f"{__name__}.{name}")
    return module.Model, module.ModelArgs
