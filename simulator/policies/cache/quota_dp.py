"""Give each layer the slots that save most copies, as found by dynamic programming."""

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.policies.base import CachePolicy, RunInfo
from moesim.simulator.policies.guards import CacheGuard
from moesim.traces import RoutingTrace

__all__ = ["QuotaDp"]

# T tokens, L MoE layers, E experts of a layer, K chosen, S slots.
SIGNAL = "look_in_TLHM"


class QuotaDp(CacheGuard):
    """AdapMoE's unequal shares: the slots of each layer that make the expected copies least.

    What a layer misses with s slots is counted in the profile trace, under LRU, by how many other
    experts of the layer came between two uses. What its look-ahead names rightly is taken as
    prefetched, where the profile trace has one. Every layer has top-k slots at least; experts are
    taken as of one size.
    """

    needs = frozenset({"profile"})
    paper = "AdapMoE (ICCAD'24) section IV-C, dp.py, with counted instead of assumed hit rates"

    def __init__(self, run: RunInfo, inner: CachePolicy) -> None:
        super().__init__(run, inner)
        assert run.profile_trace is not None
        size = max(run.expert_bytes_L)
        slots = max(0, run.budget_bytes - inner.staging_bytes()) // size
        cost_LS = _misses(run.profile_trace) * (1 - _foreseen(run.profile_trace))[:, None]
        self._slots_L = _best_slots(cost_LS, slots, run.top_k)
        self._size = size

    def quotas_L(self) -> list[int]:
        """Return the bytes of each layer."""
        return [slots * self._size for slots in self._slots_L]


def _misses(trace: RoutingTrace) -> NDArray[np.float64]:
    """Return how many uses of each layer would miss under LRU of 0 to E slots: misses_LS."""
    misses_LS = np.zeros((trace.layers, trace.experts + 1))
    rows_TLK = np.asarray(trace.expert_TLK)
    for layer in range(trace.layers):
        recent: list[int] = []  # the youngest last
        for expert in rows_TLK[:, layer].ravel().tolist():
            if expert < 0:
                continue
            between = trace.experts
            if expert in recent:
                between = len(recent) - 1 - recent.index(expert)
                recent.remove(expert)
            recent.append(expert)
            misses_LS[layer, : between + 1] += 1
    return misses_LS


def _foreseen(trace: RoutingTrace) -> NDArray[np.float64]:
    """Return the share of each layer's choices that the layer before promised; 0 if unknown."""
    share_L = np.zeros(trace.layers)
    if SIGNAL not in trace.signals:
        return share_L
    for layer in range(1, trace.layers):
        promised_TK = np.asarray(trace.signals[SIGNAL][:, layer - 1, 0, : trace.top_k])
        chosen_TK = np.asarray(trace.expert_TLK[:, layer])
        share_L[layer] = (chosen_TK[:, :, None] == promised_TK[:, None, :]).any(axis=2).mean()
    return share_L


def _best_slots(cost_LS: NDArray[np.float64], slots: int, least: int) -> list[int]:
    """Return each layer's slots, at least ``least`` and at most all, of least total cost.

    Where not even the least fits they are the least, for the controller to refuse.
    """
    layers, most = len(cost_LS), cost_LS.shape[1] - 1
    least = min(least, most)
    spare = min(slots - layers * least, layers * (most - least))
    if spare < 0:
        return [least] * layers
    best = np.zeros(spare + 1)
    choices = []
    for cost_S in cost_LS:
        table = np.full((most - least + 1, spare + 1), np.inf)
        for extra in range(min(most - least, spare) + 1):
            table[extra, extra:] = best[: spare + 1 - extra] + cost_S[least + extra]
        choices.append(table.argmin(axis=0))
        best = table.min(axis=0)
    slots_L = []
    for choice in reversed(choices):
        extra = int(choice[spare])
        slots_L.append(least + extra)
        spare -= extra
    for index, given in enumerate(
        slots_L
    ):  # what saves nothing in the profile is given all the same
        more = min(spare, most - given)
        slots_L[index] += more
        spare -= more
    return slots_L[::-1]
