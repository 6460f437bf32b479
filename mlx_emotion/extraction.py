"""Extraction: from queries and a model to a pack, as in arXiv 2502.04075, section 3.1.

Each query is answered in the neutral setting (as it stands) and in the emotional one (with an
instruction to answer with the emotion). Per layer, the mean activation over the emotional answer's
tokens minus that over the neutral answer's is the query's shift; the emotion vector is the mean
shift over the emotion's queries. ``METHODS`` has two other ways, for comparison.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

import numpy as np

from . import queries as query_sets
from .batch import Finished, Job, run_batch
from .definitions import Definition, proper_name, read_definitions
from .emotions import Emotion, catalogue, check_name, instructions
from .errors import ExtractionError, Interrupted, UsageError
from .files import atomic_write, extraction_folder
from .session import Voice
from .vectors import EmotionVectors, PackInfo

STATE_FORMAT = 3
SAVE_SECONDS = 1.0
"""How often, at most, what is done is written."""
EMPTY_MOST = 16
"""After so many empty answers for an emotion, and no other, the rest is not waited for."""
HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Progress:
    """How far the work is: ``done`` of ``total`` answers; ``tokens`` response tokens made in this run."""

    done: int
    total: int
    tokens: int


Measure = Callable[[Voice, Iterable[Job], int, int, Callable[[], bool]], Iterator[Finished]]


@dataclass(frozen=True)
class Method:
    """How a pack is made: ``measure`` gives each prompt's activations, ``combine`` an emotion's vector.

    ``measure(voice, jobs, batch_size, max_tokens, stopped)`` yields a ``Finished`` a job. ``combine`` gets
    the shifts ``[N, d]`` of one layer and returns ``[d]``; without one the mean is kept as it comes, and
    no query's own shift has to be stored.
    """

    measure: Measure
    combine: Callable[[np.ndarray], np.ndarray] | None = None


def answer_means(
    voice: Voice, jobs: Iterable[Job], batch_size: int, max_tokens: int, stopped: Callable[[], bool]
) -> Iterator[Finished]:
    """Answer every prompt; the mean over the answer's tokens."""
    results = run_batch(voice, jobs, batch_size=batch_size, max_tokens=max_tokens, capture=True, stopped=stopped)
    for answer in results:
        assert isinstance(answer, Finished)
        yield answer


def last_prompt_tokens(
    voice: Voice, jobs: Iterable[Job], batch_size: int, max_tokens: int, stopped: Callable[[], bool]
) -> Iterator[Finished]:
    """Read every prompt and answer none; the activation at its last token, where the answer would begin."""
    del batch_size, max_tokens  # one short pass a prompt, nothing generated
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    taps = voice.taps
    for job in jobs:
        if stopped():
            return
        _, captured = taps.forward(mx.array([job.prompt]), make_prompt_cache(taps.model), None, True)
        assert captured is not None
        value = np.zeros((taps.count, taps.width), np.float32)
        value[list(taps.layers)] = np.array(
            mx.stack([captured[i][0, -1].astype(mx.float32) for i in taps.layers])  # type: ignore[index]
        )
        yield Finished(job.key, [], "", "stop", value, np.linalg.norm(value, axis=-1))


def first_component(shifts: np.ndarray) -> np.ndarray:
    """The first principal component ``[d]`` of ``shifts`` ``[N, d]``, as long as the mean is along it.

    Representation engineering (arXiv 2310.01405) takes the component of pair differences in random
    order, which are centred on 0; so the shifts' own mean is not taken off here. The sign is the mean's.
    """
    x = shifts.astype(np.float64)
    _, axes = np.linalg.eigh(x @ x.T)  # (N, N): N is far smaller than d
    direction = axes[:, -1] @ x
    length = np.linalg.norm(direction)
    return direction * (direction @ x.mean(0)) / length**2 if length else direction


METHODS = {
    "mean": Method(answer_means),
    "last": Method(last_prompt_tokens),
    "pca": Method(answer_means, first_component),
}
"""``mean`` is the papers' (arXiv 2502.04075); ``last`` that of in-context vectors (arXiv 2311.06668)."""


@dataclass
class Plan:
    """What is to be extracted, and how.

    ``wordings`` maps each emotion to its instructions, taken in turn; ``defined`` are the emotions
    among them that are a user's own. With ``think`` a thinking model reasons before it answers; its
    reasoning is never part of the means.
    """

    queries: Mapping[str, list[str]]
    source: dict[str, str]
    wordings: Mapping[str, tuple[str, ...]]
    max_tokens: int = 128
    keep_samples: bool = False
    method: str = "mean"
    defined: Mapping[str, Emotion] = field(default_factory=dict)
    think: bool = False

    @classmethod
    def make(
        cls,
        emotions: Iterable[str] | None = None,
        queries: str | Path | Mapping[str, list[str]] | None = None,
        limit: int | None = None,
        max_tokens: int = 128,
        keep_samples: bool = False,
        method: str = "mean",
        define: str | Path | Mapping[str, Definition] | None = None,
        think: bool = False,
    ) -> Plan:
        """A plan for ``emotions`` (all of the set by default), at most ``limit`` queries each.

        ``queries`` is a file in the papers' format or such an object; the shipped extraction set by
        default. ``method`` is one of ``METHODS``. ``define`` is a TOML file with emotions of a user's own,
        or its content; the queries it brings come before those of the set. Raises ``UsageError`` or
        ``QueryError``.
        """
        if method not in METHODS:
            raise UsageError(f"unknown method {method!r}: known are {', '.join(METHODS)}")
        if isinstance(queries, Mapping):
            found = {k: list(v) if isinstance(v, tuple) else v for k, v in queries.items()}
            query_sets.check(found, "queries")
            digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
            source = {"name": "given", "sha256": digest}
        else:
            found, source = query_sets.read(queries) if queries else query_sets.shipped()
        if limit is not None and limit < 1:
            raise UsageError(f"limit is {limit}, wanted at least 1")
        if max_tokens < 1:
            raise UsageError(f"max-tokens is {max_tokens}, wanted at least 1")
        own = read_definitions(define) if isinstance(define, str | Path) else dict(define or {})
        if brought := {n: list(d.queries) for n, d in own.items() if d.queries}:
            found = found | brought
            digest = hashlib.sha256(json.dumps([source["sha256"], brought], sort_keys=True).encode()).hexdigest()
            source = {"name": f"{source['name']} and those defined", "sha256": digest}
        every = [e for e in dict.fromkeys([*found, *own]) if e != "neutral"]
        names = [check_name(n, every) for n in (emotions if emotions is not None else every)]
        if not names:
            raise UsageError("no emotion to extract")
        for name in names:
            try:
                proper_name(name)
            except ValueError as error:
                raise UsageError(f"{source['name']}: {error}") from None
        for name in names:
            if name not in found:
                raise UsageError(
                    f"no queries for {name}: give `queries` where it is defined, or --queries with a file that "
                    f"`mlx-emotion queries generate --emotion '{name}'` can write"
                )
        defined = {n: own[n].emotion for n in names if n in own}
        wordings = {n: instructions(e) for n, e in (catalogue(names) | defined).items()}
        chosen = {n: found[n][:limit] for n in names}
        return cls(chosen, source, wordings, max_tokens, keep_samples, method, defined, think)

    @property
    def total(self) -> int:
        """Answers to generate: two a query."""
        return 2 * sum(len(q) for q in self.queries.values())


@dataclass
class _State:
    """Sums so far. ``shifts`` are ``[L, d]`` float64 an emotion; ``done`` the query numbers they contain."""

    shape: tuple[int, int]
    shifts: dict[str, np.ndarray]
    done: dict[str, list[int]]
    empty: dict[str, list[int]]
    norm: np.ndarray
    answers: int = 0
    samples: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def fresh(cls, plan: Plan, shape: tuple[int, int]) -> _State:
        names = list(plan.queries)
        return cls(
            shape,
            {n: np.zeros(shape) for n in names},
            {n: [] for n in names},
            {n: [] for n in names},
            np.zeros(shape[0]),
        )


class Extraction:
    """One extraction, to be run to its end, maybe in several goes. Runs on the thread that owns MLX."""

    def __init__(self, voice: Voice, plan: Plan, batch_size: int = 16, restart: bool = False) -> None:
        if batch_size < 1:
            raise UsageError(f"batch-size is {batch_size}, wanted at least 1")
        self.voice, self.plan, self.batch_size = voice, plan, batch_size
        identity, site = voice.loaded.identity, voice.taps.site
        asked = {n: [list(plan.wordings[n]), len(q)] for n, q in plan.queries.items()}
        settings = [plan.method, plan.source, plan.max_tokens, plan.keep_samples, asked]
        settings += ["think"] if plan.think else []
        made_of = [STATE_FORMAT, identity.fingerprint, site, voice.taps.layers, settings]
        key = json.dumps(made_of, sort_keys=True)
        self.folder = extraction_folder() / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.shape = (voice.taps.count, voice.taps.width)
        if restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.state = self._load() or _State.fresh(plan, self.shape)

    @property
    def resumed(self) -> int:
        """Answers found done when this object was made."""
        return 2 * sum(len(self.state.done[n]) + len(self.state.empty[n]) for n in self.state.done)

    def _load(self) -> _State | None:
        from safetensors import SafetensorError, safe_open

        path = self.folder / "state.safetensors"
        try:
            with safe_open(path, "numpy") as file:
                note = json.loads(file.metadata()["state"])
                shifts = {n: file.get_tensor(f"shift.{n}") for n in self.plan.queries}
                norm = file.get_tensor("norm")
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None  # none yet, or of another version: begin again
        return _State(self.shape, shifts, note["done"], note["empty"], norm, note["answers"])

    def _save(self) -> None:
        from safetensors.numpy import save_file

        state = self.state
        tensors = {f"shift.{n}": v for n, v in state.shifts.items()} | {"norm": state.norm}
        note = {"done": state.done, "empty": state.empty, "answers": state.answers}
        for samples in state.samples.values():
            samples.flush()  # type: ignore[attr-defined]  # a memory map
        with atomic_write(self.folder / "state.safetensors", ExtractionError) as temporary:
            try:
                save_file(tensors, temporary, {"state": json.dumps(note)})
            except Exception as error:  # safetensors' own error for a full disk
                raise ExtractionError(f"cannot write {self.folder}: {error}") from None

    def _samples(self, emotion: str) -> np.ndarray:
        if emotion not in self.state.samples:
            # By the alphabet: the same plan with its emotions in another order goes on in this folder.
            path = self.folder / f"samples-{sorted(self.plan.queries).index(emotion)}.npy"
            shape = (len(self.plan.queries[emotion]), *self.shape)
            try:
                if not path.exists():  # written whole: a full disk must show here, not when the map is touched
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with atomic_write(path, ExtractionError) as temporary, open(temporary, "wb") as file:
                        np.save(file, np.zeros(shape, np.float16))
                self.state.samples[emotion] = np.lib.format.open_memmap(path, mode="r+")
            except OSError as error:
                raise ExtractionError(f"cannot write {path}: {error.strerror or error}") from None
        return self.state.samples[emotion]

    def _jobs(self) -> Iterator[Job]:
        template, plan = self.voice.loaded.template, self.plan
        done = {n: set(self.state.done[n]) | set(self.state.empty[n]) for n in plan.queries}
        for i in range(max(map(len, plan.queries.values()))):
            for emotion, questions in plan.queries.items():
                if i >= len(questions) or i in done[emotion]:
                    continue
                wordings = plan.wordings[emotion]
                asked = f"{wordings[i % len(wordings)]}\n\n{questions[i]}"
                for setting, text in ((0, questions[i]), (1, asked)):
                    prompt = template.encode(template.render([{"role": "user", "content": text}], think=plan.think))
                    yield Job((emotion, i, setting), prompt)

    def run(
        self, progress: Callable[[Progress], None] | None = None, stopped: Callable[[], bool] = lambda: False
    ) -> EmotionVectors:
        """Generate what is missing and return the pack, not yet calibrated.

        Stopped, the next run goes on and loses the answers in flight; killed, also those of ``SAVE_SECONDS``.
        Raises ``Interrupted`` when ``stopped`` says so, ``ExtractionError`` when there is nothing to average.
        """
        total, finished = self.plan.total, self.resumed
        waiting: dict[tuple[str, int], Finished] = {}
        tokens, unsaved, saved = 0, False, -SAVE_SECONDS
        try:
            measure = METHODS[self.plan.method].measure
            for answer in measure(self.voice, self._jobs(), self.batch_size, self.plan.max_tokens, stopped):
                emotion, i, _ = answer.key
                finished += 1
                tokens += len(answer.tokens)
                other = waiting.pop((emotion, i), None)
                if other is None:
                    waiting[emotion, i] = answer
                else:
                    neutral, emotional = sorted((answer, other), key=lambda a: a.key[2])
                    self._add(emotion, i, neutral, emotional)
                    unsaved = time.monotonic() - saved < SAVE_SECONDS
                    if not unsaved:
                        self._save()
                        saved = time.monotonic()
                if progress:
                    progress(Progress(finished, total, tokens))
        finally:
            if unsaved:
                self._save()
        if stopped():
            raise Interrupted("extraction stopped; the same command goes on from here")
        return self._pack()

    def _add(self, emotion: str, i: int, neutral: Finished, emotional: Finished) -> None:
        state = self.state
        if neutral.mean is None or emotional.mean is None or neutral.norm is None:
            state.empty[emotion].append(i)
            if not state.done[emotion] and len(state.empty[emotion]) >= EMPTY_MOST:
                self._refuse(emotion)
            return
        shift = emotional.mean - neutral.mean
        if self.plan.keep_samples or METHODS[self.plan.method].combine:  # first: what follows can't fail half-way
            self._samples(emotion)[i] = shift.clip(-HALF_MAX, HALF_MAX)
        state.shifts[emotion] += shift
        state.norm += neutral.norm
        state.answers += 1
        state.done[emotion].append(i)

    def _refuse(self, emotion: str) -> NoReturn:
        loaded = self.voice.loaded
        hint = "; a larger --max-tokens lets it think to the end" if loaded.tokenizer.has_thinking else ""
        raise ExtractionError(f"{loaded.identity.id} gave only empty answers for {emotion}; nothing to average{hint}")

    def _pack(self) -> EmotionVectors:
        state, plan, loaded = self.state, self.plan, self.voice.loaded
        for emotion, done in state.done.items():
            if not done:
                self._refuse(emotion)
        entries: dict[str, dict] = {
            n: {"instructions": list(plan.wordings[n]), "count": len(state.done[n]), "scale": None}
            for n in plan.queries
        }
        for n, e in plan.defined.items():
            entries[n] |= {"valence": round(e.valence, 6), "arousal": round(e.arousal, 6), "colour": e.colour}
        info = PackInfo(
            model=loaded.identity,
            site=self.voice.taps.site,
            emotions=entries,
            method=plan.method,
            queries=dict(plan.source),
            decoding={"temperature": 0.0, "max_tokens": plan.max_tokens} | ({"think": True} if plan.think else {}),
            versions=library_versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        vectors = {n: self._vector(n) for n in plan.queries}
        samples = {n: self._samples(n)[sorted(state.done[n])] for n in plan.queries} if plan.keep_samples else None
        return EmotionVectors(vectors, info, (state.norm / state.answers).astype(np.float32), samples)

    def _vector(self, emotion: str) -> np.ndarray:
        """``[L, d]``; layer by layer where each query's shift is needed, so that memory stays small."""
        done, combine = sorted(self.state.done[emotion]), METHODS[self.plan.method].combine
        if combine is None:
            return self.state.shifts[emotion] / len(done)
        samples = self._samples(emotion)
        return np.stack([combine(samples[done, layer]) for layer in range(self.shape[0])])

    def forget(self) -> None:
        """Remove the unfinished state; the pack is safe elsewhere."""
        self.state.samples.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def library_versions() -> dict[str, str]:
    """Versions of what made a pack."""
    found = {}
    for name in ("mlx-emotion", "mlx", "mlx-lm", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
