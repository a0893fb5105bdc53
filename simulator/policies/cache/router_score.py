"""Evict the expert to which the router has given the least, lately."""

from collections.abc import Sequence

from moesim.simulator.policies.base import RunInfo, View
from moesim.simulator.policies.quotas import Scope, split
from moesim.simulator.policies.router_scores import SIGNAL, RouterScores
from moesim.simulator.policies.scores import LowestScore

__all__ = ["RouterScore"]


class RouterScore(LowestScore):
    """HybriMoE's minus recent score (MRS): the least running mean of router probabilities goes.

    Args:
        alpha: Weight of the newest probability, above 0 and at most 1.
        best: Experts of a layer that get it, by probability; none takes twice the top-k.
        scope: ``per_layer`` for an equal share of each layer, or ``global``.
    """

    needs = frozenset({SIGNAL})
    paper = "HybriMoE (arXiv 2504.05897) section 4.3; ktransformers/operators/experts.py"

    def __init__(
        self,
        run: RunInfo,
        *,
        alpha: float = 0.5,
        best: int | None = None,
        scope: Scope = "per_layer",
    ) -> None:
        super().__init__(run)
        self._scope = scope
        self._scores = RouterScores(run, alpha, best, "cache policy router_score")
        self._event = -1

    def quotas_L(self) -> list[int] | None:
        """Return equal shares if the scope is per layer."""
        return split(self.run, self._scope)

    def on_touch(self, expert: int, view: View) -> None:
        """Make the expert the youngest; once a layer, take in what its router said."""
        if view.event != self._event:
            self._event = view.event
            self._scores.learn(view.layer, view.signals[SIGNAL])
        self.touch(expert)

    def scores(self, experts: Sequence[int], view: View) -> list[float]:
        """Return the running scores."""
        scores: list[float] = self._scores.of_LE.ravel()[experts].tolist()
        return scores
