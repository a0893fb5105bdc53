"""Keeps experts ordered by a score, so that the lowest that may leave is found fast.

Design 4.1 rule 6: ties in a score go to the least recently touched, then to the lower
(layer, expert).
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from moesim.simulator.policies.base import Evictable


class LowestFirst:
    """A heap of (score, age, expert) whose stale entries are dropped when they come up.

    The score of an expert may change at any time by ``put``; setting costs O(log n), asking O(log n)
    plus the experts in use that lie below the answer.
    """

    def __init__(self) -> None:
        self._key: dict[int, tuple[float, int, int]] = {}
        self._heap: list[tuple[float, int, int]] = []

    def put(self, expert: int, score: float, touched: int) -> None:
        """Set an expert's score; ``touched`` is a serial that grows with every touch."""
        key = (score, touched, expert)
        self._key[expert] = key
        heappush(self._heap, key)
        if len(self._heap) > 64 + 4 * len(self._key):
            self._heap = list(self._key.values())
            heapify(self._heap)

    def drop(self, expert: int) -> None:
        """Forget an expert."""
        self._key.pop(expert, None)

    def lowest(self, evictable: Evictable) -> int:
        """Return the lowest expert that may leave.

        Raises:
            LookupError: None of those known may leave.
        """
        heap, keys = self._heap, self._key
        in_use: list[tuple[float, int, int]] = []
        try:
            while heap:
                key = heap[0]
                expert = key[2]
                if keys.get(expert) == key:
                    if expert in evictable:
                        return expert
                    in_use.append(key)
                heappop(heap)
        finally:
            for key in in_use:
                heappush(heap, key)
        raise LookupError


def lowest(scores: Iterable[tuple[float, int, int]]) -> int:
    """Return the expert of the lowest (score, touched, expert); for scores that change with time."""
    return min(scores)[2]
