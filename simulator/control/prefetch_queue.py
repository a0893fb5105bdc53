"""The controller's queue of prefetches that were wished for and not yet handed over.

Nothing here has room, victim or bytes: until it is handed over a prefetch is a wish, and
cancelling, promoting and demoting it are bookkeeping (design 4.1 rule 4).
"""

from heapq import heappop, heappush


class PrefetchQueue:
    """Wishes by priority, lowest first; equal ones in the order wished.

    Attributes:
        wishes: Priority and serial of each expert wished for.
    """

    def __init__(self, experts: int) -> None:
        self._experts = experts
        self.wishes: dict[int, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, int]] = []
        self._serial = 0

    def put(self, expert: int, priority: float) -> None:
        """Add a wish, or give a standing one another priority; its turn among equals stays."""
        standing = self.wishes.get(expert)
        if standing is not None and standing[0] == priority:
            return
        self._serial += 1
        self.wishes[expert] = (priority, self._serial)
        heappush(self._heap, (priority, self._serial, expert))

    def first(self) -> int:
        """Return the most urgent expert."""
        heap, wishes = self._heap, self.wishes
        while True:
            priority, serial, expert = heap[0]
            if wishes.get(expert) == (priority, serial):
                return expert
            heappop(heap)

    def in_order(self) -> list[int]:
        """Return all experts wished for, the most urgent first."""
        return sorted(self.wishes, key=self.wishes.__getitem__)

    def remove(self, expert: int) -> None:
        """Forget one wish."""
        del self.wishes[expert]

    def cancel_layer(self, layer: int) -> None:
        """Forget the wishes for one layer."""
        begin, end = layer * self._experts, (layer + 1) * self._experts
        wishes = self.wishes
        if len(wishes) <= self._experts:
            cancelled = [expert for expert in wishes if begin <= expert < end]
        else:
            cancelled = [expert for expert in range(begin, end) if expert in wishes]
        for expert in cancelled:
            del wishes[expert]
