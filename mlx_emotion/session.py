"""A conversation: its history, its prompt cache and the live feeling. Runs on the thread that owns MLX."""

from __future__ import annotations

import itertools
import secrets
import shlex
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from .emotions import CATALOGUE, Emotion, Feeling
from .errors import ModelError, PackError, UsageError
from .events import Done, Event, FeelingChanged, GuardTripped, Thought, Token
from .guard import Guard, Scales
from .models import EMBEDDED, LoadedModel
from .options import Options, check_seed, check_text
from .steering import Dose, Row, Span, SteerableModel, Taps
from .templates import until_stop
from .thinking import ANSWER, THOUGHT, Thoughts
from .vectors import EmotionVectors

if TYPE_CHECKING:
    from .readout import Projector

T = TypeVar("T")


@dataclass
class Turn:
    """One exchange. ``raw`` is the reply as generated, ``tokens`` its ids without the end mark.

    ``felt`` are (index of the first token, raw scales), from index -1, the last prompt token, on. ``before`` is
    what positions `all` put on the rest of its prompt, ``None`` if the same as the reply's first.
    ``opened`` is the prompt text from the reply before to this one's opening, once it is known.
    """

    user: str
    raw: str = ""
    tokens: list[int] = field(default_factory=list)
    felt: list[tuple[int, Scales]] = field(default_factory=list)
    before: Scales | None = None
    ended: bool = False
    answered: bool = False
    opened: str = ""

    @property
    def reply(self) -> str:
        return self.raw.strip()

    def forget_block(self, length: int, answer: str) -> None:
        """Keep of the reply what came after a reasoning block of ``length`` tokens: ``answer``.

        The next prompt has no block, so the answer's tokens follow the prompt's end there.
        """
        self.raw, self.tokens = answer, self.tokens[length:]
        self.felt = list({max(index - length, -1): scales for index, scales in self.felt}.items())


class _Stopped(Exception):
    """The reply was stopped while its prompt was being read."""


class Voice:
    """A loaded model with its taps and its pack: everything a conversation needs. Made once for a model."""

    def __init__(self, loaded: LoadedModel, taps: Taps, vectors: EmotionVectors | None) -> None:
        self.loaded, self.taps, self.vectors = loaded, taps, vectors
        self.model = SteerableModel(taps)
        self._doses: OrderedDict[Scales, Dose | None] = OrderedDict()
        self._projector: Projector | None = None

    @property
    def closed(self) -> bool:
        """Whether its use was ended; true then for every ``Voice`` of the same taps."""
        return self.taps.closed

    def check_open(self) -> None:
        """Raise ``ModelError`` once it was closed: nothing would be steered any more."""
        if self.closed:
            raise ModelError(f"{self.loaded.identity.id} was closed; load it again")

    @property
    def known(self) -> list[str]:
        """The emotions that can be felt."""
        return list(self.vectors) if self.vectors is not None else []

    @property
    def catalogue(self) -> Mapping[str, Emotion]:
        """Those emotions, defined; without a pack the built-in ones."""
        return self.vectors.info.catalogue if self.vectors is not None else CATALOGUE

    @property
    def extraction(self) -> str:
        """The command that makes the vectors which are lacking."""
        id_, adapter = self.loaded.identity.id, self.loaded.adapter
        name = id_ if id_ == EMBEDDED or "/" in id_ else self.loaded.path
        with_adapter = ["--adapter", str(adapter)] if adapter else []
        return shlex.join(["mlx-emotion", "extract", "--model", str(name), *with_adapter, "--site", self.taps.site])

    def scales(self, feeling: Feeling, raw: float | None) -> Scales:
        if feeling.neutral:
            return ()
        if self.vectors is None:
            raise PackError(
                f"no emotion vectors for {self.loaded.identity.id} at site {self.taps.site}; make them with "
                f"`{self.extraction}`"
            )
        return tuple(self.vectors.scales(feeling, raw).items())

    def dose(self, scales: Scales) -> Dose | None:
        """The dose for raw ``scales``; the last few are kept."""
        if scales not in self._doses:
            vector = self.vectors.mix(dict(scales)) if self.vectors is not None else None
            self._doses[scales] = None if vector is None else self.taps.dose(vector)
            while len(self._doses) > 16:
                self._doses.popitem(last=False)
        self._doses.move_to_end(scales)
        return self._doses[scales]

    def projector(self) -> Projector | None:
        """What reads activations in this pack's emotions, ``None`` without a pack; made at the first call."""
        if self._projector is None and self.vectors is not None:
            from .readout import Projector, neutral_activation

            self._projector = Projector(self.vectors, self.taps.layers, neutral_activation(self))
        return self._projector


class Session:
    """One conversation. ``feel`` and ``stop`` may be called from any thread, the rest from the engine's."""

    def __init__(self, voice: Voice, feeling: Feeling, options: Options) -> None:
        self.voice, self.options = voice, options
        self.turns: list[Turn] = []
        self.first = 0  # of the turns that the model still reads
        self._wanted = (feeling, voice.scales(feeling, options.scale))
        self._stop = threading.Event()
        self._answering = False
        self._forget_cache()

    # From any thread.

    @property
    def feeling(self) -> Feeling:
        return self._wanted[0]

    def feel(self, feeling: Feeling) -> None:
        """Change the feeling: acts from the next token to be computed."""
        wanted = (feeling, self.voice.scales(feeling, self.options.scale))
        if wanted != self._wanted:  # the same again is no change
            self._wanted = wanted

    def stop(self) -> None:
        """End the reply under way, else the one that was asked for last; what came is kept."""
        self._stop.set()

    def ask(self) -> threading.Event:
        """What ``stop`` will set for a reply that is asked for now, which may be before it can begin."""
        stop = threading.Event()
        if not self._answering:
            self._stop = stop
        return stop

    # On the engine's thread.

    def reset(self) -> None:
        self.check_idle()
        self.turns.clear()
        self.first = 0
        self._forget_cache()

    def change(self, options: Options) -> None:
        """Take other options from the next reply on; another ``scale`` acts from the next token, as ``feel`` does."""
        if (options.context, options.max_tokens) != (self.options.context, self.options.max_tokens):
            self.first = 0  # what was cut may fit now
        self.options = options
        self.feel(self.feeling)

    def add(self, user: str, reply: str, felt: list[tuple[int, Feeling]]) -> None:
        """Append an exchange that was had elsewhere; ``felt`` are (index of the first token, feeling)."""
        self.check_idle()
        check_text(user + reply, "the exchange")
        turn = Turn(user)
        if text := reply.strip():
            scales = [(i, self.voice.scales(f, self.options.scale)) for i, f in felt]
            turn.raw, turn.tokens = text, self.voice.loaded.template.encode(text)
            # The last prompt token already has the reply's first feeling.
            turn.felt = [(-1 if n == 0 else i, s) for n, (i, s) in enumerate(scales)] or [(-1, ())]
            turn.ended = turn.answered = True
        self.turns.append(turn)

    def drop(self) -> None:
        """Take the last exchange back."""
        self.check_idle()
        if not self.turns:
            raise UsageError("nothing to take back")
        self.turns.pop()
        self.first = 0  # what was cut for a long message may fit again

    def outline(self, turns: list[Turn], scales: Scales) -> tuple[list[int], tuple[Span, ...]]:
        """The prompt of ``turns`` for a reply under ``scales``, and how the history was felt."""
        if self.options.history == "refeel":
            turns = [*(replace(t, felt=[(-1, scales)], before=None) for t in turns[:-1]), turns[-1]]
        _, prompt, places = self._fitting(turns)
        return prompt, tuple(self._plan(places))

    def longest(self, prompt: list[int]) -> int:
        """The most tokens that a reply to ``prompt`` may have: the model reads no more than its context."""
        context = self._context
        return self.options.max_tokens if context is None else min(self.options.max_tokens, context - len(prompt))

    @property
    def _context(self) -> int | None:
        """The most tokens that the model may read here."""
        return min((n for n in (self.voice.loaded.context, self.options.context) if n is not None), default=None)

    def check_idle(self) -> None:
        """Raise ``UsageError`` while a reply is half read: two would write into one cache."""
        if self._answering:
            raise UsageError("a reply is still being written; read it to its end, or close it, before the next")

    def again(self, seed: int | None = None, stop: threading.Event | None = None) -> Iterator[Event]:
        """Answer the last message again, under the feeling that is set now; ``stop`` is from ``ask``.

        The reply before stands if this one ends with nothing said.
        """
        if not self.turns:
            raise UsageError("nothing to answer again yet")
        seed = self._check_ready(seed)
        before = self.turns[-1]
        self.turns[-1] = Turn(before.user)
        return self._answer(seed, stop or self.ask(), before)

    def reply(self, text: str, seed: int | None = None, stop: threading.Event | None = None) -> Iterator[Event]:
        """Answer ``text``; yields events, the last of them ``Done``. An empty message is a ``UsageError``.

        ``stop`` is from ``ask``.
        """
        if not text.strip():
            raise UsageError("the message is empty")
        check_text(text, "the message")
        seed = self._check_ready(seed)
        self.turns.append(Turn(text))
        return self._answer(seed, stop or self.ask())

    def _check_ready(self, seed: int | None) -> int | None:
        self.voice.check_open()
        self.check_idle()
        return check_seed(seed)

    def _forget_cache(self) -> None:
        self._cached: list[int] = []
        self._cache: list[Any] | None = None

    def _messages(self, turns: list[Turn]) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self.options.system}] if self.options.system else []
        for turn in turns:
            if not turn.answered and turn is not turns[-1]:
                continue  # a model that stayed silent: some templates refuse two user messages in a row
            messages.append({"role": "user", "content": turn.user})
            if turn.answered:
                messages.append({"role": "assistant", "content": turn.reply})
        return messages

    def _layout(self, turns: list[Turn]) -> tuple[list[int], list[tuple[int, int, Turn]]]:
        """The prompt's token ids, and where each earlier turn's own prompt and reply begin in it.

        Replies keep the ids they were generated with: text put back through the tokenizer may be cut
        differently, and templates trim it; then nothing after that place could be taken from the cache,
        nor be steered as it was felt. So the template sees a mark in the place of each reply.
        """
        template = self.voice.loaded.template
        marks = {n: f"\ue000{n}\ue001" for n, turn in enumerate(turns) if turn.answered and turn.tokens}
        messages = self._messages(turns)
        replies = (m for m in messages if m["role"] == "assistant")
        for n, message in zip((n for n, turn in enumerate(turns) if turn.answered), replies):
            message["content"] = marks.get(n, message["content"])
        think = self.options.think != "off"
        text = template.render(messages, think=think)
        place = {m["content"]: i for i, m in enumerate(messages)}
        ids: list[int] = []
        places: list[tuple[int, int, Turn]] = []
        done = 0
        for n, mark in marks.items():
            at = text.find(mark, done)
            if at < 0:  # a template that leaves old replies out
                continue
            # Up to the reply the model has seen the opened turn, whose end the template may space otherwise.
            turn, before = turns[n], text[done:at]
            if turn.opened.rstrip() != before.rstrip():
                turn.opened = template.render(messages[: place[mark]], think=think)[done:]
            if turn.opened.rstrip() == before.rstrip():
                before = turn.opened
            began = len(ids)
            ids += template.encode(before)
            places.append((began, len(ids), turn))
            ids += turn.tokens
            done = at + len(mark)
        return ids + template.encode(text[done:]), places

    def _fitting(self, turns: list[Turn]) -> tuple[int, list[int], list[tuple[int, int, Turn]]]:
        """The first of ``turns`` from which they leave room for a reply in the model's context; their ``_layout``."""
        context, first = self._context, min(self.first, len(turns) - 1)
        if context is None:
            return first, *self._layout(turns[first:])
        room = context - min(self.options.max_tokens, context // 4)
        replies = sum(len(t.tokens) for t in turns[first:])
        while first < len(turns) - 1 and replies > room:  # far too long, as a stored conversation may be
            replies -= len(turns[first].tokens)
            first += 1
        prompt, places = self._layout(turns[first:])
        while first < len(turns) - 1 and len(prompt) > room:
            first += max(1, (len(turns) - first) // 4)  # several at once: each cut empties the cache
            prompt, places = self._layout(turns[first:])
        if len(prompt) >= context:
            raise UsageError(
                f"the message is too long: {len(prompt)} tokens with its frame, the model reads {context}; shorten it"
            )
        return first, prompt, places

    def _plan(self, places: list[tuple[int, int, Turn]]) -> list[Span]:
        """The spans of the history as it was felt, or under the one feeling that ``refeel`` put on it."""
        spans: list[Span] = []
        everything = self.options.positions == "all"
        for began, start, turn in places:
            felt = turn.felt or [(-1, ())]
            if everything:
                began = max(began, spans[-1][1] or 0) if spans else began  # its end mark was felt as the reply was
                spans.append((began, start - 1, felt[0][1] if turn.before is None else turn.before))
            end = start + len(turn.tokens) + turn.ended
            for (index, scales), later in zip(felt, [*felt[1:], None]):
                last = end if later is None else min(end, start + later[0])  # a stop text may have cut the reply
                if start + index < last:  # told of a reply that was longer
                    spans.append((start + index, last, scales))
        return spans

    def _prepare(self, scales: Scales) -> tuple[list[int], int, Row]:
        """(prompt ids, how many of them the cache holds, the row that steers), with ``_cache`` made ready."""
        from mlx_lm.models.cache import trim_prompt_cache

        if not self._cached:  # whatever a prompt that was not read to its end has left
            self._forget_cache()
        if self.options.history == "refeel":
            for turn in self.turns[:-1]:
                turn.felt, turn.before = [(-1, scales)], None
        self.first, prompt, places = self._fitting(self.turns)
        row = Row(self._plan(places), make=self.voice.dose)
        # The last prompt token is computed under the feeling of this reply; with positions `all`, so is
        # everything since the reply before and its end mark, also if the message was answered already.
        begin = len(prompt) - 1
        if self.options.positions == "all":
            begin = (row.spans[-1][1] or 0) if row.spans else 0
        row.set(scales, begin)
        other = (i for i, (a, b) in enumerate(zip(self._cached, prompt)) if a != b)
        shared = next(other, min(len(self._cached), len(prompt) - 1))
        if self._cache is not None:  # keys and values are right only where they were felt as they are to be
            shared = self._cache[-1].rows[0].same_until(row, shared)
        surplus = len(self._cached) - shared
        if self._cache is not None and surplus:
            if shared and _can_go_back(self._cache):
                trim_prompt_cache(self._cache, surplus)
            else:  # a wrapped sliding window or a recurrent state cannot go back: compute it again
                self._forget_cache()
                shared = 0
        row.offset = shared
        if self._cache is None:
            self._cache = self.voice.model.cache(row)
        else:
            self._cache[-1].rows = [row]
        return prompt, shared, row

    def _answer(self, seed: int | None, stop: threading.Event, before: Turn | None = None) -> Iterator[Event]:
        """Answer the last turn, which takes the place of ``before``."""
        from mlx_lm import stream_generate
        from mlx_lm.sample_utils import make_sampler

        from .readout import Watch

        began = time.perf_counter()
        options, voice, turn = self.options, self.voice, self.turns[-1]
        template = voice.loaded.template
        self._stop = stop
        seed = secrets.randbelow(2**31) if seed is None else seed
        wanted = self._wanted
        feeling, scales = wanted
        thoughts = Thoughts(voice.loaded.tokenizer, template.opening(options.think != "off"), options.think != "off")
        said = {ANSWER: "", THOUGHT: ""}
        muted = options.think != "feel" and thoughts.inside
        turn.felt, turn.before = [(-1, () if muted else scales)], scales if muted else None
        timeline = [(0, str(feeling))]
        reason, first = "cancelled", 0.0
        guard = Guard()
        shown = 0
        count = 0

        def reading(done: int, total: int) -> None:
            if stop.is_set() and done < total:
                raise _Stopped

        self._answering = True
        try:
            projector = voice.projector() if options.readout else None
            prompt, shared, row = self._prepare(scales)
            if muted:
                row.set((), len(prompt) - 1)
            assert self._cache is not None
            watch = Watch(projector, row, len(prompt)) if projector is not None else None
            self._cache[-1].observe = watch.observe if watch else None
            turn.answered = True
            stream = stream_generate(
                voice.model,  # type: ignore[arg-type]  # called like the model
                voice.loaded.tokenizer,
                prompt[shared:],
                max_tokens=self.longest(prompt),
                sampler=make_sampler(options.temperature, options.top_p),
                prompt_cache=self._cache,
                prompt_progress_callback=reading,
            )
            self._cached = []  # until the prompt is through, the cache is in no known state
            ends = voice.loaded.tokenizer.eos_token_ids
            try:
                for response in seeded(stream, seed):
                    if not count:
                        first = time.perf_counter() - began
                        self._cached = list(prompt)
                    self._cached.append(response.token)
                    end = response.token in ends
                    if not end:
                        turn.tokens.append(response.token)
                    count += 1
                    turn.raw += response.text
                    text, stopped = until_stop(turn.raw, template.stops, response.finish_reason is not None)
                    if watch is not None:  # the pass over the token before this one is done
                        yield from watch.ready(count - 1)
                    for kind, piece in thoughts.add(text[shown:], count) or [(ANSWER, "")]:
                        said[kind] += piece
                        yield Token(piece, count - 1) if kind == ANSWER else Thought(piece, count - 1)
                    shown = max(shown, len(text))
                    if stopped:
                        turn.raw, reason = text, "stop"
                        turn.tokens = template.encode(text)
                        self._forget_cache()
                        break
                    if response.finish_reason is not None:
                        reason, turn.ended = response.finish_reason, end
                        break
                    if stop.is_set():
                        break
                    told: list[Event] = []
                    newest = self._wanted
                    if newest is not wanted:
                        if {n for n, _ in newest[1]} != {n for n, _ in scales}:  # not a mere drift
                            guard.restart()
                        wanted = newest
                        feeling, scales = wanted
                        told.append(FeelingChanged(str(feeling), feeling.weights, count))
                        timeline.append((count, str(feeling)))
                    if options.guard and scales and not muted and guard.add(response.token):
                        if guard.ended:
                            reason = "loop"
                            yield from told
                            break
                        told.append(GuardTripped(count, guard.factor))
                    inside = options.think != "feel" and thoughts.inside
                    if not told and inside == muted:
                        continue
                    muted = inside
                    now = () if muted else guard.weakened(scales)
                    # The next forward pass is under way; the one after it is the first that can change.
                    row.set(now, row.offset)
                    turn.felt.append((count, now))
                    yield from told
                for kind, piece in thoughts.finish():
                    said[kind] += piece
                    yield Token(piece, count - 1) if kind == ANSWER else Thought(piece, count - 1)
                if watch is not None:
                    yield from watch.ready(len(turn.tokens))
            except _Stopped:
                self._cached = prompt[: row.offset]  # whole chunks of it
            finally:
                stream.close()
        except (GeneratorExit, UsageError):  # the reader left between two tokens, or the message is too long
            raise
        except BaseException:  # a pass that failed may have written into some layers' caches
            self._forget_cache()
            raise
        finally:
            self._answering = False
            if thoughts.tokens or thoughts.unfinished:
                turn.forget_block(thoughts.tokens or len(turn.tokens), said[ANSWER])
            turn.answered = bool(turn.raw)
            if not turn.answered:
                turn.felt = []
                if before is not None:
                    self.turns[-1] = before
        seconds = time.perf_counter() - began - first
        yield Done(
            text=turn.reply,
            finish_reason=reason,
            feeling=str(feeling),
            scale=guard.weakened(scales),
            seed=seed,
            guard=guard.factor < 1,
            prompt_tokens=len(prompt),
            prefilled=min(row.offset, len(prompt)) - shared,
            tokens=count,
            tokens_per_second=(count - 1) / seconds if count > 1 and seconds > 0 else 0.0,
            time_to_first_token=first,
            timeline=tuple(timeline),
            thinking=said[THOUGHT].strip(),
            thinking_tokens=thoughts.tokens or (count if thoughts.unfinished else 0),
        )


def seeded(steps: Iterator[T], seed: int) -> Iterator[T]:
    """``steps``, each with a random state of its own.

    The state belongs to the thread, and between two steps other work on it may draw or seed, too.
    """
    import mlx.core as mx

    for n in itertools.count():
        mx.random.seed((seed * 1_000_003 + n) % 2**63)
        step = next(steps, None)
        if step is None:
            return
        yield step


def _can_go_back(cache: list[Any]) -> bool:
    """Whether tokens can be taken off the end of a prompt cache, and the rest is as if they had never been."""
    from mlx_lm.models.cache import can_trim_prompt_cache

    # mlx-lm 0.32.2 also calls a chunked cache (llama4) trimmable when it has dropped its front already.
    return can_trim_prompt_cache(cache) and not any(getattr(c, "start_position", 0) for c in cache)


def parse_feeling(voice: Voice, value: Feeling | str | Mapping[str, float] | None) -> Feeling:
    """``value`` as a feeling of this model's pack. Raises ``UsageError``."""
    return Feeling.of(value, voice.catalogue)
