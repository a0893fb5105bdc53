"""A trace as the compiled loops read it: every event's distinct experts, flat; once per trace."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.engines.compiled.jit import entry
from moesim.simulator.engines.compiled.layout import PLACE, TOKENS, TOUCHED, Ints, Shorts
from moesim.simulator.workload.recorded_steps import is_plain, steps_of
from moesim.traces import RoutingTrace

# T tokens, L MoE layers, K chosen, S steps, N events, U uses, X experts of the model.


class Uses(NamedTuple):
    """What every event demands; see `layout.Run`."""

    begins_N1: Ints
    expert_U: Shorts
    detail_U3: Shorts
    is_plain: bool


class Futures(NamedTuple):
    """When experts are used next; see `layout.Run`."""

    next_use_U: Shorts
    first_use_X: Shorts


@lru_cache(maxsize=2)
def uses_of(trace: RoutingTrace) -> Uses:
    """Return what every event of a trace demands."""
    steps = steps_of(trace)
    expert_TLK = np.asarray(trace.expert_TLK)
    tokens, layers, top_k = expert_TLK.shape
    if is_plain(trace):
        flat = expert_TLK + (np.arange(layers, dtype=np.int32) * trace.experts)[:, None]
        begins_N1 = np.arange(tokens * layers + 1, dtype=np.int64) * top_k
        expert_U = flat.astype(np.int32, copy=False).ravel()
        return Uses(begins_N1, expert_U, np.empty((0, 3), np.int32), is_plain=True)
    # Of a trace that is mapped read-only a copy, so that one function is compiled, not two.
    return Uses(
        *_gather(np.require(expert_TLK, np.int16, ["C", "W"]), steps.begins_S1, trace.experts),
        is_plain=False,
    )


@lru_cache(maxsize=2)
def futures_of(trace: RoutingTrace) -> Futures:
    """Return when every expert of a trace is used next."""
    uses = uses_of(trace)
    touched_U = uses.expert_U if uses.is_plain else uses.detail_U3[:, TOUCHED].copy()
    return Futures(*_look_ahead(uses.begins_N1, touched_U, trace.layers * trace.experts))


@entry()
def _gather(  # noqa: C901, PLR0912  one pass over the trace, in nested loops
    expert_TLK: NDArray[np.int16], begins_S1: Ints, experts: int
) -> tuple[Ints, Shorts, Shorts]:
    """Return the uses of all events; a row with an expert of -1 was not recorded."""
    _, layers, top_k = expert_TLK.shape
    steps = len(begins_S1) - 1
    most = 0
    for step in range(steps):
        most += min((begins_S1[step + 1] - begins_S1[step]) * top_k, experts) * layers
    begins_N1 = np.zeros(steps * layers + 1, np.int64)
    expert_U = np.empty(most, np.int32)
    detail_U3 = np.empty((most, 3), np.int32)
    count_E = np.zeros(experts, np.int64)
    at = 0
    for step in range(steps):
        first, after = begins_S1[step], begins_S1[step + 1]
        for layer in range(layers):
            begins, touches = at, 0
            for row in range(first, after):
                if expert_TLK[row, layer, 0] < 0:
                    continue
                for rank in range(top_k):
                    chosen = expert_TLK[row, layer, rank]
                    if count_E[chosen] == 0:
                        expert_U[at] = layer * experts + chosen
                        at += 1
                    count_E[chosen] += 1
                    touches += 1
            for i in range(begins, at):
                detail_U3[i, TOKENS] = count_E[expert_U[i] - layer * experts]
            left = at  # from the last occurrence on
            for row in range(after - 1, first - 1, -1):
                if left == begins:
                    break
                if expert_TLK[row, layer, 0] < 0:
                    continue
                for rank in range(top_k - 1, -1, -1):
                    touches -= 1
                    chosen = expert_TLK[row, layer, rank]
                    if count_E[chosen]:
                        count_E[chosen] = 0
                        left -= 1
                        detail_U3[left, TOUCHED] = layer * experts + chosen
                        detail_U3[left, PLACE] = touches
            begins_N1[step * layers + layer + 1] = at
    return begins_N1, expert_U[:at].copy(), detail_U3[:at].copy()


@entry()
def _look_ahead(begins_N1: Ints, touched_U: Shorts, experts: int) -> tuple[Shorts, Shorts]:
    """Return the next event of each use, N if none, and the first event of each expert."""
    events = len(begins_N1) - 1
    next_use_U = np.empty(len(touched_U), np.int32)
    upcoming_X = np.full(experts, events, np.int32)
    for event in range(events - 1, -1, -1):
        for at in range(begins_N1[event], begins_N1[event + 1]):
            next_use_U[at] = upcoming_X[touched_U[at]]
            upcoming_X[touched_U[at]] = event
    return next_use_U, upcoming_X
