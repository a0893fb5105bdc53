"""Keeps experts ordered by a score, so that the lowest that may leave is found fast.

Design 4.1 rule 6: ties in a score go to the least recently touched, then to the lower
(layer, expert).
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace

from moesim.simulator.policies.base import Evictable

Key = tuple[float, int, int]
"""Score; a serial that grows with every touch; expert."""


class LowestFirst:
    """A heap of experts by a key that its owner keeps.

    A key that rises needs no notice: the expert's entry, too low by then, catches up when it comes
    to the top. So counting a use costs nothing here. An expert that is new, or whose key has
    fallen, must be ``put``.

    Args:
        key: Returns an expert's present key.
    """

    def __init__(self, key: Callable[[int], Key]) -> None:
        self._key = key
        self._entry: dict[int, Key] = {}  # of each expert, known by identity among older ones
        self._heap: list[Key] = []

    def __contains__(self, expert: int) -> bool:
        return expert in self._entry

    def put(self, expert: int) -> None:
        """Enter an expert under its present key."""
        self._entry[expert] = entry = self._key(expert)
        heappush(self._heap, entry)
        if len(self._heap) > 64 + 4 * len(self._entry):
            self.rebuild()

    def drop(self, expert: int) -> None:
        """Forget an expert."""
        self._entry.pop(expert, None)

    def rebuild(self) -> None:
        """Enter all experts anew; needed when all keys have changed."""
        self._entry = {expert: self._key(expert) for expert in self._entry}
        self._heap = list(self._entry.values())
        heapify(self._heap)

    def lowest(self, evictable: Evictable) -> int:
        """Return the lowest expert that may leave.

        Raises:
            LookupError: None of those known may leave.
        """
        in_use: list[Key] = []
        entry = self._top()
        while entry is not None and entry[2] not in evictable:
            in_use.append(heappop(self._heap))
            entry = self._top()
        for other in in_use:
            heappush(self._heap, other)
        if entry is None:
            raise LookupError("none of the experts known may leave")
        return entry[2]

    def several(self, may_leave: Callable[[int], bool], wanted: int) -> list[int]:
        """Return the lowest experts that may leave, lowest first; fewer if there are fewer."""
        passed: list[Key] = []
        found: list[int] = []
        while len(found) < wanted and (entry := self._top()) is not None:
            passed.append(heappop(self._heap))
            if may_leave(entry[2]):
                found.append(entry[2])
        for entry in passed:
            heappush(self._heap, entry)
        return found

    def _top(self) -> Key | None:
        """Return the lowest entry, once the heap's first is neither outdated nor too low."""
        heap, entries = self._heap, self._entry
        while heap:
            entry = heap[0]
            expert = entry[2]
            if entries.get(expert) is not entry:
                heappop(heap)
                continue
            key = self._key(expert)
            if key == entry:
                return entry
            entries[expert] = key
            heapreplace(heap, key)
        return None
