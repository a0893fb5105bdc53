"""Evict the expert that has gone unused for longest."""

from collections import OrderedDict
from collections.abc import Sequence

from moesim.simulator.choices import by_last_touch
from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View
from moesim.simulator.policies.quotas import PerPool, Scope, split

__all__ = ["LeastRecentlyUsed"]


class LeastRecentlyUsed(CachePolicy):
    """Least recently used, over all layers together or in a share for each layer.

    Args:
        scope: ``global`` or ``per_layer`` (equal shares, as mixtral-offloading).
    """

    paper = "mixtral-offloading (arXiv 2312.17238) section 3.1, per layer; FreeToken, global"

    def __init__(self, run: RunInfo, *, scope: Scope = "global") -> None:
        super().__init__(run)
        self._scope = scope
        # Oldest first. An OrderedDict: a plain dict is searched past the holes at its old end.
        self._ages: PerPool[OrderedDict[int, None]] = PerPool(run, scope, OrderedDict)

    def quotas_L(self) -> list[int] | None:
        """Return equal shares if the scope is per layer."""
        return split(self.run, self._scope)

    def on_touch(self, expert: int, view: View) -> None:
        """Move the expert to the young end."""
        ages = self._ages.of(expert)
        ages[expert] = None
        ages.move_to_end(expert)

    def on_touches(self, experts: Sequence[int], view: View) -> None:
        """Move the experts, which are of one layer, to the young end."""
        if not experts:
            return
        ages = self._ages.of(experts[0])
        rejuvenate = ages.move_to_end
        for expert in by_last_touch(experts):
            if expert in ages:
                rejuvenate(expert)
            else:
                ages[expert] = None

    def on_admit(self, expert: int, view: View) -> None:
        """Let a prefetched expert in at the young end; one just touched is there already."""
        self._ages.of(expert).setdefault(expert)

    def on_evict(self, expert: int, view: View) -> None:
        """Forget the expert."""
        self._ages.of(expert).pop(expert, None)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the oldest that may leave."""
        for expert in self._ages.offered(evictable):
            if expert in evictable:
                return expert
        raise LookupError

    def make_room(
        self, coming: Sequence[int], count: int, evictable: Evictable, view: View
    ) -> Sequence[int]:
        """Return the oldest that may leave; those that come were touched and are there already."""
        ages = self._ages.of(coming[0])
        victims = evictable.first(ages, count)
        for victim in victims:
            del ages[victim]
        return victims
