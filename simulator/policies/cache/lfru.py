"""Evict the expert with the fewest uses for the time since the last one."""

from bisect import insort
from math import inf

from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View
from moesim.simulator.policies.quotas import PerPool, Scope, split
from moesim.simulator.policies.uses import Count, Uses

__all__ = ["LeastFrequentRecentlyUsed"]


class LeastFrequentRecentlyUsed(CachePolicy):
    """Lowest uses / (clock - last use + 1), where the clock counts touches.

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
        self._ranks = PerPool(run, scope, _Ranks)

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
        if expert in self._rank:
            self._ranks.of(expert).drop(expert, self._rank.pop(expert))
        self._uses.leave(expert)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the lowest score that may leave; ties to the least recently used."""
        return self._ranks.offered(evictable).lowest(evictable, self._clock + 1)

    def _put(self, expert: int) -> None:
        self._clock += 1
        ranks = self._ranks.of(expert)
        if expert in self._rank:
            ranks.drop(expert, self._rank[expert])
        self._rank[expert] = uses = self._uses.of[expert]
        ranks.add(expert, uses, self._clock)


class _Ranks:
    """Experts by number of uses, and among equals by last use.

    All scores change with every touch, but among experts of equal use their order does not; so only
    the oldest of each number is compared, from few uses to many, until even the greatest age could
    not make up for the uses.
    """

    def __init__(self) -> None:
        self._last_use: dict[float, dict[int, int]] = {}  # by uses, then oldest first
        self._uses: list[float] = []  # ascending; some may have no expert left
        self._oldest = 0  # at or before every last use

    def add(self, expert: int, uses: float, at: int) -> None:
        """Enter an expert, the youngest of its number of uses."""
        same = self._last_use.get(uses)
        if same is None:
            same = self._last_use[uses] = {}
            insort(self._uses, uses)
        same[expert] = at

    def drop(self, expert: int, uses: float) -> None:
        """Forget an expert that stands under this number of uses."""
        del self._last_use[uses][expert]

    def lowest(self, evictable: Evictable, now: int) -> int:
        """Return the expert of the lowest score at this clock that may leave."""
        lowest, lowest_at, victim = inf, now, -1
        greatest_age = now - self._oldest
        for uses in self._uses:
            if uses / greatest_age > lowest:
                break
            for expert, at in self._last_use[uses].items():
                score = uses / (now - at)
                if score > lowest or (score == lowest and at > lowest_at):
                    break
                if expert in evictable:
                    lowest, lowest_at, victim = score, at, expert
                    break
        else:
            self._tidy(now)
        if victim < 0:
            raise LookupError
        return victim

    def _tidy(self, now: int) -> None:
        """Drop numbers of uses without experts, and see how old the oldest is."""
        self._last_use = {uses: same for uses, same in self._last_use.items() if same}
        self._uses = sorted(self._last_use)
        oldest_of_each = (next(iter(same.values())) for same in self._last_use.values())
        self._oldest = min(oldest_of_each, default=now - 1)
