"""Predict a layer's experts from those of the layer before, by how often one followed the other."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import Demand, PrefetchPolicy, RunInfo, View, Wish

__all__ = ["TransitionTable"]

# L MoE layers, E experts of a layer.


class TransitionTable(PrefetchPolicy):
    """The most likely successors of what this layer chose, one layer ahead (order 1).

    The score of an expert is the sum, over the experts just chosen, of how often a token that chose
    that one went on to choose it, in proportion to how often that one was chosen at all, weighted
    by tokens. The last layer is followed by the first of the next token.

    Args:
        fit: ``profile`` counts in the profile trace, beforehand; ``online`` in the run itself,
            where a step of many tokens counts as if each had followed all in proportion.
        width: Experts wished for in each layer; none takes as many as the layer before chose.
    """

    needs = frozenset({"transitions"})
    paper = "EdgeMoE (arXiv 2308.14352) section 3.3, with one layer instead of two"

    def __init__(
        self,
        run: RunInfo,
        *,
        fit: Literal["profile", "online"] = "profile",
        width: int | None = None,
    ) -> None:
        super().__init__(run)
        if width is not None and width < 1:
            raise InputError(
                f"prefetch policy transition_table: option width={width}: expected at least 1"
            )
        self._width = width
        self._learns = fit == "online"
        self._before: NDArray[np.float64] | None = None  # tokens of each expert of the last layer
        shape = (run.layers, run.experts, run.experts)
        self._follows_LEE: NDArray[np.float64] = np.zeros(shape)
        self._chosen_LE: NDArray[np.float64] = np.zeros(shape[:2])
        if fit == "profile":
            assert run.follows_LEE is not None
            self._follows_LEE = run.follows_LEE.astype(np.float64)
            self._chosen_LE = self._follows_LEE.sum(axis=2)

    @classmethod
    def needs_for(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Return that only a table of a profile trace needs one."""
        return cls.needs if options["fit"] == "profile" else frozenset()

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        """Return the best scored experts of the next layer, best first."""
        if demand is None:
            if not view.is_decode:  # another request begins; what came before does not lead here
                self._before = None
            return
        layer, experts = demand.layer, self.run.experts
        chosen_E = np.zeros(experts)
        for expert, tokens in demand.tokens.items():
            chosen_E[expert - layer * experts] = tokens
        if self._learns:
            self._learn(layer, chosen_E)
        ids = np.flatnonzero(chosen_E)
        total_E = self._chosen_LE[layer, ids]
        weights = np.divide(chosen_E[ids], total_E, out=np.zeros(len(ids)), where=total_E > 0)
        score_E = weights @ self._follows_LEE[layer, ids]
        first = (layer + 1) % self.run.layers * experts
        for best in np.argsort(-score_E, kind="stable")[: self._width or len(ids)].tolist():
            if score_E[best] <= 0:
                return
            yield Wish(first + best, view.event + 1)

    def _learn(self, layer: int, chosen_E: NDArray[np.float64]) -> None:
        before = layer - 1 if layer else self.run.layers - 1
        if self._before is not None:
            pairs_EE = np.outer(self._before, chosen_E) / (chosen_E.sum() / self.run.top_k)
            self._follows_LEE[before] += pairs_EE
            self._chosen_LE[before] += pairs_EE.sum(axis=1)
        self._before = chosen_E
