"""Copy the next layer's experts to which the router has given most, lately."""

from collections.abc import Iterable

import numpy as np

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import Demand, PrefetchPolicy, RunInfo, View, Wish
from moesim.simulator.policies.router_scores import SIGNAL, RouterScores

__all__ = ["RouterScoreTop"]


class RouterScoreTop(PrefetchPolicy):
    """The best of the next layer by HybriMoE's running score, as its released code prefetches.

    Args:
        width: Experts wished for, from 1.
        alpha: Weight of the newest probability, above 0 and at most 1.
        best: Experts of a layer that get it, by probability; none takes twice the top-k.
    """

    needs = frozenset({SIGNAL})
    paper = "HybriMoE (arXiv 2504.05897), ktransformers/operators/experts.py, prefetch_size"

    def __init__(
        self, run: RunInfo, *, width: int = 1, alpha: float = 0.5, best: int | None = None
    ) -> None:
        super().__init__(run)
        if width < 1:
            raise InputError(
                f"prefetch policy router_score_top: option width={width}: expected at least 1"
            )
        self._width = width
        self._scores = RouterScores(run, alpha, best, "prefetch policy router_score_top")

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        """Return the best of the next layer that have any score."""
        if demand is None:
            return
        self._scores.learn(demand.layer, view.signals[SIGNAL])
        layer = (demand.layer + 1) % self.run.layers
        score_E = self._scores.of_LE[layer]
        for best in np.argsort(-score_E, kind="stable")[: self._width].tolist():
            if score_E[best] > 0:
                yield Wish(layer * self.run.experts + best, view.event + 1)
