"""The thread that owns MLX: streams that are left, interrupted, or have other work between their items."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

import mlx_emotion
from mlx_emotion.engine import Engine
from mlx_emotion.errors import MLXEmotionError, ModelError, UsageError


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    engine.close()


def test_everything_runs_on_one_thread_that_is_not_the_callers(engine):
    def items():
        yield threading.get_ident()
        yield threading.get_ident()

    threads = {engine.run(threading.get_ident), engine.submit(threading.get_ident).result(), *engine.stream(items)}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_an_item_is_begun_when_it_is_asked_for(engine):
    begun = []

    def work():
        for n in range(3):
            begun.append(n)
            yield n

    stream = engine.stream(work)
    assert begun == []
    assert [next(stream), list(begun)] == [0, [0]]
    assert [next(stream), list(begun)] == [1, [0, 1]]


def test_between_two_items_the_thread_does_other_work(engine):
    one, two = engine.stream(lambda: iter("abc")), engine.stream(lambda: iter("xyz"))
    assert [next(one), next(two), engine.run(lambda: "job"), next(one), next(two)] == ["a", "x", "job", "b", "y"]


def test_carried_items_come_along_with_the_one_after_them(engine):
    begun = []

    def work():
        for item in (1, "a", 2, 3, "b", 4):
            begun.append(item)
            yield item

    stream = engine.stream(work, carried=int)
    assert [next(stream), list(begun)] == [1, [1, "a"]]
    assert [next(stream), list(begun)] == ["a", [1, "a"]]
    assert list(stream) == [2, 3, "b", 4]


def test_closing_a_stream_stops_and_closes_the_work(engine):
    stop, closed = threading.Event(), threading.Event()

    def work():
        try:
            yield from range(10)
        finally:
            closed.set()

    stream = engine.stream(work, stop)
    next(stream)
    assert not closed.is_set()
    stream.close()
    assert closed.is_set()
    assert stop.is_set()


def test_a_reader_interrupted_while_the_thread_has_other_work_leaves_nothing_open(engine, monkeypatch):
    begun, gate = [], threading.Event()

    def work():
        begun.append(1)
        yield 1

    def interrupted(job):
        engine.submit(job)
        raise KeyboardInterrupt

    engine.submit(gate.wait)
    stop = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(engine.stream(work, stop))
    gate.set()
    engine.run(lambda: None)
    assert (begun, engine._open, stop.is_set()) == ([], [], True)


def test_a_model_that_is_closed_and_forgotten_is_gone(tiny_model_path):
    """Without another job on the thread."""
    model = mlx_emotion.load(str(tiny_model_path))
    taps = weakref.ref(model._voice.taps)
    model.close()
    del model
    deadline = time.monotonic() + 60  # the thread forgets a job just after it has told that it is done
    while taps() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert taps() is None


def test_an_exception_of_the_work_is_raised_in_the_reader(engine):
    def work():
        yield 1
        raise ValueError("broken")

    stream = engine.stream(work)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        next(stream)
    assert engine.run(lambda: 7) == 7


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("std::bad_alloc"), "out of memory: std::bad_alloc; a smaller model"),
        (MemoryError(), "out of memory; a smaller model"),
        (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory\nmore"), "Insufficient Memory; a"),
        (RuntimeError("cudaMallocAsync(&data, size) failed: out of memory"), "MLX failed: cudaMalloc"),
        (RuntimeError("There is no Stream(gpu, 0) in current thread."), "MLX failed: There is no Stream"),
    ],
)
def test_what_mlx_raises_is_told_in_one_line(engine, error, says):
    def work():
        raise error
        yield

    for asked in (lambda: engine.run(next, work()), lambda: list(engine.stream(work))):
        with pytest.raises(MLXEmotionError) as caught:
            asked()
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [TypeError("x"), NotImplementedError("[x]"), RuntimeError("changed size"), OSError(5)]
)
def test_a_fault_of_a_program_stays_as_it_is(engine, error):
    def work():
        raise error

    with pytest.raises(type(error)) as caught:
        engine.run(work)
    assert caught.value is error


def test_a_closed_engine_says_so(engine):
    assert engine.run(lambda: 1) == 1
    engine.close()
    with pytest.raises(MLXEmotionError, match="closed"):
        engine.run(lambda: 1)


def test_a_program_that_leaves_a_stream_half_read_ends(tiny_model_path):
    program = (
        "import mlx_emotion\n"
        f"chat = mlx_emotion.load({str(tiny_model_path)!r}).chat(max_tokens=50)\n"
        "stream = chat.stream('hello', seed=1)\n"
        "print(next(stream).index)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_one_reply_at_a_time_in_a_conversation_but_others_may_go_on_beside_it(tiny_model_path):
    model = mlx_emotion.load(str(tiny_model_path))
    chat = model.chat(temperature=0, max_tokens=12)
    alone = model.generate("hello", temperature=0, max_tokens=12).text
    stream = chat.stream("hello")
    first = next(stream)
    assert model.generate("hello", temperature=0, max_tokens=12).text == alone
    with pytest.raises(UsageError, match="still being written"):
        next(chat.stream("and this"))
    *_, done = stream
    assert (first.index, done.text) == (0, alone)
    model.close()
    with pytest.raises(ModelError, match="closed"):
        model.generate("hello")
