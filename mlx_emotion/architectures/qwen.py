"""The tokenizer of Qwen (v1), whose own is Python code in the model's folder; the model is mlx-lm's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# In this order, they follow the ranks of the vocabulary file.
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]


def make_tokenizer(path: Path) -> Any:
    """Qwen's tokenizer from its ``qwen.tiktoken``. A reply ends with ``<|im_end|>`` or ``<|endoftext|>``."""
    from .vocabularies import from_tiktoken

    return from_tiktoken(path / "qwen.tiktoken", PATTERN, SPECIAL, end="<|im_end|>")
