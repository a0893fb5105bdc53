"""Evict what the running request uses seldom, and what lies far from the layer at hand."""

from moesim.simulator.policies.base import RunInfo, View
from moesim.simulator.policies.requests import Requests
from moesim.simulator.policies.scores import LowestScore
from moesim.simulator.policies.uses import Uses

__all__ = ["ActivationPriority"]

_EPSILON = 1e-4


class ActivationPriority(LowestScore):
    """MoE-Infinity's cache: share of the layer's tokens in this request x nearness x visits.

    Nearness falls in a straight line from 1 at the layer at hand to the layer just behind it, the
    last to come again. The share of an expert that the request has not used is 0.0001, so that
    nearness and visits still order those.
    """

    paper = "MoE-Infinity (arXiv 2401.14361) section 6; memory/expert_priority_score.py"

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self._requests = Requests()
        self._tokens: dict[int, int] = {}
        self._tokens_L = [0] * run.layers
        self._visits = Uses("in_cache")

    def on_touch(self, expert: int, view: View) -> None:
        """Count the token for the request, and the visit."""
        if self._requests.begins(view):
            self._tokens.clear()
            self._tokens_L = [0] * self.run.layers
        self._tokens[expert] = self._tokens.get(expert, 0) + 1
        self._tokens_L[view.layer] += 1
        self._visits.add(expert, view.event)
        self.touch(expert)

    def on_admit(self, expert: int, view: View) -> None:
        """Count a prefetched expert as visited once."""
        self._visits.enter(expert)
        super().on_admit(expert, view)

    def on_evict(self, expert: int, view: View) -> None:
        """Forget the expert's visits."""
        self._visits.leave(expert)
        super().on_evict(expert, view)

    def score(self, expert: int, view: View) -> float:
        """Return share x nearness x visits."""
        layer, layers = self.run.layer(expert), self.run.layers
        share = self._tokens.get(expert, 0) / max(1, self._tokens_L[layer])
        ahead = (layer - max(0, view.layer)) % layers
        return (share + _EPSILON) * (1 - ahead / (layers + 1)) * self._visits.of[expert]
