"""Model code that mlx-lm lacks, and tokenizers of models that otherwise bring Python code of their own.

A module here is named after the ``model_type`` it serves. With ``Model`` and ``ModelArgs`` it stands in
for a model file of mlx-lm, offered through the ``get_model_classes`` argument of its loader; with
``make_tokenizer(path)`` it replaces remote tokenizer code.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import ModelError

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper


def _module(config: dict[str, Any]) -> ModuleType | None:
    name = str(config.get("model_type", ""))
    if not name.isidentifier() or importlib.util.find_spec(f"{__name__}.{name}") is None:
        return None
    return importlib.import_module(f"{__name__}.{name}")


def find_classes(config: dict[str, Any]) -> tuple[type, type] | None:
    """(Model, ModelArgs) of this package's module named after ``model_type``; ``None`` if mlx-lm has to serve."""
    module = _module(config)
    return (module.Model, module.ModelArgs) if hasattr(module, "Model") else None  # type: ignore[union-attr]


def find_tokenizer(config: dict[str, Any], path: Path) -> TokenizerWrapper | None:
    """The tokenizer of the model in ``path``, made here from its vocabulary file; ``None`` if transformers can."""
    module = _module(config)
    if not hasattr(module, "make_tokenizer") or (path / "tokenizer.json").is_file():
        return None
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    ends = config.get("eos_token_id")
    return TokenizerWrapper(
        module.make_tokenizer(path),  # type: ignore[union-attr]
        eos_token_ids=[ends] if isinstance(ends, int) else ends,
    )


def convert(
    source: str | Path, output: str | Path, bits: int | None = None, group_size: int | None = None, mode: str = "affine"
) -> None:
    """Quantise the model in the folder ``source`` into a new folder: ``mlx_lm.convert`` for what only we can load.

    ``bits`` and ``group_size`` are those of mlx-lm for this ``mode`` by default. Raises ``ModelError`` where
    ``output`` exists.
    """
    from mlx_lm.utils import load_config, load_model, load_tokenizer, quantize_model, save

    source, output = Path(source), Path(output)
    if output.exists():
        raise ModelError(f"{output} is there already; give a new folder")
    own: Any = {"get_model_classes": find_classes} if find_classes(load_config(source)) else {}
    model, config = load_model(source, lazy=True, **own)
    tokenizer = find_tokenizer(config, source) or load_tokenizer(source, eos_token_ids=config.get("eos_token_id"))
    model, config = quantize_model(model, config, group_size, bits, mode)
    save(output, source, model, tokenizer, config)
