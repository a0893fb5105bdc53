"""Copy what was activated in the stored request whose activations are most like this one's."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import Demand, PrefetchPolicy, RunInfo, View, Wish
from moesim.simulator.policies.requests import Requests
from moesim.traces import RoutingTrace

__all__ = ["ActivationMatrix"]

# C matrices in the collection, L MoE layers, E experts of a layer, N experts of all layers ahead.


class ActivationMatrix(PrefetchPolicy):
    """MoE-Infinity's prediction by expert activation matrices (EAM), tokens by layer and expert.

    After each layer the matrix of the running request is compared with those of earlier ones: the
    cosine of each layer, averaged over layers. What the nearest one activated in the layers still
    to come is wished for, all of it, by share of its layer's tokens, weighted down in a straight
    line with the distance in layers. A full collection gives up the matrix found least often.

    Args:
        capacity: Matrices kept.
        fill: ``online`` begins with none; ``profile`` with the requests of the profile trace.
    """

    needs = frozenset({"profile"})
    paper = "MoE-Infinity (arXiv 2401.14361) section 5; memory/expert_{predictor,tracer}.py"

    def __init__(
        self,
        run: RunInfo,
        *,
        capacity: int = 1000,
        fill: Literal["online", "profile"] = "online",
    ) -> None:
        super().__init__(run)
        if capacity < 1:
            raise InputError(
                "prefetch policy activation_matrix: option capacity="
                f"{capacity}: expected at least 1"
            )
        self._capacity = capacity
        self._requests = Requests()
        self._tokens_LE: NDArray[np.float64] = np.zeros((run.layers, run.experts))
        self._shares: list[NDArray[np.float64]] = []
        self._found: list[int] = []  # how often each was the nearest
        self._units_CLE: NDArray[np.float64] = np.zeros((0, run.layers, run.experts))
        self._cosines_CL: NDArray[np.float64] = np.zeros((0, run.layers))
        if fill == "profile":
            assert run.profile_trace is not None
            self._learn(run.profile_trace)

    @classmethod
    def needs_for(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Return that only a collection filled beforehand needs a profile trace."""
        return cls.needs if options["fill"] == "profile" else frozenset()

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        """Return what the nearest matrix has in the layers to come."""
        if demand is None:
            if self._requests.begins(view):
                self._keep(self._tokens_LE)
                self._tokens_LE = np.zeros_like(self._tokens_LE)
                self._gather()
            return ()
        layer, first = demand.layer, demand.layer * self.run.experts
        for expert, tokens in demand.tokens.items():
            self._tokens_LE[layer, expert - first] += tokens
        if not self._shares:
            return ()
        self._cosines_CL[:, layer] = self._units_CLE[:, layer] @ _units(self._tokens_LE[layer])
        nearest = int(np.argmax(self._cosines_CL.sum(axis=1)))
        self._found[nearest] += 1
        return self._wishes(self._shares[nearest], layer)

    def _wishes(self, shares_LE: NDArray[np.float64], now: int) -> list[Wish]:
        """Return all that was activated in the layers to come, the highest scores first."""
        layers = self.run.layers
        weight_L = 1 - np.arange(1, layers - now) / (layers + 1)
        score_N = (shares_LE[now + 1 :] * weight_L[:, None]).ravel()
        activated = np.flatnonzero(score_N)
        best_first = activated[np.argsort(-score_N[activated], kind="stable")]
        begin = (now + 1) * self.run.experts
        experts = (begin + best_first).tolist()
        return list(map(Wish, experts, (-score_N[best_first]).tolist()))

    def _keep(self, tokens_LE: NDArray[np.float64]) -> None:
        if not tokens_LE.any():
            return
        if len(self._shares) == self._capacity:
            least = self._found.index(min(self._found))
            del self._shares[least], self._found[least]
        total_L1 = tokens_LE.sum(axis=1, keepdims=True)
        self._shares.append(np.divide(tokens_LE, total_L1, out=0 * tokens_LE, where=total_L1 > 0))
        self._found.append(0)

    def _gather(self) -> None:
        """Make ready for the comparisons of a request."""
        if self._shares:
            self._units_CLE = _units(np.stack(self._shares))
        self._cosines_CL = np.zeros((len(self._shares), self.run.layers))

    def _learn(self, trace: RoutingTrace) -> None:
        starts = trace.row_starts().tolist()
        for begin, end in pairwise(starts):
            rows_TLK = np.asarray(trace.expert_TLK[begin:end])
            counts_LE = np.zeros_like(self._tokens_LE)
            for layer in range(self.run.layers):
                chosen = rows_TLK[:, layer].ravel()
                counts_LE[layer] = np.bincount(chosen[chosen >= 0], minlength=self.run.experts)
            self._keep(counts_LE)
        self._gather()


def _units(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the vectors of the last axis at length 1, or 0 where they are nothing."""
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    units = np.zeros_like(values)
    np.divide(values, norms, out=units, where=norms > 0)
    return units
