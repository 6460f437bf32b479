"""The first stage: a run's folder, and making its answers so that a killed run ends as an undisturbed one."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..batch import Finished, Job, run_batch
from ..emotions import BASE, Feeling
from ..errors import EvaluationError, Interrupted
from ..events import Done
from ..extraction import library_versions
from ..files import atomic_write, user_path
from ..model import find_packs
from ..models import EMBEDDED
from ..session import Options, Session, Voice
from ..steering import Dose
from ..vectors import EmotionVectors, Identity
from .plan import METHODS, Plan, Settings, Task, other_settings, uncalibrated

FORMAT = 1
FIGURES = (
    "dose_response", "topic", "linearity", "addition", "fading", "circumplex", "tsne", "distances", "norms", "cosines",
)  # fmt: skip
"""Names of the figures; here, so that those of an earlier run are found without what draws them."""

TURN_TOKENS = 64
"""Longest answer in a conversation, where many turns have to fit into the context."""

SHORTEST_TURN = 16
"""Shorter ones would not show what is felt: in a very small context old turns fall out instead."""

Report = Callable[[int, int, str], None]
Stopped = Callable[[], bool]
Warn = Callable[[str], None]


def never() -> bool:
    """Go on to the end."""
    return False


def quiet(done: int, total: int, note: str) -> None:
    """A progress report that nobody reads."""


def silent(line: str) -> None:
    """A warning that nobody reads."""


def finite(data: Any) -> Any:
    """``data`` with ``None`` for every number that JSON has not: a value that is missing."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {k: finite(v) for k, v in data.items()}
    return [finite(v) for v in data] if isinstance(data, list | tuple) else data


def write_json(path: Path, data: Any) -> None:
    """Write ``data``, whole or not at all. Raises ``EvaluationError``."""
    with atomic_write(path, EvaluationError) as temporary:
        temporary.write_text(json.dumps(finite(data), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, before: str) -> Any:
    """Raises ``EvaluationError`` that names the stage ``before`` this one where the file is missing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(f"{path} is not there yet; run `mlx-emotion evaluate --stage {before}` first") from None
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: not readable: {error}") from None


def pack_hash(pack: EmotionVectors) -> str:
    """A hash of everything in a pack that answers depend on, whatever file it is in."""
    digest = hashlib.sha256(f"{pack.info.site} {pack.info.base_scale}".encode())
    for name in pack:
        entry = pack.info.emotions[name]
        about = [name, *(entry.get(k) for k in ("scale", "instructions", "valence", "arousal"))]
        digest.update(json.dumps(about).encode())
        digest.update(np.ascontiguousarray(pack[name], np.float32).tobytes())
    return digest.hexdigest()[:32]


def _place(pack: EmotionVectors, identity: Identity) -> str | None:
    """Where a pack is, unless it is the one that is taken unasked."""
    if pack.path is None or pack.path in find_packs(identity, pack.info.site)[:1]:
        return None
    return str(pack.path.resolve())


def full_name(model: str) -> str:
    """A model's name that says the same in every working folder."""
    path = user_path(model)
    return str(path.resolve()) if model != EMBEDDED and path.is_dir() else model


class Run:
    """The folder of one evaluation. Its file names are fixed."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.file = self.folder / "run.json"
        self.answers = self.folder / "answers.jsonl"
        self.judgements = self.folder / "judgements.jsonl"
        self.probes = self.folder / "probes.json"
        self.readouts = self.folder / "readouts.json"
        self.scores = self.folder / "scores.json"
        self.table = self.folder / "scores.csv"
        self.report = self.folder / "report.html"
        self.markdown = self.folder / "report.md"
        self.figures = self.folder / "figures"

    @property
    def _own(self) -> list[Path]:
        """Every file that a run makes, whether it is there or not; ``run.json`` last."""
        files = [self.answers, self.judgements, self.probes, self.readouts, self.scores, self.table]
        files += [self.report, self.markdown, *(self.vectors(m) for m in ("mean", *METHODS))]
        files += [self.figures / f"{name}{suffix}" for name in FIGURES for suffix in (".png", ".svg")]
        return [*files, self.file]

    def vectors(self, method: str) -> Path:
        """Where the vectors of another method are kept."""
        return self.folder / "vectors" / f"{method}.safetensors"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other process out of this folder, if it is there; of two, the second gets ``EvaluationError``."""
        import fcntl

        try:
            handle = os.open(self.folder, os.O_RDONLY)
        except FileNotFoundError:
            yield
            return
        except OSError as error:
            raise EvaluationError(f"cannot use {self.folder}: {error.strerror or error}") from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EvaluationError(
                    f"another process is at work in {self.folder}; wait for it, or give another --output"
                ) from None
            except OSError:
                pass  # a file system without locks
            yield
        finally:
            os.close(handle)

    def begin(
        self,
        name: str,
        identity: Identity,
        quantization: str,
        plan: Plan,
        restart: bool = False,
        adapter: str | None = None,
        warn: Warn = silent,
    ) -> None:
        """Make this folder the run of ``plan``, or check that it is. Raises ``EvaluationError`` for another's.

        ``name`` and ``adapter`` are how the model is loaded again; ``warn`` is told where the versions of
        libraries are not those that the run began with. With ``restart`` the files of an
        earlier run here are removed first; others stay, and a folder that is no run is refused.
        """
        pack = plan.pack
        model = {**dataclasses.asdict(identity), "quantization": quantization, "name": full_name(name)}
        if adapter is not None:
            model["adapter"] = str(Path(adapter).resolve())
        record = {
            "format": FORMAT,
            "model": model,
            "pack": {
                "sha256": pack_hash(pack),
                "site": pack.info.site,
                "path": _place(pack, identity),
                "queries": dict(pack.info.queries),
                "scales": {e: pack.scale(e) for e in [*pack, "base"]},
                "calibrated": not uncalibrated(pack, plan.settings.emotions),
                "uncalibrated": uncalibrated(pack, [*pack, BASE]),
                "mean_only": [e for e in plan.settings.asked if e not in plan.comparable],
            },
            "settings": plan.settings.record(),
            "tasks": plan.hash,
            "versions": library_versions(),
            "answers": len(plan.tasks),
        }
        if restart and self.file.exists():
            self._clear()
        if not self.file.exists():
            if stray := next((p for p in self._own if p.exists()), None):
                raise EvaluationError(f"{stray} is in the way, and no run.json says whose it is; give another --output")
            write_json(self.file, record)
            return
        there = self.read()
        wrong = [f"{what}: there {a}, asked {b}" for what, a, b in _differences(there, record)]
        if wrong:
            raise EvaluationError(
                f"{self.folder} holds another run ({'; '.join(wrong)}); give another --output, or --restart"
            )
        old: Any = there.get("versions")
        old = old if isinstance(old, dict) else {}
        changed = [f"{n} {old.get(n)}, now {v}" for n, v in library_versions().items() if old.get(n) != v]
        if changed:
            warn(f"this run began with other versions ({'; '.join(changed)}): its answers may not be of one kind")

    def check_given(
        self,
        settings: Mapping[str, Any],
        name: str | None = None,
        adapter: str | None = None,
        vectors: str | None = None,
        site: str | None = None,
    ) -> None:
        """Raises ``EvaluationError`` where something said of the run in this folder is not so; ``None`` is any."""
        there = self.read()
        model, pack = there["model"], there["pack"]
        pairs = [
            ("model", full_name(model["name"]), name and full_name(name)),
            ("adapter", model.get("adapter"), adapter and str(Path(adapter).resolve())),
            ("pack", pack.get("sha256"), vectors and pack_hash(EmotionVectors.load(vectors))),
            ("site", pack["site"], site),
        ]
        wrong = [f"{what}: there {a}, asked {b}" for what, a, b in pairs if b is not None and a != b]
        wrong += other_settings(there["settings"], settings)
        if wrong:
            raise EvaluationError(
                f"{self.folder} holds another run ({'; '.join(wrong)}); leave that out, or give another --output"
            )

    def _clear(self) -> None:
        """Remove what an earlier run made, ``run.json`` last, so that a half cleared folder still is one."""
        self._record()
        try:
            for path in self._own:
                path.unlink(missing_ok=True)
            for folder in (self.figures, self.vectors("mean").parent):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        except OSError as error:
            raise EvaluationError(f"cannot clear {self.folder}: {error.strerror or error}") from None

    def _record(self) -> dict[str, Any]:
        """``run.json``, of this format or another. Raises ``EvaluationError`` where it is not a run's."""
        data = read_json(self.file, "generate")
        parts = ("model", "pack", "settings")
        if not isinstance(data, dict) or "format" not in data or not all(isinstance(data.get(p), dict) for p in parts):
            raise EvaluationError(f"{self.file}: not a run of mlx-emotion evaluate; give another --output")
        return data

    def read(self) -> dict[str, Any]:
        """``run.json``. Raises ``EvaluationError``."""
        data = self._record()
        if data["format"] != FORMAT:
            raise EvaluationError(f"{self.file}: not a run of this version; give another --output, or --restart")
        wanted: dict[str, dict[str, type]] = {
            "": {"answers": int},
            "model": {"id": str, "fingerprint": str, "name": str},
            "pack": {"scales": dict, "queries": dict, "site": str},
            "settings": {"emotions": list, "unit": str, "parts": list, "seed": int, "queries": dict, "source": dict},
        }
        for part, fields in wanted.items():
            for name, kind in fields.items():
                if not isinstance((data[part] if part else data).get(name), kind):
                    where = f"{part}.{name}" if part else name
                    raise EvaluationError(f"{self.file}: {where} is missing or wrong; mend it, or --restart")
        return data

    def read_answers(self) -> list[dict[str, Any]]:
        """Every whole line of ``answers.jsonl``. Raises ``EvaluationError`` for a file that is not one."""
        return read_lines(self.answers, ANSWER, "mend the line, or --restart")


ANSWER = dict.fromkeys(("id", "condition", "part", "kind", "question", "answer"), str)
"""What every answer has, and of which kind."""


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    pairs = [("model", a["model"].get("id"), b["model"]["id"])]
    pairs += [("model fingerprint", a["model"].get("fingerprint"), b["model"]["fingerprint"])]
    pairs += [("site", a["pack"].get("site"), b["pack"]["site"])]
    pairs += [("pack", a["pack"].get("sha256"), b["pack"]["sha256"])]
    keys = sorted({*a["settings"], *b["settings"]})
    pairs += [(k, a["settings"].get(k), b["settings"].get(k)) for k in keys]
    pairs += [("questions, instructions or scales", a.get("tasks"), b["tasks"])]
    return [(what, x, y) for what, x, y in pairs if x != y]


def read_lines(
    path: Path, fields: Mapping[str, type] | None = None, otherwise: str = "mend the line, or delete the file"
) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a last line that was cut short is left out.

    ``fields`` are what each must have. Raises ``EvaluationError`` that says what to do ``otherwise``.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror or error}") from None
    lines = raw.split(b"\n")[:-1]
    found = []
    for number, line in enumerate(lines, 1):
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            item = None
        if not isinstance(item, dict):
            raise EvaluationError(f"{path}, line {number}: not a JSON object; {otherwise}")
        if wrong := [n for n, kind in (fields or {}).items() if not isinstance(item.get(n), kind)]:
            raise EvaluationError(f"{path}, line {number}: {', '.join(wrong)} missing or wrong; {otherwise}")
        found.append(item)
    return found


def append_lines(path: Path, items: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to a JSONL file and see them onto the disk. Raises ``EvaluationError``."""
    try:
        with open(path, "ab") as file:
            file.write(b"".join(json.dumps(finite(i), ensure_ascii=False).encode() + b"\n" for i in items))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror or error}") from None


def cut_lines(path: Path, count: int) -> None:
    """Keep the first ``count`` lines of a file, and nothing of a line cut short."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        for _ in range(count):
            file.readline()
        file.truncate(file.tell())


class Doses:
    """A condition's dose on the model, made once."""

    def __init__(self, voice: Voice, packs: Mapping[str, EmotionVectors]) -> None:
        self.voice, self.packs = voice, packs
        self._made: dict[tuple[Any, ...], Dose | None] = {}

    def __call__(self, scales: tuple[tuple[str, float], ...], method: str = "mean") -> Dose | None:
        key = (scales, method)
        if key not in self._made:
            vector = self.packs[method].mix(dict(scales))
            if vector is not None and method != "mean":
                # At the length of the paper's vectors, so that only the direction is compared.
                vector = vector * _length(self.packs["mean"].mix(dict(scales))) / _length(vector)
            self._made[key] = None if vector is None else self.voice.taps.dose(vector)
        return self._made[key]


def _length(vector: np.ndarray | None) -> np.float32:
    return np.float32(0 if vector is None else np.linalg.norm(vector))


def generate(
    voice: Voice,
    plan: Plan,
    run: Run,
    packs: Mapping[str, EmotionVectors],
    progress: Report = quiet,
    stopped: Stopped = never,
) -> int:
    """Make the answers that are missing; returns how many tokens that took. On the thread that owns MLX.

    Answers are made and written a chunk at a time, each chunk with a seed of its own, so that what a
    killed run makes again comes out as it was. Raises ``Interrupted`` when ``stopped`` says so.
    """
    s = plan.settings
    doses = Doses(voice, packs)
    there = run.read_answers()
    ids = [t.id for t in plan.tasks]
    if [a.get("id") for a in there] != ids[: len(there)]:
        raise EvaluationError(f"{run.answers}: its lines are not this run's; give another --output, or --restart")
    total, done, tokens, position = len(ids), 0, 0, 0
    for number, chunk in enumerate(plan.chunks):
        position += len(chunk.tasks)
        if position <= len(there):
            done = position
            continue
        cut_lines(run.answers, done)
        seed = s.seed * 1_000_003 + number
        make = _converse if chunk.conversation else _answer
        finished: dict[str, Finished] = {}
        for piece in make(voice, chunk.tasks, doses, s, seed, stopped):
            finished[piece.key.id] = piece
            tokens += len(piece.tokens)
            progress(done + len(finished), total, f"{tokens} tokens")
        if stopped():
            raise Interrupted(f"stopped; the same command goes on from {done} of {total} answers")
        append_lines(run.answers, [_line(task, finished[task.id]) for task in chunk.tasks])
        done = position
    return tokens


def _answer(
    voice: Voice, tasks: Sequence[Task], doses: Doses, s: Settings, seed: int, stopped: Stopped
) -> Iterator[Finished]:
    """Single questions, batched, each row under its own feeling."""
    import mlx.core as mx

    template = voice.loaded.template
    jobs = (
        Job(
            task,
            template.encode(template.render([{"role": "user", "content": task.text}], think=s.think != "off")),
            doses(task.condition.scales, task.condition.method),
            think=s.think,
        )
        for task in tasks
    )
    mx.random.seed(seed)
    for piece in run_batch(
        voice,
        jobs,
        batch_size=s.batch_size,
        max_tokens=s.max_tokens,
        temperature=s.temperature,
        top_p=s.top_p,
        stopped=stopped,
    ):
        assert isinstance(piece, Finished)
        yield piece


def _converse(
    voice: Voice, tasks: Sequence[Task], doses: Doses, s: Settings, seed: int, stopped: Stopped
) -> Iterator[Finished]:
    """One conversation, as a user has it: what was said stays in the cache as it was felt."""
    del doses, seed  # a session makes its own; whatever is felt, a question is answered with the same draws
    condition = tasks[0].condition
    feeling = Feeling(((condition.emotion, 1.0),)) if condition.scales else Feeling()
    limit = turn_limit(voice, tasks, s.max_tokens) if s.think == "off" else s.max_tokens
    options = Options(temperature=s.temperature, top_p=s.top_p, max_tokens=limit, guard=False, think=s.think)
    session = Session(voice, feeling, options)
    for task in tasks:
        if stopped():
            return
        draws = s.seed * 1_000_003 + zlib.crc32(task.query.id.encode())
        for event in session.reply(task.text, draws):
            if isinstance(event, Done):
                # A full context loses the first turns, and one without an answer is left out of the prompt, too.
                begun = session.first == 0 and (len(session.turns) == 1 or session.turns[0].answered)
                kept = begun if condition.instruction else None
                yield Answer(task, session.turns[-1].tokens, event.text, event.finish_reason, in_prompt=kept)


def turn_limit(voice: Voice, tasks: Sequence[Task], most: int) -> int:
    """Longest answer of each turn with which the whole conversation fits into the context, within limits."""
    most = min(most, TURN_TOKENS)
    if voice.loaded.context is None:
        return most
    template = voice.loaded.template
    said = [{"role": role, "content": text} for t in tasks for role, text in (("user", t.text), ("assistant", "."))]
    room = voice.loaded.context - len(template.encode(template.render(said)))
    return min(most, max(room // len(tasks), SHORTEST_TURN))


@dataclass(frozen=True)
class Answer(Finished):
    """``in_prompt``: whether the instruction that opened the conversation still was in the prompt."""

    in_prompt: bool | None = None


def _line(task: Task, answer: Finished) -> dict[str, Any]:
    """An answer as it is written: with everything that scoring and the report need."""
    c = task.condition
    line: dict[str, Any] = {
        "id": task.id,
        "condition": c.id,
        "part": c.part,
        "kind": c.kind,
        "emotion": c.emotion,
        "dose": c.dose,
        "way": c.way,
        "angle": c.angle,
        "group": task.query.group,
        "turn": task.turn,
        "question": task.query.text,
        "answer": answer.text,
        "tokens": len(answer.tokens),
        "reason": answer.reason,
        "instruction_in_prompt": answer.in_prompt if isinstance(answer, Answer) else None,
    }
    return {k: v for k, v in line.items() if v not in (None, "") or k == "answer"}
