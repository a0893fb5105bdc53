"""Evict what the running request uses seldom, and what lies far from the layer at hand."""

from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View
from moesim.simulator.policies.order import Key
from moesim.simulator.policies.requests import Requests
from moesim.simulator.policies.uses import Uses

__all__ = ["ActivationPriority"]

# L MoE layers.
_EPSILON = 1e-4


class ActivationPriority(CachePolicy):
    """MoE-Infinity's cache: share of the layer's tokens in this request x visits x nearness.

    Nearness falls in a straight line from 1 at the layer at hand to the layer just behind it, the
    last to come again. The share of an expert that the request has not used is 0.0001, so that
    nearness and visits still order those. Ties go to the least recently touched.

    Nearness is one for all experts of a layer, so that each layer keeps an order of its own, which
    a touch changes, and a victim is the lowest of the layers' firsts.
    """

    paper = "MoE-Infinity (arXiv 2401.14361) section 6; memory/expert_priority_score.py"

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self._requests = Requests()
        self._tokens: dict[int, int] = {}
        self._tokens_L = [0] * run.layers
        self._visits = Uses("in_cache")
        self._serial = 0
        self._touched_L: list[dict[int, int]] = [{} for _ in range(run.layers)]
        self._order_L: list[list[Key] | None] = [None] * run.layers

    def on_touch(self, expert: int, view: View) -> None:
        """Count the token for the request, and the visit."""
        if self._requests.begins(view):
            self._tokens.clear()
            self._tokens_L = [0] * self.run.layers
            self._order_L = [None] * self.run.layers
        self._tokens[expert] = self._tokens.get(expert, 0) + 1
        self._tokens_L[view.layer] += 1
        self._visits.add(expert, view.event)
        self._enter(expert)

    def on_admit(self, expert: int, view: View) -> None:
        """Count a prefetched expert as visited once, and make it the youngest."""
        self._visits.enter(expert)
        if expert not in self._touched_L[self.run.layer(expert)]:
            self._enter(expert)

    def on_evict(self, expert: int, view: View) -> None:
        """Forget the expert's visits and age."""
        layer = self.run.layer(expert)
        self._visits.leave(expert)
        self._touched_L[layer].pop(expert, None)
        self._order_L[layer] = None

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the lowest that may leave."""
        layers, here = self.run.layers, max(0, view.layer)
        lowest: Key | None = None
        for layer in range(layers):
            nearness = 1 - ((layer - here) % layers) / (layers + 1)
            for value, serial, expert in self._order_L[layer] or self._order(layer):
                if expert in evictable:
                    key = value * nearness, serial, expert
                    lowest = key if lowest is None else min(lowest, key)
                    break
        assert lowest is not None, "asked for a victim where nothing may leave"
        return lowest[2]

    def _enter(self, expert: int) -> None:
        """Make the expert the youngest of its layer."""
        layer = self.run.layer(expert)
        self._serial += 1
        self._touched_L[layer][expert] = self._serial
        self._order_L[layer] = None

    def _order(self, layer: int) -> list[Key]:
        """Return a layer's experts by share x visits, the lowest first."""
        tokens = max(1, self._tokens_L[layer])
        visits = self._visits.of
        order = sorted(
            ((self._tokens.get(expert, 0) / tokens + _EPSILON) * visits[expert], serial, expert)
            for expert, serial in self._touched_L[layer].items()
        )
        self._order_L[layer] = order
        return order
