"""Evict the expert that was used least often."""

from collections.abc import Sequence

from moesim.simulator.choices import by_last_touch
from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View
from moesim.simulator.policies.order import Key, LowestFirst
from moesim.simulator.policies.quotas import PerPool, Scope, split
from moesim.simulator.policies.uses import Count, Uses

__all__ = ["LeastFrequentlyUsed"]

_LARGEST_WEIGHT = 2.0**500


class LeastFrequentlyUsed(CachePolicy):
    """Least frequently used, one use for each event; ties to the least recently used.

    Forgetting is done by letting the weight of a use grow from event to event, which leaves the
    order of the experts that are not used as it is.

    Args:
        count: ``in_cache`` begins at 1 whenever an expert is brought in (MoE-Infinity,
            libCacheSim); ``lifetime`` goes on counting while it is away (BigMoeOnEdge).
        decay: What a use is still worth one event later, above 0 and at most 1; 1 never forgets.
        scope: ``global``, or ``per_layer`` for an equal share of each layer.
    """

    paper = "MoE-Infinity (arXiv 2401.14361) expert_dispatcher.cpp; Pre-gated MoE (ISCA'24)"

    def __init__(
        self,
        run: RunInfo,
        *,
        count: Count = "in_cache",
        decay: float = 1.0,
        scope: Scope = "global",
    ) -> None:
        super().__init__(run)
        if not 0 < decay <= 1:
            raise InputError(
                f"cache policy lfu: option decay={decay:g}: expected above 0 and at most 1"
            )
        self._scope = scope
        self._growth = 1 / decay
        self._weight = 1.0
        self._event = -1
        self._serial = 0
        self._touched: dict[int, int] = {}
        self._uses = Uses(count)
        self._order = PerPool(run, scope, lambda: LowestFirst(self._key))

    def quotas_L(self) -> list[int] | None:
        """Return equal shares if the scope is per layer."""
        return split(self.run, self._scope)

    def on_touch(self, expert: int, view: View) -> None:
        """Count the use, whether the expert is here or not."""
        event = view.event
        if event != self._event:
            self._event = event
            self._grow()
        self._uses.add(expert, event, self._weight)
        self._serial += 1
        self._touched[expert] = self._serial

    def on_touches(self, experts: Sequence[int], view: View) -> None:
        """Count a use of each expert, in order of their last touches."""
        for expert in by_last_touch(experts):
            self.on_touch(expert, view)

    def on_admit(self, expert: int, view: View) -> None:
        """Rank the expert; a prefetched one is the youngest of its uses."""
        if expert not in self._touched:
            self._uses.enter(expert, self._weight)
            self._serial += 1
            self._touched[expert] = self._serial
        self._order.of(expert).put(expert)

    def on_evict(self, expert: int, view: View) -> None:
        """Take the expert out of the ranking."""
        self._order.of(expert).drop(expert)
        self._uses.leave(expert)
        self._touched.pop(expert, None)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the least used that may leave."""
        return self._order.offered(evictable).lowest(evictable)

    def _key(self, expert: int) -> Key:
        return self._uses.of[expert], self._touched[expert], expert

    def _grow(self) -> None:
        self._weight *= self._growth
        if self._weight > _LARGEST_WEIGHT:
            for expert in self._uses.of:
                self._uses.of[expert] /= self._weight
            self._weight = 1.0
            for order in self._order.books:
                order.rebuild()
