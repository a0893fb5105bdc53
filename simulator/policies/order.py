"""Keeps experts ordered by a score, so that the lowest that may leave is found fast.

Design 4.1 rule 6: ties in a score go to the least recently touched, then to the lower
(layer, expert).
"""

from collections.abc import Container
from heapq import heapify, heappop, heappush


class LowestFirst:
    """A heap of (score, age, expert) whose stale entries are dropped when they come up.

    For scores that change only when an expert is touched. Setting one costs O(log n), asking
    O(log n) plus the experts in use that lie below the answer.
    """

    def __init__(self) -> None:
        self._key: dict[int, tuple[float, int, int]] = {}
        self._heap: list[tuple[float, int, int]] = []

    def __contains__(self, expert: int) -> bool:
        return expert in self._key

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

    def rescale(self, factor: float) -> None:
        """Multiply every score by the same positive factor."""
        self._key = {e: (score * factor, at, e) for e, (score, at, _) in self._key.items()}
        self._heap = list(self._key.values())
        heapify(self._heap)

    def lowest(self, evictable: Container[int]) -> int:
        """Return the lowest expert that may leave.

        Raises:
            LookupError: None of those known may leave.
        """
        found = self.several(evictable, 1)
        if not found:
            raise LookupError("none of the experts known may leave")
        return found[0]

    def several(self, evictable: Container[int], wanted: int) -> list[int]:
        """Return the lowest experts that may leave, lowest first; fewer if there are fewer."""
        heap, keys = self._heap, self._key
        valid: list[tuple[float, int, int]] = []
        found: list[int] = []
        while heap and len(found) < wanted:
            key = heappop(heap)
            expert = key[2]
            if keys.get(expert) == key:
                valid.append(key)
                if expert in evictable:
                    found.append(expert)
        for key in valid:
            heappush(heap, key)
        return found
