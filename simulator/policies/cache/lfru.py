"""Evict the expert with the fewest uses for the time since the last one."""

from math import inf

from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View
from moesim.simulator.policies.quotas import PerPool, Scope, split
from moesim.simulator.policies.uses import Count, Uses

__all__ = ["LeastFrequentRecentlyUsed"]


class LeastFrequentRecentlyUsed(CachePolicy):
    """Lowest uses / (clock - last use + 1), where the clock counts touches.

    All scores change with every touch, but among experts of equal use the order is that of their
    last use; so only the oldest of each number of uses is compared.

    Args:
        count: ``in_cache`` begins at 1 whenever an expert is brought in (tinyserve, vLLM);
            ``lifetime`` goes on counting while it is away (moe-cache-eval, arXiv 2608.07911).
        scope: ``global`` (tinyserve), or ``per_layer`` for an equal share of each layer (vLLM).
    """

    paper = "tinyserve cache_policy.py; vLLM pull request 37190"

    def __init__(self, run: RunInfo, *, count: Count = "in_cache", scope: Scope = "global") -> None:
        super().__init__(run)
        self._scope = scope
        self._clock = 0
        self._uses = Uses(count)
        self._rank: dict[int, float] = {}  # expert -> the uses under which it stands
        self._last_use: PerPool[dict[float, dict[int, int]]] = PerPool(run, scope, dict)

    def quotas_L(self) -> list[int] | None:
        """Return equal shares if the scope is per layer."""
        return split(self.run, self._scope)

    def on_touch(self, expert: int, view: View) -> None:
        """Count the use, whether the expert is here or not."""
        self._uses.add(expert, view.event)
        self._put(expert)

    def on_admit(self, expert: int, view: View) -> None:
        """Rank a prefetched expert; one just touched is ranked already."""
        if expert not in self._rank:
            self._uses.enter(expert)
            self._put(expert)

    def on_evict(self, expert: int, view: View) -> None:
        """Take the expert out of the ranking."""
        self._take_out(expert)
        self._uses.leave(expert)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the lowest score that may leave; ties to the least recently used."""
        now = self._clock + 1
        lowest, lowest_at, victim = inf, now, -1
        for uses, last_use in self._last_use.offered(evictable).items():
            for expert, at in last_use.items():
                score = uses / (now - at)
                if score > lowest or (score == lowest and at > lowest_at):
                    break
                if expert in evictable:
                    lowest, lowest_at, victim = score, at, expert
                    break
        if victim < 0:
            raise LookupError
        return victim

    def _put(self, expert: int) -> None:
        self._take_out(expert)
        self._clock += 1
        self._rank[expert] = uses = self._uses.of[expert]
        self._last_use.of(expert).setdefault(uses, {})[expert] = self._clock

    def _take_out(self, expert: int) -> None:
        uses = self._rank.pop(expert, None)
        if uses is None:
            return
        by_uses = self._last_use.of(expert)
        del by_uses[uses][expert]
        if not by_uses[uses]:
            del by_uses[uses]
