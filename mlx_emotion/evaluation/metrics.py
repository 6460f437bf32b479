"""The numbers of the two papers, as plain functions of plain values. Nothing here needs a model.

Definitions: arXiv 2502.04075, section 4 (emotion scores), and arXiv 2504.14706 (circumplex cosine).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..guard import LoopDetector, distinct_2

LOW_DISTINCT = 0.3
"""Answers whose distinct-2 is below this count as repetitive."""

EAS_EMOTIONS = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
EPS_LABELS = ("emotionless", "neutral", "emotional")
PAPER_TABLES: dict[str, Any] = json.loads(Path(__file__).with_name("paper_tables.json").read_text(encoding="utf-8"))


def emotion_absolute(scores: Mapping[str, float]) -> float:
    """EAS of one answer: the sum of (score / 100)² over the six emotions; scores are 0 to 100."""
    return sum((scores[e] / 100) ** 2 for e in EAS_EMOTIONS)


def cosine_of_angles(a: float, b: float) -> float:
    """Cosine between two directions of the circumplex, in degrees."""
    return math.cos(math.radians(a - b))


# Chinese and Japanese are written without spaces, and so may be a text that fell apart.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER, _MARK = rf"[^\W{_CJK}]", r"[^\w\s]"
# A word has at most four parts ("state-of-the-art"), and five marks in a row: more is no longer a word's.
_WORDS = re.compile(rf"{_MARK}{{0,5}}{_LETTER}+(?:{_MARK}{{1,5}}{_LETTER}+){{0,3}}{_MARK}{{0,5}}|[{_CJK}]|{_MARK}")


def words(text: str) -> list[str]:
    """What repetition is measured on, in lower case: words, and what stands for words where there are none.

    A word is what lies between blanks, with the marks on it ("don't", "well..."). Each Chinese or Japanese
    character is an item of its own, and so is each mark that is on no word.
    """
    return _WORDS.findall(text.lower())


def repetition(text: str) -> tuple[float, int] | tuple[None, None]:
    """(distinct-2 of the ``words``, 1 if they end in a loop, else 0); no values for a text without any."""
    items = words(text)
    if not items:
        return None, None
    detector, looping = LoopDetector(), False
    codes: dict[str, int] = {}
    for item in items:
        looping = detector.add(codes.setdefault(item, len(codes)))
    return distinct_2(items), int(looping)


_STOP_TEXT = """
    about above after again against also always another because been before being below between both cannot could
    does doing down during each else even ever every from further give given goes going have having here hers him
    himself how into itself just know like made make many more most much must myself never next only other ought
    ours over really said same says should some still such take tell than that their theirs them then there these
    they thing think this those through under until upon very want were what when where which while whom will with
    would your yours yourself you're i'd i've don't it's what's
"""
_STOP_WORDS = frozenset(_STOP_TEXT.split())
STEM = 5


def topic_words(text: str) -> set[str]:
    """The words that carry a text's topic, cut to their first five letters so that endings do not matter."""
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower().replace("\u2019", "'"))
    return {w[:STEM] for w in words if len(w) >= 4 and w not in _STOP_WORDS}


def overlaps(question: str, answer: str) -> int:
    """1 if the answer takes up at least one topic word of the question, or the question has none."""
    wanted = topic_words(question)
    return int(not wanted or bool(wanted & topic_words(answer)))


# Names as they are in model ids -> (row in the papers' tables 2 to 5, row in table 6).
_PAPER_MODELS = (
    (r"llama-?3\.1-8b-instruct", "Llama3.1", None),
    (r"llama-?2-7b-chat", "Llama2", "Llama2-7B"),
    (r"llama-?2-13b-chat", None, "Llama2-13B"),
    (r"qwen2\.5-7b-instruct", "Qwen2.5", "Qwen2.5-7B"),
    (r"qwen2-7b-instruct", "Qwen2", None),
    (r"qwen1\.5-7b-chat", "Qwen1.5", None),
    (r"qwen-7b-chat", "Qwen", None),
    (r"baichuan2-7b-chat", "Baichuan2", None),
    (r"yi-6b-chat", "Yi", None),
    (r"vicuna-7b-v1\.5", "Vicuna", None),
    (r"gemma-7b-it", "Gemma", None),
    (r"minicpm3-4b", "MiniCPM", "MiniCPM"),
)
# What may come after the name: how the weights are stored, never what else was done to them.
_STORED = (
    r"hf|mlx|quantized|gptq|awq|gguf|bnb|dwq|dynamic|mixed|fp8|fp16|fp32|bf16|f16|f32|w\d+a\d+|(?:mx|nv)fp\d+"
    r"|int\d|q\d(?:_\w+)?|\d-?bits?|gs?\d+|group\d+"
)


def paper_rows(model: str) -> tuple[str | None, str | None]:
    """The names of ``model``'s rows in the paper's tables 2 to 5 and in its table 6, where it is one of theirs."""
    name = model.lower().rpartition("/")[2]
    for pattern, base, table6 in _PAPER_MODELS:
        # The whole name: DeepSeek-R1-Distill-Qwen-7B, base models and further fine-tunes are other models.
        if re.fullmatch(rf"(?:meta-|quantized-)?{pattern}(?:[-_.](?:{_STORED}))*", name):
            return base, table6
    return None, None
