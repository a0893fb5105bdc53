"""Evict the expert of the least cache priority: how often it was used, fading while it is not."""

from collections.abc import Sequence

from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View
from moesim.simulator.policies.order import LowestFirst
from moesim.simulator.policies.priorities import OMEGA, RHO, Priorities
from moesim.simulator.policies.quotas import PerPool, split

__all__ = ["LeastCachePriority"]


class LeastCachePriority(CachePolicy):
    """MoEpic's LCP, P = mu * rho ** (nu / omega), in an equal share for each layer.

    At rho = 1 it is lifetime LFU; towards 0 the most recent token decides, and of its experts the
    number of uses. Ties go to the least recently touched.

    Args:
        rho: What a use is worth after ``omega`` tokens without one, above 0 and at most 1.
        omega: Those tokens.
    """

    paper = "MoEpic (arXiv 2509.08342) section 3, LCP; by secondary notes"

    def __init__(self, run: RunInfo, *, rho: float = RHO, omega: float = OMEGA) -> None:
        super().__init__(run)
        self._priorities = Priorities(run, rho, omega)
        self._order = PerPool(run, "per_layer", lambda: LowestFirst(self._priorities.key))

    def quotas_L(self) -> list[int] | None:
        """Return equal shares."""
        return split(self.run, "per_layer")

    def on_touch(self, expert: int, view: View) -> None:
        """Count a token that chose the expert."""
        self._priorities.count(expert, view.event)

    def on_touches(self, experts: Sequence[int], view: View) -> None:
        """Count the tokens of an event."""
        self._priorities.count_all(experts, view.event)

    def on_admit(self, expert: int, view: View) -> None:
        """Rank the expert; a prefetched one that no token chose so far has no priority."""
        self._priorities.meet(expert)
        self._order.of(expert).put(expert)

    def on_evict(self, expert: int, view: View) -> None:
        """Take the expert out of the ranking; its uses stay counted."""
        self._order.of(expert).drop(expert)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the lowest priority that may leave."""
        return self._order.offered(evictable).lowest(evictable)
