"""The same message under several feelings at once: one batch, each row steered its own way."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .emotions import Feeling
from .errors import UsageError
from .events import Done, GuardTripped, Token
from .options import check_seed, check_text
from .session import Session, Turn

MOST = 6
"""Feelings in one comparison: neutral and up to five others."""


@dataclass(frozen=True)
class Answer:
    """An event of the reply under feeling number ``column``."""

    column: int
    event: Token | GuardTripped | Done


def compare(
    session: Session, message: str, feelings: Sequence[Feeling], seed: int | None, stop: threading.Event
) -> Iterator[Answer]:
    """Answer ``message`` after the session's history under every feeling; yields each reply's tokens, then ``Done``.

    The session is left as it was. Rows share one seed and one batch, and the guard acts on each of them.
    Runs on the thread that owns MLX. Raises ``UsageError``.
    """
    if not message.strip():
        raise UsageError("the message is empty")
    check_text(message, "the message")
    seed = check_seed(seed)
    session.voice.check_open()
    session.check_idle()
    if not 1 <= len(feelings) <= MOST:
        raise UsageError(f"{len(feelings)} feelings to compare, wanted 1 to {MOST}")
    from .batch import Job, Piece, run_batch
    from .guard import Guard

    options, voice = session.options, session.voice
    began = time.perf_counter()
    seed = secrets.randbelow(2**31) if seed is None else seed
    scales = [voice.scales(f, options.scale) for f in feelings]
    jobs = []
    for n, s in enumerate(scales):
        prompt, history = session.outline([*session.turns, Turn(message)], s)
        jobs.append(Job(n, prompt, voice.dose(s), options.positions == "all", history, options.think))
    counts = [0] * len(jobs)
    firsts = [0.0] * len(jobs)
    guards = [Guard() for _ in jobs]
    texts = [""] * len(jobs)
    open_ = set(range(len(jobs)))

    def done(n: int, text: str, reason: str) -> Answer:
        seconds = time.perf_counter() - began - firsts[n]
        feeling = str(feelings[n])
        return Answer(
            n,
            Done(
                text=text.strip(),
                finish_reason=reason,
                feeling=feeling,
                scale=guards[n].weakened(scales[n]),
                seed=seed,
                guard=guards[n].factor < 1,
                prompt_tokens=len(prompt),
                prefilled=len(prompt),
                tokens=counts[n],
                tokens_per_second=(counts[n] - 1) / seconds if counts[n] > 1 and seconds > 0 else 0.0,
                time_to_first_token=firsts[n],
                timeline=((0, feeling),),
            ),
        )

    results = run_batch(
        voice,
        jobs,
        batch_size=len(jobs),
        max_tokens=min(session.longest(job.prompt) for job in jobs),
        temperature=options.temperature,
        top_p=options.top_p,
        pieces=True,
        seed=seed,
        stopped=stop.is_set,
        dropped=lambda n: n not in open_,
    )
    for result in results:
        n = result.key
        if isinstance(result, Piece):
            if not counts[n]:
                firsts[n] = time.perf_counter() - began
            counts[n] += 1
            texts[n] += result.text
            yield Answer(n, Token(result.text, counts[n] - 1))
            if not (options.guard and scales[n] and not result.thinking and guards[n].add(result.token)):
                continue
            if guards[n].ended:
                open_.discard(n)
                yield done(n, texts[n], "loop")
                continue
            result.row.set(voice.dose(guards[n].weakened(scales[n])), result.row.offset)
            yield Answer(n, GuardTripped(counts[n], guards[n].factor))
        elif n in open_:
            open_.discard(n)
            yield done(n, result.text, result.reason)
    for n in sorted(open_):
        yield done(n, texts[n], "cancelled")
