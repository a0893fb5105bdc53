"""Evict the expert that is least likely to be used, by prediction and by count."""

from collections.abc import Sequence
from typing import Literal

from moesim.simulator.policies.base import RunInfo, View
from moesim.simulator.policies.scores import LowestScore
from moesim.simulator.policies.uses import Uses

__all__ = ["LikelyUse"]


class LikelyUse(LowestScore):
    """FineMoE's eviction: the largest 1 / (p · uses), that is the smallest p · uses, goes first.

    p is the probability that the prefetch policy last gave (``view.predicted``); an expert that it
    has not judged has the even 1 / E. Uses are counted while the expert is cached. Recency counts
    only among equals.

    Args:
        key: ``exact``, or ``integer`` to cut p · uses to a whole number as the released demo does,
            which makes most of them 0.
    """

    paper = "FineMoE (EuroSys'26, arXiv 2502.05370) section 4.5; its demo's task_scheduler.cpp"
    timing_free = False

    def __init__(self, run: RunInfo, *, key: Literal["exact", "integer"] = "exact") -> None:
        super().__init__(run)
        self._cuts = key == "integer"
        self._even = 1 / run.experts
        self._uses = Uses("in_cache")

    def on_touch(self, expert: int, view: View) -> None:
        """Count the use and make the expert the youngest."""
        self._uses.add(expert, view.event)
        self.touch(expert)

    def on_admit(self, expert: int, view: View) -> None:
        """Count a prefetched expert as used once."""
        self._uses.enter(expert)
        super().on_admit(expert, view)

    def on_evict(self, expert: int, view: View) -> None:
        """Forget the expert's uses."""
        self._uses.leave(expert)
        super().on_evict(expert, view)

    def scores(self, experts: Sequence[int], view: View) -> list[float]:
        """Return probability times uses."""
        probability, even, uses = view.predicted.get, self._even, self._uses.of
        values = [probability(expert, even) * uses[expert] for expert in experts]
        return [int(value) for value in values] if self._cuts else values
