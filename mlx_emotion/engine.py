"""The one thread that owns MLX.

MLX streams and random state belong to a thread, and a lazy array made on one cannot be evaluated on
another, so every model is loaded, steered and run here. Work goes in by queue; only str, numbers,
tuples and NumPy arrays come out.
"""

from __future__ import annotations

import atexit
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from .errors import MLXEmotionError

T = TypeVar("T")
_END = object()
HURRY_SECONDS = 2.0
OF_MLX = re.compile(r"\[|.*(alloc|memory|metal|cuda|cudnn|cublas|in current thread)", re.IGNORECASE)
"""How the messages of MLX's own ``RuntimeError`` look, of Metal's and CUDA's among them."""


class Engine:
    """A thread that runs one job after another. ``shared()`` is the process's own."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mlx-emotion-engine", daemon=True)
        self._started = self._closed = False
        self._lock = threading.Lock()
        self._open: list[Any] = []
        self.hurry = False  # set when the user has interrupted the program

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it holds a model, maybe for hours
        while self._open:  # streams that nobody read to their end
            _close(self._open.pop())
        try:
            import mlx.core as mx

            # The last thing on this thread: without it the process aborts at exit (mlx 0.32).
            mx.clear_streams()
        except ImportError:
            pass

    def _put(self, job: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise MLXEmotionError("the engine was closed; nothing can be run any more")
            if not self._started:
                self._thread.start()
                self._started = True
                atexit.register(self.close)
        self._jobs.put(job)

    @property
    def inside(self) -> bool:
        """Whether the caller is on this thread."""
        return threading.current_thread() is self._thread

    def submit(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``work`` on the thread; the future holds its result or its exception."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work(*args, **kwargs))
            except BaseException as error:  # handed to the one who waits
                future.set_exception(_told(error))

        self._put(job)
        return future

    def run(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """``submit`` and wait. Work that is on the thread already runs at once."""
        if self.inside:
            return work(*args, **kwargs)
        try:
            return self.submit(work, *args, **kwargs).result()
        except KeyboardInterrupt:
            self.hurry = True  # the work itself goes on; the program's end shall not wait for it
            raise

    def stream(
        self,
        work: Callable[[], Iterator[T]],
        stop: threading.Event | None = None,
        carried: type | tuple[type, ...] = (),
    ) -> Iterator[T]:
        """Iterate on the thread and hand the items out here, one by one: the next is begun when it is asked for.

        So what the reader does between two items acts on the next one; mlx-lm computes one token
        ahead, which keeps the device busy meanwhile. Items of a ``carried`` type are handed out along with the
        one after them: each change of threads costs time. Between two items the thread is free for other
        work. When the reader goes away (closes the iterator, or is interrupted), ``stop`` is set and the
        iterator is closed on the thread. An exception there is raised here.
        """
        if self.inside:
            yield from work()
            return
        iterator: Iterator[T] | None = None
        left = False

        def step() -> list[Any]:
            nonlocal iterator
            if left:  # the reader went away while the thread had other work
                return [_END]
            if iterator is None:
                iterator = work()
                self._open.append(iterator)
            items = [next(iterator, _END)]
            while isinstance(items[-1], carried):
                items.append(next(iterator, _END))
            return items

        def close() -> None:
            if iterator in self._open:
                self._open.remove(iterator)
                _close(iterator)

        try:
            while True:
                for item in self.run(step):
                    if item is _END:
                        return
                    yield item
        finally:
            left = True
            if stop is not None:
                stop.set()
            if not self._closed:
                if iterator is None:
                    self.submit(close)
                else:
                    self.run(close)

    def close(self) -> None:
        """Finish the jobs under way and end the thread; nothing can be run afterwards."""
        with self._lock:
            waiting = self._started and not self._closed and not self.inside
            self._closed = True
        if waiting:
            self._jobs.put(None)
            # After Ctrl-C nobody wants to wait for a model to load or a download to end.
            self._thread.join(HURRY_SECONDS if self.hurry else None)
            if self._thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(130)


def _told(error: BaseException) -> BaseException:
    """``error``, but what MLX or the system raises for want of memory, or of a device, as an error of one line."""
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, MemoryError):
        told = f"out of memory{line and f': {line}'}"
    elif type(error) is RuntimeError and OF_MLX.match(line):  # a subclass, or another text, is a fault of a program
        told = f"MLX failed: {line}"
    else:
        return error
    if "memory" in told.lower() or "alloc" in told.lower():
        told += "; a smaller model, batch or conversation needs less"
    found = MLXEmotionError(told)
    found.__cause__ = error
    return found


def hurry(status: int = 0, seconds: float = HURRY_SECONDS) -> None:
    """The program is over: it ends with ``status`` within ``seconds``, also where a load or a download is at work.

    Nothing can interrupt those, and every end that waits for threads would wait for them.
    """

    def end() -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # also where the terminal is gone
            os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _close(iterator: Any) -> None:
    if hasattr(iterator, "close"):
        iterator.close()


_shared: Engine | None = None


def shared() -> Engine:
    """The process's one engine."""
    global _shared
    if _shared is None:
        _shared = Engine()
    return _shared
