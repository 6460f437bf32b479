"""What gets models for the app: loading behind it, and taking what comes or throwing it away."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlx_emotion import MLXEmotionError

from .looks import readable_bytes

if TYPE_CHECKING:
    from mlx_emotion import Model

    from .app import EmotionApp


def tidy() -> None:
    """Let go of what nothing refers to; what is left is not looked at again, which took a twentieth of a second."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class Loader:
    """Loads models on threads of their own; the model in use stays until the next one is there.

    ``since`` is when the load under way began, or ``None``; ``name`` what it loads; ``asked`` all that was to be
    loaded so far. A load that is cancelled is over for the app at once: it ends behind, and its model is closed.
    """

    def __init__(self, app: EmotionApp, name: str | None, load: Callable[[str | None], Model]) -> None:
        self.app, self.name, self._load = app, name, load
        self.since: float | None = time.monotonic()
        self.asked: list[str] = []
        self._fetched: dict[str | None, tuple[int, int]] = {}
        self._number = 0
        self._threads = 0
        self._preparing: list[threading.Thread] = []

    @property
    def seconds(self) -> float:
        """How long the load under way has taken."""
        return time.monotonic() - self.since if self.since is not None else 0.0

    @property
    def told(self) -> str:
        """The load under way, in words."""
        done, total = self._fetched.get(self.name, (0, 0))
        fetched = f" · {readable_bytes(done)} of {readable_bytes(total)} fetched" if done < total else ""
        return f"loading {self.name or 'the model'}… {self.seconds:.0f} s{fetched}"

    def fetched(self, name: str | None, done: int, total: int) -> None:
        """So many bytes of a model's download are here. On any thread; a cancelled download goes on by its name."""
        self._fetched[name] = done, total

    @property
    def behind(self) -> bool:
        """Whether a cancelled load still keeps the engine busy."""
        return self._threads > (self.since is not None)

    @property
    def busy(self) -> bool:
        """Whether any load is still at work, or what follows one."""
        return self._threads > 0 or any(thread.is_alive() for thread in self._preparing)

    def begin(self, name: str | None) -> None:
        """Load a model, in the place of a load under way."""
        self.name = name
        if name is not None and name not in self.asked:
            self.asked.append(name)
        self.since = time.monotonic()
        self._number += 1
        self._threads += 1
        # Daemons and not workers of Textual's, which would hold the app's exit until a download is done.
        threading.Thread(target=self._run, args=(name, self._number), name="load", daemon=True).start()
        self.app.loading_changed()

    def cancel(self) -> None:
        """Go on with the model in use; a message waits for the engine if that is still loading."""
        if self.since is not None:
            self._number += 1
            self._over("")

    def close(self, model: Model) -> None:
        """Give a model's memory back, behind."""

        def work() -> None:
            model.close()
            with contextlib.suppress(RuntimeError):  # the app has ended
                self.app.call_later(closed)

        def closed() -> None:
            threading.Thread(target=self._collect, name="collect", daemon=True).start()

        threading.Thread(target=work, name="close", daemon=True).start()

    def prepare(self, model: Model) -> None:
        """Make ready what the meter reads against, behind."""

        def work() -> None:
            with contextlib.suppress(Exception):  # a model's own code may raise anything; the reply will tell
                model.prepare()

        thread = threading.Thread(target=work, name="prepare", daemon=True)
        thread.start()
        self._preparing = [thread, *(t for t in self._preparing if t.is_alive())]

    def _collect(self) -> None:
        """Let go of a closed model, to which nothing else refers by now, and weigh what is left."""
        tidy()
        model = self.app.model
        if model is not None:
            with contextlib.suppress(MLXEmotionError, RuntimeError):  # it was closed, or the app has ended
                self.app.call_later(self.app.weigh, model, model.memory)

    def _run(self, name: str | None, number: int) -> None:
        model, memory, problem = None, 0, ""
        try:
            model = self._load(name)
            memory = model.memory
        except Exception as error:  # a model's own code may raise anything
            problem = str(error) if isinstance(error, MLXEmotionError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):  # the app has ended
            self.app.call_later(self._loaded, number, model, memory, problem)

    def _loaded(self, number: int, model: Model | None, memory: int, problem: str) -> None:
        self._threads -= 1
        if number != self._number:
            if model is not None:
                self.close(model)
        elif model is None:
            self._over(problem)
        else:
            self.since = None
            gc.freeze()
            self.app.take(model, memory)

    def _over(self, problem: str) -> None:
        self.since = None
        if self.app.model is not None:
            self.name = self.app.model.id
        self.app.loading_changed()
        if self.app.talk.waiting:
            self.app.talk.take_back()
        if problem:
            self.app.warn(f"{problem}  (Ctrl+L chooses another model)")
