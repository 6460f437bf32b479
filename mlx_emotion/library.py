"""What is on this machine, models and their packs, and making a pack that is missing."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Interrupted, MLXEmotionError, ModelError, PackError, UsageError
from .files import check_writable, packs_folder, stamp, user_path

if TYPE_CHECKING:
    from .extraction import Plan
    from .model import Model
    from .session import Voice
    from .vectors import EmotionVectors, Identity


@dataclass(frozen=True)
class Available:
    """A model on this machine. ``packs`` are the packs made for it; ``problem`` is why it cannot be used."""

    name: str
    path: Path
    bytes: int
    quantization: str = ""
    packs: tuple[Path, ...] = ()
    problem: str | None = None
    identity: Identity | None = None


def available() -> list[Available]:
    """The embedded model and those in the Hugging Face cache. Reads headers only; nothing is loaded."""
    from .model import find_packs
    from .models import EMBEDDED, identify, local_models, missing_weights, quantization, servable

    found = []
    for name, path, size in local_models():
        missing = missing_weights(path)
        if missing:
            problem = f"{len(missing)} of its weight files are not here ({missing[0]})"
            found.append(Available(name, path, size, problem=problem))
            continue
        try:
            identity, config = identify(str(path))
            if not servable(config):
                raise ModelError(f"mlx-lm has no chat model of the kind {identity.architecture}")
        except ModelError as error:
            found.append(Available(name, path, size, problem=str(error)))
        else:
            if name != EMBEDDED:  # not what its folder in the cache is called
                identity = replace(identity, id=name, revision=path.name)
            packs = tuple(find_packs(identity))
            found.append(Available(name, path, size, quantization(config), packs, identity=identity))
    return found


def in_folders(names: Iterable[str], found: Iterable[Available]) -> list[Available]:
    """Those of ``names``, and the default model, that are folders and not ``found``; they keep the names given."""
    from .models import default_model

    known = {m.name for m in found} | {str(Path(m.path).resolve()) for m in found}
    names = list(names)
    with contextlib.suppress(MLXEmotionError):  # the configuration cannot be read
        names.append(default_model())
    new = []
    for name in names:
        try:
            path = user_path(name)
        except UsageError:  # nobody has that home
            continue
        if os.path.isdir(path) and not {name, str(path.resolve())} & known:
            known.add(str(path.resolve()))
            new.append(_in_folder(name, path))
    return new


def _in_folder(name: str, path: Path) -> Available:
    from .model import find_packs
    from .models import identify, quantization

    size = sum(f.stat().st_size for f in path.glob("model*.safetensors") if f.exists())  # a link may lead nowhere
    try:
        identity, config = identify(str(path))
    except MLXEmotionError as error:
        return Available(name, path, size, problem=str(error))
    return Available(name, path, size, quantization(config), tuple(find_packs(identity)), identity=identity)


def pack_path(model: Model) -> Path:
    """Where a pack made for ``model`` goes: a place where no pack of another model, adapter or revision is."""
    from .model import stem
    from .vectors import read_info

    name, mark = f"{stem(model.identity)}-{model.site}", model.identity.fingerprint
    path, own = packs_folder() / f"{name}.safetensors", packs_folder() / f"{name}-{mark[:8]}.safetensors"
    if own.exists():  # where this model's pack went when another had the place: `find_packs` takes it first
        return own
    with contextlib.suppress(PackError):  # none there, or a broken one
        if read_info(path).model.fingerprint != mark:
            return own
    return path


def lost_by(model: Model, plan: Plan) -> str:
    """What a pack of ``plan`` would take away that the one in use now has; empty if nothing.

    It would be written over it, or, where that one came with the program or has another name, be used in its place.
    """
    from .model import find_packs
    from .vectors import EmotionVectors, read_info

    found = find_packs(model.identity, model.site)
    if not found:
        return ""
    old, place = read_info(found[0]).emotions, pack_path(model)
    instead = "" if found[0] == place else f"; the new one, {place}, would be used in its place"
    if missing := sorted(set(old) - set(plan.queries)):
        return f"{found[0]} also has {', '.join(missing)}" + (instead or ", which would be lost")
    if left_out := sorted(set(range(model.identity.layers)) - set(model.layers)):
        vectors = EmotionVectors.load(found[0])
        if lost := [i for i in left_out if any(vectors[name][i].any() for name in vectors)]:
            return f"{found[0]} also has layers that this model was loaded without ({lost[0]}){instead}"
    if fewer := [n for n, entry in old.items() if int(entry.get("count") or 0) > len(plan.queries[n])]:
        return f"{found[0]} was made with more queries ({old[fewer[0]]['count']} for {fewer[0]}){instead}"
    return ""


@dataclass(frozen=True)
class Step:
    """How far the making of a pack is: ``done`` of ``total`` in ``stage`` (``extracting`` or ``calibrating``).

    ``began`` is what an earlier, interrupted run had done already.
    """

    stage: str
    done: int
    total: int
    began: int = 0
    note: str = ""


def make_pack(
    model: Model,
    limit: int | None = None,
    progress: Callable[[Step], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    *,
    plan: Plan | None = None,
    path: Path | None = None,
    batch_size: int = 16,
    calibrate: bool = True,
    seed: int = 0,
    restart: bool = False,
    replace: bool = False,
) -> EmotionVectors:
    """Extract a pack for ``model``, calibrate it, save and use it.

    ``plan`` says what is extracted; without one, the shipped set, at most ``limit`` queries an emotion. ``path``
    is where the pack goes, by default ``pack_path``, or beside it where another program
    has written there meanwhile; there a pack that has more is refused with ``UsageError``,
    unless ``replace``. ``seed`` is for calibration's sampling. Goes on with an earlier run of the same settings,
    unless ``restart``. Raises ``PackError`` at once where ``path`` cannot be written, and ``Interrupted`` when
    ``stopped`` says so; stopped while calibrating, the pack is already there and in use, with the scales of the
    one before it, or 1.
    """
    from .calibration import Calibration
    from .extraction import Extraction, Plan, Progress

    plan = plan or Plan.make(limit=limit)
    if path is None and not replace and (lost := lost_by(model, plan)):
        raise UsageError(f"{lost}; nothing was made")
    place = path or pack_path(model)
    check_writable(place, PackError)  # before hours of work, not after
    interrupted = threading.Event()
    tell = progress or (lambda _: None)

    def extract(voice: Voice) -> tuple[EmotionVectors, Extraction]:
        extraction = Extraction(voice, plan, batch_size, restart)
        began = extraction.resumed

        def report(p: Progress) -> None:
            tell(Step("extracting", p.done, p.total, began, f"{p.tokens} tokens"))

        tell(Step("extracting", began, plan.total, began))
        pack = extraction.run(report, stopping)
        if calibrate:
            _take_scales(pack, place)
        save(pack)
        return pack, extraction

    was = stamp(place)

    def save(pack: EmotionVectors) -> None:
        """To ``place``, or beside it where another program has written there since this began."""
        nonlocal place, was
        if stamp(place) != was:
            free = (place.with_stem(f"{place.stem}-{n}") for n in itertools.count(2))
            place = next(p for p in free if not p.exists())
        pack.save(place)
        was = stamp(place)

    def stopping() -> bool:
        return interrupted.is_set() or stopped()

    def run(work: Callable[[Voice], Any]) -> Any:
        try:
            return model.run(work)
        except BaseException:  # Ctrl-C reaches the one who waits, not the engine
            interrupted.set()
            raise

    pack, extraction = run(extract)
    model.use(pack)
    if calibrate:
        if stopping():
            raise Interrupted("stopped before calibration; the pack is in use, not calibrated")

        def work(voice: Voice) -> None:
            calibration = Calibration(voice, pack, seed, stopping)
            calibration.run(lambda done, total, note: tell(Step("calibrating", done, total, note=note)))
            save(pack)
            calibration.forget()

        run(work)
        model.use(pack)
    extraction.forget()
    return pack


def _take_scales(pack: EmotionVectors, path: Path) -> None:
    """Until new ones are found, the scales of the pack in ``path``, if it is of the same model and site."""
    from .vectors import read_info

    with contextlib.suppress(PackError):
        old = read_info(path)
        if (old.model.fingerprint, old.site) == (pack.info.model.fingerprint, pack.info.site):
            pack.info.base_scale = old.base_scale
            for name in pack.info.emotions.keys() & old.emotions.keys():
                pack.info.emotions[name]["scale"] = old.emotions[name].get("scale")
