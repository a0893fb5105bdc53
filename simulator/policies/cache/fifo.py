"""Evict the expert that came in first."""

from collections import OrderedDict
from collections.abc import Sequence

from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View
from moesim.simulator.policies.quotas import PerPool, Scope, split

__all__ = ["FirstInFirstOut"]


class FirstInFirstOut(CachePolicy):
    """First in, first out: a hit changes nothing.

    Args:
        scope: ``global``, or ``per_layer`` for an equal share of each layer.
    """

    paper = "the baseline of every cache study; tinyserve cache_policy.py"

    def __init__(self, run: RunInfo, *, scope: Scope = "global") -> None:
        super().__init__(run)
        self._scope = scope
        # First come first. An OrderedDict: a plain dict is searched past the holes at its old end.
        self._arrivals: PerPool[OrderedDict[int, None]] = PerPool(run, scope, OrderedDict)

    def quotas_L(self) -> list[int] | None:
        """Return equal shares if the scope is per layer."""
        return split(self.run, self._scope)

    def on_admit(self, expert: int, view: View) -> None:
        """Put the expert at the end of the queue."""
        self._arrivals.of(expert)[expert] = None

    def on_evict(self, expert: int, view: View) -> None:
        """Forget the expert."""
        self._arrivals.of(expert).pop(expert, None)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the first to have come of those that may leave."""
        for expert in self._arrivals.offered(evictable):
            if expert in evictable:
                return expert
        raise LookupError

    def make_room(
        self, coming: Sequence[int], count: int, evictable: Evictable, view: View
    ) -> Sequence[int]:
        """Return the first to have come of those that may leave, and queue those that come."""
        arrivals = self._arrivals.of(coming[0])
        victims = evictable.first(arrivals, count)
        for victim in victims:
            del arrivals[victim]
        arrivals.update(dict.fromkeys(coming))
        return victims
