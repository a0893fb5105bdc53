"""Evict by a weighted sum of recency, frequency and distance in layers."""

from collections.abc import Mapping, Sequence
from typing import Any

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import RunInfo, View
from moesim.simulator.policies.requests import Requests
from moesim.simulator.policies.scores import LowestScore

__all__ = ["WeightedSum"]

# T tokens, L MoE layers, H horizons, M top-m.
SIGNAL = "look_in_TLHM"


class WeightedSum(LowestScore):
    """HOBBIT's score, the least goes: w_lru R/T + w_lfu F/T + w_fld (1 - layers ahead / L).

    R is the step of the last use, F the number of steps with a use, T the steps so far, all of the
    running request and begun anew with each. What the gates promise for the next layer stays.

    Args:
        lru: Weight of recency.
        lfu: Weight of frequency; with one precision, HOBBIT's frequency at high precision is this.
        fld: Weight of nearness, where the layer at hand is the nearest.
        mask: Whether what the next layer's gate promises is given up last.
    """

    needs = frozenset({SIGNAL})
    paper = "HOBBIT (arXiv 2411.01433) section 3.4, second-hand: no code is public"

    def __init__(
        self,
        run: RunInfo,
        *,
        lru: float = 0.25,
        lfu: float = 0.5,
        fld: float = 0.25,
        mask: bool = True,
    ) -> None:
        super().__init__(run)
        for name, weight in (("lru", lru), ("lfu", lfu), ("fld", fld)):
            if weight < 0:
                raise InputError(
                    f"cache policy weighted_sum: option {name}={weight:g}: expected at least 0"
                )
        self._lru, self._lfu, self._fld, self._masks = lru, lfu, fld, mask
        self._requests = Requests()
        self._first_step = 0
        self._event = -1
        self._last: dict[int, int] = {}
        self._steps: dict[int, int] = {}
        self._promised: set[int] = set()

    @classmethod
    def needs_for(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Return that only the mask reads the look-ahead."""
        return cls.needs if options["mask"] else frozenset()

    def on_touch(self, expert: int, view: View) -> None:
        """Take note of the step and, once a layer, of what the next gate promises."""
        if self._requests.begins(view):
            self._first_step = view.step
            self._last.clear()
            self._steps.clear()
        if self._masks and view.event != self._event:
            self._event = view.event
            self._promised = self._next_gate(view)
        at = view.step - self._first_step + 1
        if self._last.get(expert) != at:
            self._last[expert] = at
            self._steps[expert] = self._steps.get(expert, 0) + 1
        self.touch(expert)

    def scores(self, experts: Sequence[int], view: View) -> list[float]:
        """Return the weighted sums; more than any for what is promised."""
        layers, here = self.run.layers, max(0, view.layer)
        steps = max(1, view.step - self._first_step + 1)
        near_L = [self._fld * (1 - (layer - here) % layers / layers) for layer in range(layers)]
        most = self._lru + self._lfu + self._fld
        lru, lfu, each = self._lru, self._lfu, self.run.experts
        last, used, promised = self._last.get, self._steps.get, self._promised
        return [
            lru * last(e, 0) / steps
            + lfu * used(e, 0) / steps
            + near_L[e // each]
            + (e in promised) * most
            for e in experts
        ]

    def _next_gate(self, view: View) -> set[int]:
        first = (view.layer + 1) % self.run.layers * self.run.experts
        return {
            first + best
            for row_HM in view.signals[SIGNAL]
            for best in row_HM[0][: self.run.top_k]
            if best >= 0
        }
