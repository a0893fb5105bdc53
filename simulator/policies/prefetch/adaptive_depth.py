"""Ask the gate one layer further only where all that the nearer gate promises is here."""

from collections.abc import Iterable

from moesim.simulator.errors import CapabilityError
from moesim.simulator.policies.base import Demand, PrefetchPolicy, RunInfo, View, Wish

__all__ = ["AdaptiveDepth"]

# T tokens, L MoE layers, H horizons, M top-m.
SIGNAL = "look_in_TLHM"


class AdaptiveDepth(PrefetchPolicy):
    """HOBBIT's stacked gates: the nearest layer ahead that has something to copy.

    Args:
        depth: Layers looked ahead at most, from 1.
    """

    needs = frozenset({SIGNAL})
    paper = "HOBBIT (arXiv 2411.01433) section 3.3, second-hand: no code is public"

    def __init__(self, run: RunInfo, *, depth: int = 2) -> None:
        super().__init__(run)
        self._depth = depth

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        """Return what is absent of the nearest layer that lacks anything, most voted first."""
        if demand is None:
            return []
        rows_THM = view.signals[SIGNAL]
        if not 1 <= self._depth <= len(rows_THM[0]):
            raise CapabilityError(
                f"prefetch policy adaptive_depth: option depth={self._depth}: the trace's "
                f"{SIGNAL} looks 1 to {len(rows_THM[0])} layers ahead"
            )
        residency = view.residency
        for ahead in range(self._depth):
            later, layer = divmod(demand.layer + 1 + ahead, self.run.layers)
            rows = rows_THM[-1:] if later and not view.is_decode else rows_THM
            votes: dict[int, int] = {}
            for row_HM in rows:
                for best in row_HM[ahead][: self.run.top_k]:
                    if best >= 0:
                        expert = layer * self.run.experts + best
                        votes[expert] = votes.get(expert, 0) + 1
            absent = [
                expert
                for expert in sorted(votes, key=votes.__getitem__, reverse=True)
                if not (residency.is_resident(expert) or residency.is_loading(expert))
            ]
            if absent:
                return [Wish(expert, view.event + 1 + ahead) for expert in absent]
        return []
