"""Packs: one file with the emotion vectors of one model."""

from .pack import EmotionVectors, Identity, PackInfo, read_info, shipped_packs

__all__ = ["EmotionVectors", "Identity", "PackInfo", "read_info", "shipped_packs"]
