"""The query sets that ship: as many as they should be, and no two alike."""

import re
from itertools import combinations

from mlx_emotion.emotions import CATALOGUE
from mlx_emotion.queries import shipped


def test_their_sizes():
    extraction, evaluation = shipped()[0], shipped("evaluation")[0]
    assert {name: len(found) for name, found in extraction.items()} == dict.fromkeys(CATALOGUE, 100)
    assert {name: len(found) for name, found in evaluation.items()} == dict.fromkeys(CATALOGUE, 50) | {"neutral": 150}


def test_no_two_are_alike():
    """Within a set and between them: no sentence twice, and none that shares half of its words with another."""
    every = [q for name in ("extraction", "evaluation") for found in shipped(name)[0].values() for q in found]
    assert len({q.strip().lower() for q in every}) == len(every)
    words = [(q, frozenset(re.findall(r"[a-z']+", q.lower()))) for q in every]
    alike = [(p, q) for (p, a), (q, b) in combinations(words, 2) if 2 * len(a & b) >= len(a | b)]
    assert alike == []
