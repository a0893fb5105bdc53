"""Evict the expert that was used least often."""

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View
from moesim.simulator.policies.order import LowestFirst
from moesim.simulator.policies.quotas import PerPool, Scope, split
from moesim.simulator.policies.uses import Count

__all__ = ["LeastFrequentlyUsed"]

_LARGEST_WEIGHT = 2.0**500


class LeastFrequentlyUsed(CachePolicy):
    """Least frequently used, one use for each event; ties to the least recently used.

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
        self._forgets = count == "in_cache"
        self._growth = 1 / decay
        self._weight = 1.0  # of a use in this event; older uses weigh less by comparison
        self._event = -1
        self._serial = 0
        self._uses: dict[int, float] = {}
        self._counted: dict[int, int] = {}  # expert -> event of its last use
        self._order: PerPool[LowestFirst] = PerPool(run, scope, LowestFirst)
