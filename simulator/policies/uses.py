"""How often experts were used, for the policies that go by frequency."""

from typing import Literal

Count = Literal["in_cache", "lifetime"]


class Uses:
    """Uses of each expert: one for each event, however many tokens of it chose the expert.

    Args:
        count: ``in_cache`` forgets an expert that leaves, so that it begins anew when it returns;
            ``lifetime`` never forgets.

    Attributes:
        of: The uses by expert.
    """

    def __init__(self, count: Count) -> None:
        self.of: dict[int, float] = {}
        self._forgets = count == "in_cache"
        self._last_event: dict[int, int] = {}

    def add(self, expert: int, event: int, weight: float = 1) -> None:
        """Count a use of this weight, unless one of this event is counted."""
        if self._last_event.get(expert) != event:
            self._last_event[expert] = event
            self.of[expert] = self.of.get(expert, 0) + weight

    def enter(self, expert: int, weight: float = 1) -> None:
        """Take note of an expert that comes without use; in-cache counts begin at one use."""
        self.of.setdefault(expert, weight if self._forgets else 0)

    def leave(self, expert: int) -> None:
        """Take note that an expert has left."""
        if self._forgets:
            self.of.pop(expert, None)
            self._last_event.pop(expert, None)
