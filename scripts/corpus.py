"""Read and check the topic files of the embedded model's corpus.

Run alone, it checks every file, or the files named, and prints each problem as
``file:line: problem``; the exit status is 1 if there is one. The format is in
``scripts/topics/README.md``.
"""

from __future__ import annotations

import collections
import itertools
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlx_emotion.emotions import CATALOGUE, INSTRUCTIONS

EMOTIONS = tuple(CATALOGUE)
FOLDER = Path(__file__).parent / "topics"
WORDINGS = Path(__file__).parent / "wordings.json"
STEERED = 0.75  # share of the emotional dialogues that have vectors in place of an instruction
GAP, TELLING = 0.15, 0.3  # share of a word's lines in one topic: leaves a gap in a frame; tells the topic
WORD = 0.3  # weight of a word listed in `words` beside those
ANSWERS = 3  # to the last message of a dialogue, side by side
SHOWN = (0.2, 0.7)  # dose from which an emotion may show, and from which it does
MOST = 1.6  # largest dose

# Section name -> fewest lines. `held out` must have exactly that many.
SECTIONS = {
    "words": 6,
    "questions": 12,
    "held out": 2,
    "plain": 8,
    **dict.fromkeys(EMOTIONS, 6),
    "more plain": 4,
    **{f"more {emotion}": 3 for emotion in EMOTIONS},
}
CHOICE = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
STRAY = re.compile(r"[\[\]{}<>|_*]|\b(TODO|XXX|FIXME)\b")
GAPS = {"naming": ("thing",), **dict.fromkeys(("emotional", "little", "very"), ("noun", "adjective"))}
"""The gaps that wordings may have, by kind."""
ALLOWED = re.compile(r"[ -~’—–…éèêïöüàç°€£]*")


@dataclass(frozen=True)
class Line:
    """One written line: ``text`` with its choices still in it, and where it stands."""

    text: str
    number: int


@dataclass
class Topic:
    """One file: its name, its keywords and its sections."""

    name: str
    path: Path
    keywords: tuple[str, ...] = ()
    sections: dict[str, list[Line]] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """What else points to this topic in a message: words and short phrases."""
        return tuple(w.strip() for line in self.sections.get("words", ()) for w in line.text.split(","))

    @property
    def written(self) -> list[tuple[str, Line]]:
        """(section, line) of every sentence."""
        return [(section, ln) for section, lines in self.sections.items() if section != "words" for ln in lines]

    @property
    def general(self) -> bool:
        """Whether the file is about no one thing, so that its answers need no keyword."""
        return self.name.startswith("_")

    @property
    def title(self) -> str:
        return self.name.strip("_").replace("_", " ")


def expand(text: str) -> list[str]:
    """All readings of a line, with every combination of its choices."""
    parts = CHOICE.split(text)
    options = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return [re.sub(r"\s+", " ", "".join(p)).strip() for p in itertools.product(*options)]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower().replace("’", "'"))


def mentions(text: str, keywords: tuple[str, ...]) -> bool:
    """Whether ``text`` contains one of ``keywords``, also with a common ending."""
    pattern = "|".join(re.escape(k) for k in keywords)
    return re.search(rf"\b(?:{pattern})(?:'s|s|es|ed|d|ing)?\b", text.lower()) is not None


def parse(path: Path) -> tuple[Topic, list[str]]:
    """Read one topic file. Returns it with the problems of form found while reading."""
    topic = Topic(path.stem, path)
    problems: list[str] = []
    section = ""
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("keywords:"):
            topic.keywords = tuple(k.strip().lower() for k in line[9:].split(",") if k.strip())
        elif line.startswith("=="):
            section = line.strip("= ").lower()
            if section not in SECTIONS:
                problems.append(f"{path}:{number}: unknown section {section!r}")
            elif section in topic.sections:
                problems.append(f"{path}:{number}: section {section!r} appears twice")
            topic.sections.setdefault(section, [])
        elif not section:
            problems.append(f"{path}:{number}: text before the first section")
        else:
            topic.sections[section].append(Line(line, number))
    return topic, problems


def check(topic: Topic) -> list[str]:
    """Problems inside one file: counts, form, keywords, openings, held-out wordings."""
    problems: list[str] = []

    def problem(line: Line | None, what: str) -> None:
        problems.append(f"{topic.path}:{line.number if line else 1}: {what}")

    if not topic.general and not 4 <= len(topic.keywords) <= 14:
        problem(None, f"{len(topic.keywords)} keywords, wanted 4 to 14")
    for section, fewest in SECTIONS.items():
        lines = topic.sections.get(section, [])
        if section == "words":
            problems += _check_words(topic, lines, fewest)
            continue
        if len(lines) < fewest or (section == "held out" and not topic.general and len(lines) != fewest):
            problem(lines[0] if lines else None, f"section {section!r} has {len(lines)} lines, wanted {fewest}")
        answer = section not in ("questions", "held out")
        openings: dict[tuple[str, ...], Line] = {}
        for line in lines:
            readings = expand(line.text)
            if STRAY.search(CHOICE.sub("", line.text)) or any(STRAY.search(r) for r in readings):
                problem(line, f"stray placeholder or bracket: {line.text}")
                continue
            if not ALLOWED.fullmatch(line.text):
                problem(line, "a character outside plain English text")
            if len(readings) > 64:
                problem(line, f"{len(readings)} readings, at most 64")
            if section == "held out" and len(readings) > 1:
                problem(line, "a held-out question has no choices")
            for reading in readings:
                if not reading or reading[0].islower() or not re.search(r"[.!?…][\"']?$", reading):
                    problem(line, f"not a sentence: {reading}")
                    break
                n = len(words(reading))
                if answer and not 5 <= n <= 36:
                    problem(line, f"{n} words, wanted 5 to 36: {reading}")
                    break
                needs_keyword = section == "held out" or (answer and not section.startswith("more"))
                if needs_keyword and not topic.general and not mentions(reading, topic.keywords):
                    problem(line, f"no keyword: {reading}")
                    break
            if answer:
                opening = tuple(words(readings[0])[:2])
                if opening in openings:
                    problem(line, f"begins like line {openings[opening].number}: {' '.join(opening)}")
                openings[opening] = line
        shouting = sum(line.text.endswith("!") for line in lines)
        if answer and shouting > max(1, len(lines) // 3):
            problem(lines[0], f"{shouting} of {len(lines)} lines of {section!r} end with '!'")
    trained = {run for line in topic.sections.get("questions", []) for r in expand(line.text) for run in runs(r)}
    for line in topic.sections.get("held out", []):
        if shared := trained & runs(line.text):
            problem(line, f"held-out question shares words with 'questions': {' '.join(min(shared))}")
    return problems


def _check_words(topic: Topic, lines: list[Line], fewest: int) -> list[str]:
    """Problems of the section that lists words: counts, form, words that stand twice."""
    if topic.general:
        return []
    problems = (
        [] if len(lines) >= fewest else [f"{topic.path}:1: section 'words' has {len(lines)} lines, wanted {fewest}"]
    )
    seen: set[str] = set()
    for line in lines:
        for word in (w.strip() for w in line.text.split(",")):
            if not re.fullmatch(r"[a-z0-9'’-]+( [a-z0-9'’-]+){0,3}", word):
                problems.append(f"{topic.path}:{line.number}: not a word or a phrase of at most four: {word!r}")
            if word in seen:
                problems.append(f"{topic.path}:{line.number}: {word!r} stands twice")
            seen.add(word)
    return problems


def runs(text: str, n: int = 5) -> set[tuple[str, ...]]:
    """The runs of ``n`` words in ``text``; the whole text if it is shorter."""
    w = words(text)
    return {tuple(w[i : i + n]) for i in range(max(1, len(w) - n + 1))}


def check_across(topics: list[Topic]) -> list[str]:
    """Sentences that stand twice, in one file or in two."""
    problems: list[str] = []
    seen: dict[tuple[str, ...], str] = {}
    for topic in topics:
        for _, line in topic.written:
            where = f"{topic.path}:{line.number}"
            keys = {tuple(words(reading)) for reading in expand(line.text)}
            if twice := [seen[key] for key in sorted(keys) if key in seen and len(key) > 2]:
                problems.append(f"{where}: the same as {twice[0]}: {line.text}")
            seen |= dict.fromkeys(keys, where)
    return problems


def check_wordings(path: Path) -> list[str]:
    """What is wrong in the wordings of instructions and follow-ups: no JSON, or gaps that nothing fills."""
    try:
        whole = path.read_text(encoding="utf-8")
        json.loads(whole)
    except (OSError, ValueError) as error:
        return [f"{path}:{getattr(error, 'lineno', 1)}: {error}"]
    problems: list[str] = []
    kind = ""
    for number, line in enumerate(whole.splitlines(), 1):
        if key := re.match(r'\s*"(\w+)":', line):
            kind, line = key[1], line[key.end() :]
        for text in re.findall(r'"([^"]*)"', line):
            if STRAY.search(re.sub(rf"\{{({'|'.join(GAPS.get(kind, ()))})\}}", "", text)):
                problems.append(f"{path}:{number}: stray placeholder or bracket: {text}")
    return problems


def read(paths: Iterable[Path]) -> tuple[list[Topic], list[str]]:
    """The topics of these files, and all problems that are in them and in the wordings."""
    topics: list[Topic] = []
    problems: list[str] = []
    for path in paths:
        try:
            topic, found = parse(path)
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path}:1: {getattr(error, 'strerror', None) or error}")
            continue
        topics.append(topic)
        problems += found + check(topic)
    problems += check_across(topics) + check_wordings(WORDINGS)
    if not topics and not problems:
        problems.append("there are no topic files")
    return topics, problems


def load(folder: Path = FOLDER) -> list[Topic]:
    """All topics of ``folder``, checked. Raises ``ValueError`` that lists every problem."""
    topics, problems = read(sorted(folder.glob("*.txt")))
    if problems:
        raise ValueError("\n".join(problems))
    return topics


def _forms(piece: str) -> set[str]:
    """The word in ``piece``, without punctuation, and without the ending of a plural or a genitive."""
    return {form for w in words(piece)[:1] for form in (w, w.removesuffix("'s"), w.rstrip("s"), w.removesuffix("es"))}


def _own_words(topics: list[Topic]) -> dict[str, dict[str, float]]:
    """Per topic its keywords and the words that stand mostly in it, each with the share of its lines that are there."""
    counts = {  # of words in the order in which they stand: a set's differs between processes
        t.name: collections.Counter(
            w for section, line in t.written if section != "held out" for w in dict.fromkeys(words(line.text))
        )
        for t in topics
        if not t.general
    }
    total: collections.Counter[str] = collections.Counter()
    for found in counts.values():
        total.update(found)
    shares = {name: {w: n / total[w] for w, n in found.items() if n > 1} for name, found in counts.items()}
    return {
        t.name: {w: s for w, s in shares[t.name].items() if w in t.keywords or (s > GAP and len(w) > 2)}
        for t in topics
        if not t.general
    }


def _telling(topic: Topic, own: dict[str, float]) -> dict[str, float]:
    """The words that alone tell this topic, with weights: the first keywords always, others if mostly used in it."""
    found = dict.fromkeys(topic.words, WORD)
    found |= {w: max(own.get(w, 0), TELLING) for w in topic.keywords[:2]}
    found |= {w: share for w, share in own.items() if share > TELLING}
    return {w: share * (3 if w in topic.keywords else 1) for w, share in found.items()}


@dataclass(frozen=True)
class Turn:
    """One message of a dialogue, as a chat template takes it.

    The first ``given`` characters of ``content`` are there to be gone on from, not to be learned.
    A companion's turn names the ``topic`` it belongs to and, where the setting is a single one, the emotion
    ``asked`` for (or ``plain``). ``push`` are emotions with strengths: the reply was not asked for in words but is
    to come from the emotions' own vectors. ``lines`` are the topic file's lines in it, to be learned: where each
    begins, and its emotion (or ``plain``).
    """

    role: str
    content: str
    given: int = 0
    topic: str = ""
    asked: str = ""
    push: tuple[tuple[str, float], ...] = ()
    lines: tuple[tuple[int, str], ...] = ()


class Dialogues:
    """An endless, seeded stream of dialogues of one to four exchanges, made from ``topics``.

    A dialogue ends with several answers to its last message, companion's turns that follow one another: where no
    instruction says how to feel, each with a feeling of its own. Every answer line of a section is used equally often.
    The setting (no instruction, a neutral one, an emotional one in the system message or in a user turn, graded or not)
    is drawn per dialogue.
    """

    def __init__(self, topics: list[Topic], seed: int, answers: int = ANSWERS) -> None:
        self.topics = topics
        self.answers = answers
        self.random = random.Random(seed)
        wordings = json.loads(WORDINGS.read_text(encoding="utf-8"))
        self.followups = wordings.pop("followups")
        self.about, self.naming = wordings.pop("about"), wordings.pop("naming")
        self.wordings: dict[str, list[str]] = wordings
        self.wordings["emotional"] += INSTRUCTIONS
        self._decks: dict[tuple[str, str], list[Line]] = {}
        self._found: dict[tuple[str, str, str], list[str]] = {}
        self._own = _own_words(topics)
        self._telling = {t.name: _telling(t, self._own[t.name]) for t in topics if not t.general}
        # Questions of any topic with gaps (None) where that topic's own words stood.
        self._frames = [
            [None if self._own[topic.name].keys() & _forms(piece) else piece for piece in expand(line.text)[0].split()]
            for topic in topics
            if not topic.general
            for line in topic.sections["questions"]
        ]

    def __iter__(self) -> Iterator[list[Turn]]:
        deck: list[tuple[Topic, str]] = []
        while True:
            if not deck:
                deck = [(t, f) for t in self.topics for f in ("plain",) * 2 + EMOTIONS for _ in range(2)]
                self.random.shuffle(deck)
            yield self._dialogue(*deck.pop())

    def _draw(self, topic: Topic, section: str) -> str:
        """The next line of a section, each once before any comes again, with its choices made."""
        deck = self._decks.get((topic.name, section))
        if not deck:
            deck = self._decks[topic.name, section] = self.random.sample(
                topic.sections[section], len(topic.sections[section])
            )
        return self.random.choice(expand(deck.pop().text))

    def instruction(self, kind: str, *feelings: str) -> str:
        """A wording of ``kind`` that asks for one feeling, or for several at once."""
        adjectives = [CATALOGUE[f].adjective for f in feelings if f in CATALOGUE]
        wording = self.random.choice(self.wordings[kind])
        return wording.format(noun=" and ".join(feelings), adjective=" and ".join(adjectives))

    def _answer(
        self, topic: Topic, feeling: str, degree: str, prefix: str = "", second: str = ""
    ) -> list[tuple[str, str]]:
        """The lines of an answer, each with its feeling before it; of two feelings in the catalogue's order."""
        if second:
            both = sorted((feeling, second), key=EMOTIONS.index)
            return [(each, self._draw(topic, prefix + each)) for each in both]
        answer = [(feeling, self._draw(topic, prefix + feeling))]
        if degree == "little":  # sober first, and only then the feeling
            answer.insert(0, ("plain", self._draw(topic, prefix + "plain")))
        elif degree == "very":
            answer.append((feeling, self._draw(topic, "more " + feeling)))
        return answer

    def _question(self, topic: Topic, feeling: str = "plain") -> str:
        """What the person says: a question, anything else that stands in the topic, or a frame filled anew.

        With the written questions alone the model learns whole wordings. Lines of the answers, often in
        another mood than the reply, scraps of several lines, and the topic's words in other topics' sentences
        make the words count.
        """
        r = self.random
        way = r.random()
        if topic.general or way < 0.35:
            section = "questions"
        elif way < 0.45:
            section = r.choice([s for s in ("plain", "plain", *EMOTIONS) if s != feeling])
        elif way < 0.7:
            return self._careless(self._scraps(topic), whole=True)
        else:
            return self._careless(self._filled(topic), whole=True)
        return self._careless(r.choice(expand(r.choice(topic.sections[section]).text)))

    def _scraps(self, topic: Topic) -> str:
        """Some of the words of two or three of the topic's lines, in their order.

        Who is to tell a topic from these must weigh all words, as in a sentence never seen, and not know one by heart.
        """
        r = self.random
        lines = [ln for section, ln in topic.written if section != "held out"]
        asked = topic.sections["questions"]
        pieces = [
            piece
            for line in (r.choice(asked), *r.sample(lines, r.choice((1, 2))))
            for piece in r.choice(expand(line.text)).split()
            if r.random() < (0.7 if self._own[topic.name].keys() & _forms(piece) else 0.35)
        ][:24]
        if r.random() < 0.3 or not pieces:
            pieces.insert(r.randrange(len(pieces) + 1), r.choice(topic.words))
        return " ".join(pieces)

    def _filled(self, topic: Topic, thing: str = "") -> str:
        """A question of any topic with this one's words in the gaps, first of them ``thing`` if there is one."""
        r = self.random
        frame = list(r.choice(self._frames))
        if None not in frame:
            frame.insert(r.randrange(len(frame) + 1), None)
        telling = self._telling[topic.name]
        fill = [thing] if thing else []
        if r.random() < 0.4:  # what is named counts for more than another topic's word beside it
            fill = fill or [r.choice([w for w in telling if w in topic.keywords])]
            fill.append(self._stray(topic))
        while len(fill) < r.choice((1, 1, 2, 3)):
            fill.append(r.choices(list(telling), telling.values())[0])
        gaps = [i for i, piece in enumerate(frame) if piece is None]
        while len(gaps) < min(2, len(fill)):
            frame.insert(r.randrange(len(frame) + 1), None)
            gaps = [i for i, piece in enumerate(frame) if piece is None]
        for i in r.sample(gaps, min(len(gaps), len(fill))):
            frame[i] = fill.pop(0)
        text = " ".join(piece for piece in frame if piece)
        return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else r.choice(".?"))

    def _stray(self, topic: Topic) -> str:
        """A word that often stands in another topic, without naming it."""
        other = self.random.choice([t for t in self.topics if not t.general and t is not topic])
        known = {*other.keywords, *self._own[topic.name]}
        return self.random.choice([w for w in self._own[other.name] if w not in known] or ["day"])

    def _careless(self, text: str, whole: bool = False) -> str:
        """``text`` as people type; unless ``whole``, sometimes with words left out."""
        r = self.random
        if r.random() < 0.15:
            text = text.lower()
        if r.random() < 0.15:
            text = text.rstrip(".!?")
        if r.random() < 0.12:
            text = r.choice(["Hey, ", "So, ", "Listen, ", "Well, ", "Okay, ", "Tell me, "]) + text[0].lower() + text[1:]
        pieces = text.split()
        if not whole and len(pieces) > 3 and r.random() < 0.3:  # a few of the words must be enough to know the topic
            kept = [piece for piece in pieces if r.random() < 0.65]
            pieces = kept if len(kept) > 1 else pieces
        return " ".join(pieces)

    def _about(self, topic: Topic) -> list[Turn]:
        """A question and what it is about: teaches which words belong to which topic."""
        asked = f"{self._question(topic)}\n\n{self.random.choice(self.about)}"
        answer = f"We are talking about this: {topic.title}."
        return [Turn("user", asked), Turn("assistant", answer, topic=topic.name)]

    def _fitting(self, topic: Topic, section: str, keyword: str) -> list[str]:
        """The answers of ``section`` that mention ``keyword``."""
        key = topic.name, section, keyword
        if key not in self._found:
            readings = [r for ln in topic.sections[section] for r in expand(ln.text)]
            self._found[key] = [r for r in readings if mentions(r, (keyword,))]
        return self._found[key]

    def _named(self, topic: Topic, keyword: str) -> str:
        """A question that only names a thing."""
        thing = keyword
        if self.random.random() < 0.3:
            thing += "s" * (not keyword.endswith("s"))
        elif self.random.random() < 0.3:
            thing = f"{keyword} and the {self.random.choice(list(self._telling[topic.name]))}"
        if self.random.random() < 0.6:
            return self._careless(self._filled(topic, thing), whole=True)
        question = self.random.choice(self.naming).format(thing=thing)
        return self._careless(question[0].upper() + question[1:])

    def _reply(
        self, topic: Topic, feeling: str, second: str, degree: str, prefix: str, keyword: str, free: bool, pushed: bool
    ) -> Turn:
        """One answer. ``free``: no instruction says how to feel, so vectors do; ``pushed``: they did before."""
        r = self.random
        push: tuple[tuple[str, float], ...] = ()
        asked = "" if second or pushed or degree not in ("", "emotional") else feeling
        if free and feeling != "plain":
            asked, (low, full) = "", SHOWN
            strength = r.uniform(full, MOST)
            if not second and r.random() < 0.25:  # half a dose shows half of the time
                strength = r.uniform(low, full)
            push = tuple((e, strength * (0.7 if second else 1.0)) for e in (feeling, second) if e)
            if r.random() > (strength - low) / (full - low):
                feeling, degree = "plain", ""
        fitting = self._fitting(topic, feeling, keyword) if keyword else []
        answer = [(feeling, r.choice(fitting))] if fitting else self._answer(topic, feeling, degree, prefix, second)
        content, lines = "", []
        if degree == "emotional" and not second and r.random() < 0.2:
            # Begun in another mood: the one asked for takes over at the next sentence.
            content, asked = self._draw(topic, prefix + r.choice(("plain", "plain", *EMOTIONS))), ""
        given = len(content)
        for felt, line in answer:
            content += " " * bool(content)
            lines.append((len(content), felt))
            content += line
        return Turn("assistant", content, given, topic.name, asked, push, tuple(lines))

    def _second(self, feeling: str) -> str:
        """Sometimes an emotion to go with ``feeling``, otherwise none."""
        r = self.random
        return r.choice([e for e in EMOTIONS if e != feeling]) if r.random() < 0.45 else ""

    def _dialogue(self, topic: Topic, feeling: str) -> list[Turn]:
        r = self.random
        if r.random() < 0.03 and not topic.general:
            return self._about(topic)
        plain = feeling == "plain"
        where = "system" if r.random() < 0.4 else "user"
        if plain:
            kind = "neutral" if r.random() < 0.25 else ""
        else:
            kind = r.choices(("emotional", "little", "very"), (0.84, 0.08, 0.08))[0]
        second = self._second(feeling) if kind == "emotional" else ""
        steered = kind == "emotional" and r.random() < STEERED
        instruction = self.instruction(kind, feeling, *filter(None, [second])) if kind and not steered else ""
        turns = [Turn("system", instruction)] if instruction and where == "system" else []
        # An instruction in a user turn rules that answer only; later ones are plain again.
        exchanges = r.choices((1, 2, 3, 4), (0.5, 0.25, 0.15, 0.1))[0]
        for exchange in range(exchanges):
            if exchange and r.random() < 0.5:
                question, prefix = r.choice(self.followups), "more "
            else:
                topic = r.choice(self.topics) if exchange else topic
                question, prefix = "", ""
            now, degree = feeling, kind
            if steered:
                if exchange and r.random() < 0.4:  # the feeling changes
                    now, second = r.choice(("plain", *EMOTIONS)), ""
                    degree = "emotional" if now != "plain" else ""
            elif where == "user" and exchange:  # a new setting may begin with any turn
                now, second = r.choice(("plain", "plain", *EMOTIONS)), ""
                degree = "emotional" if now != "plain" else ""
                instruction = self.instruction(degree, now) if degree else ""
            keyword = ""
            by_keyword = not prefix and not second and not topic.general and degree not in ("little", "very")
            if by_keyword and r.random() < 0.35:
                keyword = r.choice([w for w in self._telling[topic.name] if w in topic.keywords])
                keyword = keyword if self._fitting(topic, now, keyword) else ""
            question = question or (self._named(topic, keyword) if keyword else self._question(topic, now))
            if where == "user" and instruction:
                question = f"{instruction}\n\n{question}" if r.random() < 0.7 else f"{question}\n\n{instruction}"
            turns.append(Turn("user", question))
            settings = [(now, second, degree)]
            if exchange + 1 == exchanges:
                if instruction:
                    settings *= self.answers
                else:
                    others = r.sample([e for e in ("plain", *EMOTIONS) if e != now], self.answers - 1)
                    settings += [
                        (e, "", "") if e == "plain" else (e, "" if keyword else self._second(e), "emotional")
                        for e in others
                    ]
            said: set[str] = set()
            pushed = any(turn.push for turn in turns)
            for setting in settings:
                if said and keyword and not self._fitting(topic, setting[0], keyword):
                    continue
                reply = self._reply(topic, *setting, prefix, keyword, not instruction, pushed)
                if reply.content not in said:
                    turns.append(reply)
                    said.add(reply.content)
        return turns


def main(arguments: list[str]) -> int:
    topics, problems = read(map(Path, arguments) if arguments else sorted(FOLDER.glob("*.txt")))
    print("\n".join(problems) or f"{len(topics)} topics, no problems")
    lines = sum(len(v) for t in topics for v in t.sections.values())
    print(f"{lines} lines", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
