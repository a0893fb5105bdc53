"""Evict the expert that has gone unused for longest."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain

from moesim.simulator.choices import by_last_touch
from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View
from moesim.simulator.policies.quotas import PerPool, Scope, split

__all__ = ["LeastRecentlyUsed"]

_MOST_NOTED = 2048


class LeastRecentlyUsed(CachePolicy):
    """Least recently used, over all layers together or in a share for each layer.

    Args:
        scope: ``global`` or ``per_layer`` (equal shares, as mixtral-offloading).
    """

    paper = "mixtral-offloading (arXiv 2312.17238) section 3.1, per layer; FreeToken, global"

    def __init__(self, run: RunInfo, *, scope: Scope = "global") -> None:
        super().__init__(run)
        self._scope = scope
        self._ages: PerPool[Ages] = PerPool(run, scope, Ages)

    def quotas_L(self) -> list[int] | None:
        """Return equal shares if the scope is per layer."""
        return split(self.run, self._scope)

    def on_touch(self, expert: int, view: View) -> None:
        """Move the expert to the young end."""
        self._ages.of(expert).note([expert])

    def on_touches(self, experts: Sequence[int], view: View) -> None:
        """Move the experts, which are of one layer, to the young end."""
        if experts:
            self._ages.of(experts[0]).note(by_last_touch(experts))

    def on_admit(self, expert: int, view: View) -> None:
        """Let a prefetched expert in at the young end; one just touched is there already."""
        self._ages.of(expert).oldest_first().setdefault(expert)

    def on_evict(self, expert: int, view: View) -> None:
        """Forget the expert."""
        self._ages.of(expert).oldest_first().pop(expert, None)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the oldest that may leave."""
        for expert in self._ages.offered(evictable).oldest_first():
            if expert in evictable:
                return expert
        raise LookupError

    def make_room(
        self, coming: Sequence[int], count: int, evictable: Evictable, view: View
    ) -> Sequence[int]:
        """Return the oldest that may leave; those that come were touched and are there already."""
        ages = self._ages.of(coming[0]).oldest_first()
        victims = evictable.first(ages, count)
        for victim in victims:
            del ages[victim]
        return victims


class Ages:
    """Experts in the order of their last touch, which is made when somebody asks for it.

    Where everything is a hit nobody does, for many events, and of an expert's touches only the
    last counts.
    """

    __slots__ = ("_noted", "_order")

    def __init__(self) -> None:
        # Oldest first. An OrderedDict: a plain dict is searched past the holes at its old end.
        self._order: OrderedDict[int, None] = OrderedDict()
        self._noted: list[Sequence[int]] = []

    def note(self, experts: Sequence[int]) -> None:
        """Note touches, the last at the end."""
        self._noted.append(experts)
        if len(self._noted) > _MOST_NOTED:
            self.oldest_first()

    def oldest_first(self) -> OrderedDict[int, None]:
        """Return the experts that were touched, the oldest first, to be changed at will."""
        order, noted = self._order, self._noted
        if noted:
            touched = noted[0]
            if len(noted) > 1:
                latest = dict.fromkeys(chain.from_iterable(map(reversed, reversed(noted))))
                touched = list(reversed(latest))
            noted.clear()
            rejuvenate = order.move_to_end
            for expert in touched:
                if expert in order:
                    rejuvenate(expert)
                else:
                    order[expert] = None
        return order
