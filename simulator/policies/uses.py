"""How often experts were used, for the policies that go by frequency."""

from typing import Literal

Count = Literal["in_cache", "lifetime"]


class Uses:
    """Uses of each expert: one for each event, however many tokens of it chose the expert.

    Args:
        count: ``in_cache`` forgets an expert that leaves, so that it begins anew when it returns;
            ``lifetime`` never forgets.
    """

    def __init__(self, count: Count) -> None:
        self._forgets = count == "in_cache"
        self._uses: dict[int, float] = {}
        self._last_event: dict[int, int] = {}

    def count(self, expert: int, event: int, weight: float = 1) -> float:
        """Count a use of this weight, unless one of this event is counted, and return the sum."""
        uses = self._uses.get(expert, 0)
        if self._last_event.get(expert) != event:
            self._last_event[expert] = event
            self._uses[expert] = uses = uses + weight
        return uses

    def enter(self, expert: int, weight: float = 1) -> float:
        """Return the uses of an expert that comes unused; in-cache counts begin at one use."""
        return self._uses.setdefault(expert, weight if self._forgets else 0)

    def leave(self, expert: int) -> None:
        """Take note that an expert has left."""
        if self._forgets:
            self._uses.pop(expert, None)
            self._last_event.pop(expert, None)

    def rescale(self, factor: float) -> None:
        """Multiply all sums by the same factor."""
        self._uses = {expert: uses * factor for expert, uses in self._uses.items()}
