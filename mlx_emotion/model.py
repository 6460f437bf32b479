"""``Model`` and ``Chat``: the library's front door. Usable from any thread; the work runs on the engine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .emotions import CATALOGUE, Emotion, Feeling
from .engine import Engine, shared
from .errors import ModelError, PackError, UsageError
from .events import Done, Event, Reading
from .files import packs_folder
from .models import LoadedModel, load_model, resolve
from .session import Options, Session, Voice, parse_feeling
from .steering import Taps
from .vectors import EmotionVectors, Identity, read_info, shipped_packs

if TYPE_CHECKING:
    from .compare import Answer

FeelingLike = Feeling | str | Mapping[str, float] | None


@dataclass(frozen=True)
class Generation:
    """One complete reply; ``scale`` is the raw scale per emotion, times are in seconds."""

    text: str
    feeling: str
    scale: dict[str, float]
    model: str
    pack: str | None
    seed: int
    finish_reason: str
    guard: bool
    prompt_tokens: int
    tokens: int
    tokens_per_second: float
    time_to_first_token: float
    thinking: str = ""


def find_packs(identity: Identity, site: str | None = None) -> list[Path]:
    """The packs on this machine made for this very model: what ``extract`` made, other own ones, shipped ones."""
    found = []
    for folder in (packs_folder(), shipped_packs()):
        here = []
        for path in sorted(folder.glob("*.safetensors")):
            try:
                info = read_info(path)
            except PackError:
                continue  # `vectors list` reports it
            if info.model.fingerprint == identity.fingerprint and site in (None, info.site):
                name = f"{stem(identity)}-{info.site}"
                here.append((path.stem not in (name, f"{name}-{identity.fingerprint[:8]}"), path))
        found += [path for _, path in sorted(here)]
    return found


def stem(identity: Identity) -> str:
    """How ``extract`` names a model's packs, before the site."""
    return identity.id.replace("/", "--")


def known_emotions() -> dict[str, Emotion]:
    """The built-in emotions and those that packs on this machine define."""
    found: dict[str, Emotion] = dict(CATALOGUE)
    for folder in (shipped_packs(), packs_folder()):
        for path in sorted(folder.glob("*.safetensors")):
            with contextlib.suppress(PackError):
                found |= read_info(path).catalogue
    return found


class Model:
    """A chat model with its emotion vectors. Make one with ``mlx_emotion.load``.

    ``emotions`` are those it can feel; ``vectors`` its pack or ``None``.
    """

    def __init__(self, engine: Engine, voice: Voice) -> None:
        self._engine, self._voice = engine, voice

    @property
    def id(self) -> str:
        return self._voice.loaded.identity.id

    @property
    def identity(self) -> Identity:
        return self._voice.loaded.identity

    @property
    def path(self) -> Path:
        return self._voice.loaded.path

    @property
    def quantization(self) -> str:
        return self._voice.loaded.quantization

    @property
    def site(self) -> str:
        return self._voice.taps.site

    @property
    def layers(self) -> tuple[int, ...]:
        """The 0-based layers that are steered and read."""
        return tuple(self._voice.taps.layers)

    @property
    def vectors(self) -> EmotionVectors | None:
        return self._voice.vectors

    @property
    def emotions(self) -> list[str]:
        return self._voice.known

    @property
    def catalogue(self) -> Mapping[str, Emotion]:
        """What those emotions are: place on the circumplex and colour, also of a user's own."""
        return self._voice.catalogue

    def use(self, vectors: EmotionVectors | str | Path | None, force: bool = False) -> None:
        """Take another pack. Raises ``PackError`` that lists every difference, unless ``force`` and the shapes fit."""
        old = self._voice
        old.check_open()
        pack = check_pack(vectors, self.identity, self.site, force) if vectors is not None else None
        self._voice = Voice(old.loaded, old.taps, pack)

    def feeling(self, value: FeelingLike) -> Feeling:
        """``value`` as a feeling of this model. Raises ``UsageError``."""
        return parse_feeling(self._voice, value)

    def chat(self, feeling: FeelingLike = None, **options: Any) -> Chat:
        """A new conversation; ``options`` are those of ``Options``."""
        return Chat(self, self.feeling(feeling), _options(options))

    def generate(self, prompt: str, feeling: FeelingLike = None, seed: int | None = None, **options: Any) -> Generation:
        """One reply to one message. Raises ``UsageError`` for what is wrong with the arguments."""
        chat = self.chat(feeling, **options)
        done: Done | None = None
        for event in chat.stream(prompt, seed=seed):
            if isinstance(event, Done):
                done = event
        assert done is not None
        return self.generation(done)

    def generation(self, done: Done) -> Generation:
        """The end of a reply as a record."""
        pack = self.vectors.path if self.vectors is not None else None
        return Generation(
            text=done.text,
            feeling=done.feeling,
            scale=dict(done.scale),
            model=self.id,
            pack=str(pack) if pack else None,
            seed=done.seed,
            finish_reason=done.finish_reason,
            guard=done.guard,
            prompt_tokens=done.prompt_tokens,
            tokens=done.tokens,
            tokens_per_second=round(done.tokens_per_second, 2),
            time_to_first_token=round(done.time_to_first_token, 4),
            thinking=done.thinking,
        )

    def run(self, work: Any, *args: Any, **kwargs: Any) -> Any:
        """Run ``work(voice, *args)`` on the thread that owns this model and return its result."""
        self._voice.check_open()
        return self._engine.run(work, self._voice, *args, **kwargs)

    @property
    def memory(self) -> int:
        """Bytes that MLX holds in this process."""

        def held(_: Voice) -> int:
            import mlx.core as mx

            return mx.get_active_memory()

        return self.run(held)

    def prepare(self) -> None:
        """Make now what readouts need, and not at the first reply that asks for one."""

        def make(voice: Voice) -> None:
            voice.projector()

        self.run(make)

    def close(self) -> None:
        """End its use: whatever is asked of it afterwards is a ``ModelError``, also a half-read reply's next token.

        Its memory comes back when nothing refers to it and its chats any more.
        """
        self._voice.taps.closed = True
        self._engine.run(self._voice.taps.remove)


class Chat:
    """A conversation. ``feel`` and ``stop`` act at once, also from another thread while a reply is streaming."""

    def __init__(self, model: Model, feeling: Feeling, options: Options) -> None:
        self._model = model
        self._session = Session(model._voice, feeling, options)

    @property
    def feeling(self) -> Feeling:
        return self._session.feeling

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, as role and content."""
        return self._session._messages(self._session.turns)

    def feel(self, feeling: FeelingLike) -> Feeling:
        """Change the feeling; acts from the token after the next. Raises ``UsageError``."""
        value = parse_feeling(self._session.voice, feeling)
        self._session.feel(value)
        return value

    def stop(self) -> None:
        """End the reply under way, else the one that was asked for last; what came is kept."""
        self._session.stop()

    @property
    def options(self) -> Options:
        return self._session.options

    def change(self, **options: Any) -> Options:
        """Change ``Options`` by name, from the next reply on; ``scale`` as ``feel``. Raises ``UsageError``."""
        changed = _options(asdict(self._session.options) | options)
        self._session.change(changed)
        return changed

    def add(self, user: str, reply: str, felt: Iterable[tuple[int, FeelingLike]] = ()) -> None:
        """Append an exchange from elsewhere, such as a stored one.

        ``felt`` are (index of the first token, feeling), in order. What this model cannot feel counts as neutral.
        """
        voice = self._session.voice
        steps = []
        for index, value in felt:
            try:
                steps.append((index, parse_feeling(voice, value) if voice.known else Feeling()))
            except UsageError:
                steps.append((index, Feeling()))
        self._model._engine.run(self._session.add, user, reply, steps)

    def drop(self) -> None:
        """Take the last exchange back. Raises ``UsageError`` when there is none."""
        self._model._engine.run(self._session.drop)

    def compare(self, message: str, feelings: Iterable[FeelingLike], seed: int | None = None) -> Iterator[Answer]:
        """Answer ``message`` under up to six feelings at once; the conversation stays as it is.

        Yields ``Answer(column, event)``; ``add`` takes one of them into the conversation.
        """
        from .compare import compare

        chosen = [parse_feeling(self._session.voice, f) for f in feelings]
        stop = self._session.ask()
        return self._model._engine.stream(lambda: compare(self._session, message, chosen, seed, stop), stop)

    def reset(self) -> None:
        """Forget the conversation."""
        self._model._engine.run(self._session.reset)

    def stream(self, message: str, seed: int | None = None) -> Iterator[Event]:
        """Answer ``message``; yields events, the last of them ``Done``. Closing the iterator ends the reply."""
        stop = self._session.ask()
        return self._model._engine.stream(lambda: self._session.reply(message, seed, stop), stop, Reading)

    def again(self, feeling: FeelingLike = None, seed: int | None = None) -> Iterator[Event]:
        """Answer the last message again, with another feeling if one is given."""
        if feeling is not None:
            self.feel(feeling)
        stop = self._session.ask()
        return self._model._engine.stream(lambda: self._session.again(seed, stop), stop, Reading)


def _options(given: Mapping[str, Any]) -> Options:
    known = Options.__dataclass_fields__
    if unknown := [k for k in given if k not in known]:
        raise UsageError(f"unknown option {', '.join(unknown)}: known are {', '.join(known)}")
    return Options(**given)


def check_pack(vectors: EmotionVectors | str | Path, identity: Identity, site: str, force: bool) -> EmotionVectors:
    """The pack, if it is for this model and site. Raises ``PackError`` that lists every difference."""
    pack = vectors if isinstance(vectors, EmotionVectors) else EmotionVectors.load(vectors)
    wrong = pack.mismatches(identity, site)
    if wrong and not (force and pack.fits(identity)):
        way_on = "use a pack made for it"
        if pack.fits(identity):
            way_on += ", or --force (force=True) to use this one all the same"
        raise PackError(f"{pack.path or 'this pack'} is not for this model: {'; '.join(wrong)}; {way_on}")
    return pack


def load(
    model: str | None = None,
    *,
    vectors: EmotionVectors | str | Path | None = None,
    site: str | None = None,
    layers: Iterable[int] | None = None,
    force: bool = False,
    revision: str | None = None,
    adapter: str | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Load a chat model and its pack.

    ``model`` is a folder or a Hugging Face id; the configured default, else the embedded model,
    without one. ``vectors`` is a pack; without one, the pack on this machine that was made for this
    model. ``site`` is ``attention`` or ``residual``: the pack's own, else ``attention``, unless there are only packs
    for ``residual`` on this machine. ``layers``
    are the 0-based layers to steer, all by default. ``progress`` is told (bytes that are here, bytes in all)
    while the model is downloaded, on other threads. Raises ``ModelError`` or ``PackError``.
    """
    pack = EmotionVectors.load(vectors) if isinstance(vectors, str | Path) else vectors
    place = site or (pack.info.site if pack is not None else None)
    resolve(model, revision, progress=progress)  # here, so that a download does not keep the engine from its other work
    engine = shared()

    def work() -> Voice:
        loaded = load_model(model, revision=revision, adapter=adapter, trust_remote_code=trust_remote_code)
        return make_voice(loaded, place, layers, pack, force)

    return Model(engine, engine.run(work))


def make_voice(
    loaded: LoadedModel,
    site: str | None,
    layers: Iterable[int] | None,
    pack: EmotionVectors | None,
    force: bool = False,
) -> Voice:
    """Tap and test a loaded model, and find its pack if none is given. On the thread that owns MLX."""
    if site is None:
        sites = {read_info(p).site for p in find_packs(loaded.identity)}
        site = sites.pop() if len(sites) == 1 else "attention"
    taps = Taps(loaded.model, site, layers).attach()
    try:
        try:
            taps.self_test()
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:  # as the model's code fails
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(f"{loaded.identity.id} loads, but does not run: {line}") from error
        if taps.width != loaded.identity.width:
            raise ModelError(
                f"{loaded.identity.id} has layers of width {taps.width}, its config says {loaded.identity.width}"
            )
        if pack is not None:
            pack = check_pack(pack, loaded.identity, site, force)
        elif found := find_packs(loaded.identity, site):
            pack = EmotionVectors.load(found[0])
    except BaseException:
        taps.remove()
        raise
    return Voice(loaded, taps, pack)


def extract(
    model: Model,
    emotions: Iterable[str] | None = None,
    queries: str | Path | Mapping[str, list[str]] | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    max_tokens: int = 128,
    keep_samples: bool = False,
    restart: bool = False,
    method: str = "mean",
    define: str | Path | None = None,
    think: bool = False,
) -> EmotionVectors:
    """Extract emotion vectors from ``model`` (arXiv 2502.04075, section 3.1), without calibration.

    ``queries`` is a JSON file or an object, emotion -> questions; the shipped set by default.
    ``method`` is ``mean``, ``last`` or ``pca``; ``define`` a TOML file with emotions of your own.
    An interrupted extraction of the same settings is gone on with, unless ``restart``. With ``think`` a thinking
    model reasons before it answers; that is no part of the means. Ctrl-C stops it at a safe place.
    """
    from .extraction import Extraction, Plan

    plan = Plan.make(emotions, queries, limit, max_tokens, keep_samples, method, define, think)

    interrupted = threading.Event()

    def work(voice: Voice) -> tuple[EmotionVectors, Extraction]:
        extraction = Extraction(voice, plan, batch_size, restart)
        return extraction.run(stopped=interrupted.is_set), extraction

    try:
        pack, extraction = model.run(work)
    except BaseException:  # Ctrl-C reaches the one who waits, not the engine
        interrupted.set()
        raise
    extraction.forget()  # else the next call would only read it, also after an upgrade of mlx
    return pack
