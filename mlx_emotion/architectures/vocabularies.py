"""Tokenizers made from bare vocabulary files, without running the Python code that some models bring for it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError

CONTROL, USER_DEFINED = 3, 4  # sentencepiece's piece types


def merges_of(ranks: Mapping[Any, float]) -> list[tuple[Any, Any]]:
    """The merges of a byte-pair vocabulary (piece -> rank, lower first): every split of a piece into two pieces."""
    merges = []
    for piece, rank in ranks.items():
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        found = [(a, b) for a, b in splits if a in ranks and b in ranks]
        merges += [(rank, ranks[a], ranks[b], a, b) for a, b in found]
    return [(a, b) for *_, a, b in sorted(merges, key=lambda m: m[:3])]


def from_sentencepiece(file: Path, special: str = "(?!)") -> Any:
    """A transformers tokenizer that encodes as the byte-pair sentencepiece model in ``file``.

    Control pieces, and those whose whole text matches the pattern ``special``, are special tokens.
    Raises ``ModelError``.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror or error}") from None
    except Exception:  # protobuf's DecodeError has moved between versions
        raise ModelError(f"{file}: not a sentencepiece model") from None
    if proto.trainer_spec.model_type != 2:
        raise ModelError(f"{file}: not a byte-pair sentencepiece model")
    pieces = [p.piece for p in proto.pieces]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    plain = {p.piece: -p.score for p in proto.pieces if p.type not in (CONTROL, USER_DEFINED) and p.piece != "<unk>"}
    spec = proto.normalizer_spec
    raw = Tokenizer(
        models.BPE(vocabulary, merges_of(plain), unk_token=pieces[proto.trainer_spec.unk_id], fuse_unk=True,
                   byte_fallback=proto.trainer_spec.byte_fallback)
    )  # fmt: skip
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    raw.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    undo: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*undo, *([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else [])])
    named = re.compile(special)
    raw.add_special_tokens(
        [
            AddedToken(p.piece, normalized=False, special=True)
            for p in proto.pieces
            if p.type == CONTROL or named.fullmatch(p.piece)
        ]
    )
    raw.add_tokens(
        [
            AddedToken(p.piece, normalized=False)
            for p in proto.pieces
            if p.type == USER_DEFINED and not named.fullmatch(p.piece)
        ]
    )
    t = proto.trainer_spec
    names = {"unk_token": t.unk_id, "bos_token": t.bos_id, "eos_token": t.eos_id, "pad_token": t.pad_id}
    known = {name: pieces[i] for name, i in names.items() if i >= 0}
    return PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False, **known)


def from_tiktoken(file: Path, pattern: str, special: Sequence[str], end: str) -> Any:
    """A transformers tokenizer that encodes as the tiktoken vocabulary in ``file`` (lines of base64 and rank).

    ``pattern`` cuts text into words; the ``special`` tokens follow the ranks; ``end`` is the one that
    ends a turn. Raises ``ModelError``.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    try:
        lines = file.read_bytes().split(b"\n")
        ranks = {
            base64.b64decode(token, validate=True): int(rank) for token, rank in map(bytes.split, filter(None, lines))
        }
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror or error}") from None
    except ValueError:
        raise ModelError(f"{file}: not a tiktoken vocabulary; each line is a token in base64 and its rank") from None
    letters = bytes_to_unicode()

    def text(token: bytes) -> str:
        return "".join(letters[b] for b in token)

    vocabulary = {text(token): rank for token, rank in ranks.items()}
    merges = [(text(a), text(b)) for a, b in merges_of(ranks)]
    raw = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=end, pad_token=special[0], clean_up_tokenization_spaces=False
    )
