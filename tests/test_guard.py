"""The live guard notices loops and nothing else."""

import random

from mlx_emotion.guard import LoopDetector, distinct_2


def first_trip(tokens):
    guard = LoopDetector()
    return next((i for i, t in enumerate(tokens) if guard.add(t)), None)


def test_a_block_said_three_times_trips_and_not_before():
    for period in range(3, 41):
        block = list(range(100, 100 + period))
        assert first_trip([1, 2, 3, *block, *block, *block]) == 3 + 3 * period - 1


def test_short_emphasis_is_no_loop():
    assert first_trip([5] * 8) is None
    assert first_trip([5] * 9) == 8


def test_random_text_does_not_trip():
    rng = random.Random(0)
    assert first_trip([rng.randrange(50) for _ in range(5000)]) is None


def test_distinct_2():
    assert distinct_2(list("ababa")) == 0.5
    assert distinct_2([1]) == 1.0
    assert distinct_2([1, 2, 3, 4]) == 1.0
