"""The one thread that owns MLX.

MLX streams and random state belong to a thread, and a lazy array made on one cannot be evaluated on
another, so every model is loaded, steered and run here. Work goes in by queue; only str, numbers,
tuples and NumPy arrays come out.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


class Engine:
    """A thread that runs one job after another. ``shared()`` is the process's own."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mlx-emotion-engine", daemon=True)
        self._started = False
        self._lock = threading.Lock()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        try:
            import mlx.core as mx

            # The last thing on this thread: without it the process aborts at exit (mlx 0.32).
            mx.clear_streams()
        except ImportError:
            pass

    def _put(self, job: Callable[[], None]) -> None:
        with self._lock:
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
                future.set_exception(error)

        self._put(job)
        return future

    def run(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """``submit`` and wait. Work that is on the thread already runs at once."""
        if self.inside:
            return work(*args, **kwargs)
        return self.submit(work, *args, **kwargs).result()

    def stream(self, work: Callable[[], Iterator[T]], stop: threading.Event | None = None) -> Iterator[T]:
        """Iterate on the thread and hand the items out here, one by one: the next is begun when it is asked for.

        So what the reader does between two items acts on the next one; mlx-lm computes one token
        ahead, which keeps the device busy meanwhile. When the reader goes away (closes the iterator, or
        is interrupted), ``stop`` is set and the thread's own iterator is closed. An exception there is
        raised here.
        """
        if self.inside:
            yield from work()
            return
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        asked = threading.Semaphore(0)
        gone = threading.Event()
        done = threading.Event()

        def job() -> None:
            iterator = None
            try:
                iterator = work()
                for item in iterator:
                    items.put(item)
                    asked.acquire()
                    if gone.is_set():
                        break
                items.put(_END)
            except BaseException as error:
                items.put(error)
            finally:
                if iterator is not None and hasattr(iterator, "close"):
                    iterator.close()
                done.set()

        self._put(job)
        try:
            while True:
                item = items.get()
                if item is _END:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
                asked.release()
        finally:
            gone.set()
            asked.release()
            if stop is not None:
                stop.set()
            done.wait()

    def close(self) -> None:
        """Finish the jobs under way and end the thread."""
        if self._started and self._thread.is_alive() and not self.inside:
            self._jobs.put(None)
            self._thread.join()


_shared: Engine | None = None


def shared() -> Engine:
    """The process's one engine."""
    global _shared
    if _shared is None:
        _shared = Engine()
    return _shared
