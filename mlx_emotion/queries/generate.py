"""Write queries with a chat model: one short scenario question at a time (arXiv 2502.04075, section 3.1)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..session import Voice

# Asked for the same thing again and again, a model writes the same few questions; each of these turns
# it another way. Their numbers have no common divisor, so that all pairs come up.
TOPICS = (
    "work", "family", "a neighbour", "a journey", "money", "food", "health", "school", "an old friend", "the weather",
    "a pet", "a letter", "a mistake", "a holiday", "the house", "a stranger", "music", "a promise", "a child", "sleep",
    "a shop", "a decision", "the telephone", "a birthday", "moving house", "a game", "the garden",
    "a photograph", "a queue",
)  # fmt: skip
SHAPES = (
    "Begin with one sentence that tells what has happened.",
    "Let it be about the one who answers.",
    "Let it be about someone else.",
    "Ask for advice.",
    "Ask what the other would say.",
    "Be brief.",
    "Name a place.",
)
PROMPT = (
    "Write one short question to ask someone, about {topic}. The answer to it may show {emotion} strongly, or be quite "
    "plain; do not use the word {emotion} or any word like it. {shape} Give only the question."
)
WORDS = (4, 60)
ATTEMPTS = 10
"""How many answers may be asked for, for each query wanted."""
ALIKE = 0.8
"""Two questions that share this much of their words are the same question."""

Ask = Callable[[Iterator[str]], Iterator[str]]


def prompts(emotion: str) -> Iterator[str]:
    """Endless prompts that ask for one query each."""
    for n in itertools.count():
        topic, shape = TOPICS[n % len(TOPICS)], SHAPES[n % len(SHAPES)]
        yield PROMPT.format(topic=topic, emotion=emotion, shape=shape)


def question(answer: str, emotion: str) -> str | None:
    """The question in a model's answer, or ``None`` where there is none that can be used."""
    lines = [line.strip() for line in answer.strip().splitlines() if line.strip()]
    text = next((line for line in lines if line.rstrip("\"'”’*").endswith("?")), "")
    text = re.sub(r"^(?:[-*•]|\d+[.)]|(?:question|q)\s*\d*:)\s*", "", text.strip("\"'“”‘’* "), flags=re.IGNORECASE)
    text = re.sub(r"\s+", " ", text.strip("\"'“”‘’* "))
    if not WORDS[0] <= len(text.split()) <= WORDS[1] or not text.endswith("?"):
        return None
    return None if emotion.lower() in text.lower() else text


class Distinct:
    """Questions, each said only once: two that share most of their words count as one. ``known`` stay, all of them."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self.questions = list(known)
        self._words = [_words(text) for text in self.questions]

    def add(self, text: str) -> None:
        """Take ``text`` in, unless it is there already."""
        words = _words(text)
        if any(len(words & other) >= ALIKE * len(words | other) for other in self._words):
            return
        self.questions.append(text)
        self._words.append(words)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def generate(
    emotion: str,
    count: int,
    ask: Ask,
    known: Iterable[str] = (),
    progress: Callable[[list[str]], None] | None = None,
) -> list[str]:
    """Up to ``count`` distinct questions for ``emotion``, all of ``known`` first.

    ``ask`` turns prompts into answers, in any order. Fewer than ``count`` come back where the model
    repeats itself, or does not write questions, ``ATTEMPTS`` times for each that is wanted. ``progress`` is told
    after each answer what there is.
    """
    found = Distinct(known)
    missing = max(0, count - len(found.questions))
    if missing:
        for answer in ask(itertools.islice(prompts(emotion), ATTEMPTS * missing)):
            text = question(answer, emotion)
            if text is not None:
                found.add(text)
            if progress:
                progress(found.questions)
            if len(found.questions) >= count:
                break
    return found.questions


def asker(voice: Voice, batch_size: int, temperature: float, stopped: Callable[[], bool]) -> Ask:
    """Ask the model of ``voice``, unsteered. Runs on the thread that owns MLX."""
    from ..batch import Finished, Job, run_batch

    def ask(texts: Iterator[str]) -> Iterator[str]:
        template = voice.loaded.template
        jobs = (
            Job(n, template.encode(template.render([{"role": "user", "content": text}])))
            for n, text in enumerate(texts)
        )
        for answer in run_batch(
            voice, jobs, batch_size=batch_size, max_tokens=128, temperature=temperature, top_p=0.95, stopped=stopped
        ):
            assert isinstance(answer, Finished)
            yield answer.text

    return ask
