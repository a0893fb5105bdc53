"""A trace as the compiled loops read it: every event's distinct experts, flat; once per trace."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.compiled.jit import entry
from moesim.simulator.compiled.layout import PLACE, TOKENS, TOUCHED, Ints, Shorts
from moesim.traces import RoutingTrace

Flags = NDArray[np.int8]

# T tokens, L MoE layers, K chosen, S steps, N events, U uses, X experts of the model.


class Steps(NamedTuple):
    """The forward passes of a trace, requests one after another."""

    begins_S1: Ints  # rows
    context_S: Ints
    request_S: Ints
    gives_S: Flags
    prefills_S: Flags
    ends_S: Flags


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
def steps_of(trace: RoutingTrace) -> Steps:
    """Return the forward passes of a trace."""
    request_T, step_T = np.asarray(trace.request_T), np.asarray(trace.step_T)
    changes_T = (np.diff(request_T) != 0) | (np.diff(step_T) != 0)
    begins_S1 = np.concatenate([[0], np.flatnonzero(changes_T) + 1, [trace.tokens]])
    first_S, last_S = begins_S1[:-1], begins_S1[1:] - 1
    request_S = request_T[first_S].astype(np.int64)
    prefills_S = np.asarray(trace.is_prefill_T)[first_S]
    ends_S = np.append(np.diff(request_S) != 0, True)
    # A request's last row of prompt: as many rows in as it has of them.
    prompt_R = np.bincount(request_T, np.asarray(trace.is_prefill_T), trace.requests)
    last_prompt_R = trace.row_starts()[:-1] + prompt_R.astype(np.int64)
    return Steps(
        begins_S1.astype(np.int64),
        np.asarray(trace.position_T)[last_S].astype(np.int64) + 1,
        request_S,
        (~prefills_S | (begins_S1[1:] == last_prompt_R[request_S])).astype(np.int8),
        prefills_S.astype(np.int8),
        ends_S.astype(np.int8),
    )


@lru_cache(maxsize=2)
def uses_of(trace: RoutingTrace) -> Uses:
    """Return what every event of a trace demands."""
    steps = steps_of(trace)
    expert_TLK = np.asarray(trace.expert_TLK)
    tokens, layers, top_k = expert_TLK.shape
    if len(steps.context_S) == tokens and (expert_TLK >= 0).all() and _distinct(expert_TLK):
        flat = expert_TLK + (np.arange(layers, dtype=np.int32) * trace.experts)[:, None]
        begins_N1 = np.arange(tokens * layers + 1, dtype=np.int64) * top_k
        expert_U = flat.astype(np.int32, copy=False).ravel()
        return Uses(begins_N1, expert_U, np.empty((0, 3), np.int32), is_plain=True)
    return Uses(*_gather(expert_TLK, steps.begins_S1, trace.experts), is_plain=False)


@lru_cache(maxsize=2)
def futures_of(trace: RoutingTrace) -> Futures:
    """Return when every expert of a trace is used next."""
    uses = uses_of(trace)
    touched_U = uses.expert_U if uses.is_plain else uses.detail_U3[:, TOUCHED].copy()
    return Futures(*_look_ahead(uses.begins_N1, touched_U, trace.layers * trace.experts))


def _distinct(expert_TLK: NDArray[np.int16]) -> bool:
    ordered = np.sort(expert_TLK, axis=2)
    return not bool((ordered[..., 1:] == ordered[..., :-1]).any())


def _make_gather(  # noqa: C901  one pass over the trace, in nested loops
    digest: int,
) -> Callable[..., tuple[Ints, Shorts, Shorts]]:
    def gather(
        expert_TLK: NDArray[np.int16], begins_S1: Ints, experts: int
    ) -> tuple[Ints, Shorts, Shorts]:
        """Return the uses of all events; a row with an expert of -1 was not recorded."""
        _, layers, top_k = expert_TLK.shape
        steps = len(begins_S1) - 1
        most = digest * 0
        for step in range(steps):
            most += min((begins_S1[step + 1] - begins_S1[step]) * top_k, experts) * layers
        begins_N1 = np.zeros(steps * layers + 1, np.int64)
        expert_U = np.empty(most, np.int32)
        detail_U3 = np.empty((most, 3), np.int32)
        count_E = np.zeros(experts, np.int64)
        last_E = np.zeros(experts, np.int64)
        at = 0
        for step in range(steps):
            for layer in range(layers):
                begins, touches = at, 0
                for row in range(begins_S1[step], begins_S1[step + 1]):
                    if expert_TLK[row, layer].min() < 0:
                        continue
                    for rank in range(top_k):
                        chosen = expert_TLK[row, layer, rank]
                        if count_E[chosen] == 0:
                            expert_U[at] = layer * experts + chosen
                            at += 1
                        count_E[chosen] += 1
                        last_E[chosen] = touches
                        touches += 1
                ids = expert_U[begins:at] - layer * experts
                order = np.argsort(last_E[ids])
                for i in range(at - begins):
                    detail_U3[begins + i, TOKENS] = count_E[ids[i]]
                    detail_U3[begins + i, TOUCHED] = expert_U[begins + order[i]]
                    detail_U3[begins + i, PLACE] = last_E[ids[order[i]]]
                for i in range(at - begins):
                    count_E[ids[i]] = 0
                begins_N1[step * layers + layer + 1] = at
        return begins_N1, expert_U[:at].copy(), detail_U3[:at].copy()

    return gather


def _make_look_ahead(digest: int) -> Callable[..., tuple[Shorts, Shorts]]:
    def look_ahead(begins_N1: Ints, touched_U: Shorts, experts: int) -> tuple[Shorts, Shorts]:
        """Return the next event of each use, N if none, and the first event of each expert."""
        events = len(begins_N1) - 1 + digest * 0
        next_use_U = np.empty(len(touched_U), np.int32)
        upcoming_X = np.full(experts, events, np.int32)
        for event in range(events - 1, -1, -1):
            for at in range(begins_N1[event], begins_N1[event + 1]):
                next_use_U[at] = upcoming_X[touched_U[at]]
                upcoming_X[touched_U[at]] = event
        return next_use_U, upcoming_X

    return look_ahead


_gather = entry(_make_gather)
_look_ahead = entry(_make_look_ahead)
