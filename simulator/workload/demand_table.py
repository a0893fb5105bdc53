"""What is demanded, in flat arrays that all bounds read: by a trace, or in steps that were formed.

``demands_of`` takes the requests of a trace one after another; ``demands_in`` the steps in which
requests that arrived were served together.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.workload.recorded_steps import Ints, is_plain, steps_of
from moesim.traces import RoutingTrace

# T tokens, L MoE layers, E experts of a layer, K chosen, S steps, V events (one for each layer of
# each step), N uses: one for each distinct expert of each event.

Kind = tuple[int, tuple[int, ...]]
"""A layer, and how many tokens each expert of an event serves."""


@dataclass(frozen=True, slots=True)
class Window:
    """The decode steps of one request: steps [first, last), each of which gives a token."""

    first: int
    last: int


class Together(NamedTuple):
    """What steps of several requests have beside tokens and contexts.

    Attributes:
        requests_S: Requests in each.
        pairs_S: (query, key) pairs of its attention.
        given_S: Tokens that it gives.
    """

    requests_S: Ints
    pairs_S: Ints
    given_S: Ints


@dataclass(frozen=True, slots=True, eq=False)
class DemandTable:
    """What is demanded.

    Attributes:
        layers: L.
        experts: E.
        expert_N: int32 expert, ``layer * E + expert``; in no order within an event.
        begins_V1: First use of each event, and the number of all.
        kind_V: Which of `kinds` each event is.
        kinds: Events that differ in what they cost.
        tokens_S, context_S: New tokens of each step, and the positions up to the last of them,
            summed over its requests.
        windows: Of each request that decodes; none where several are served together.
        together: What else there is to say of steps of several requests.
    """

    layers: int
    experts: int
    expert_N: NDArray[np.int32]
    begins_V1: Ints
    kind_V: Ints
    kinds: list[Kind]
    tokens_S: Ints
    context_S: Ints
    windows: tuple[Window, ...]
    together: Together | None = None

    def uses(self, window: Window) -> slice:
        """Return the uses of some steps."""
        begins = self.begins_V1[[window.first * self.layers, window.last * self.layers]]
        return slice(*begins.tolist())


@lru_cache(maxsize=2)
def demands_of(trace: RoutingTrace) -> DemandTable:
    """Return what a trace demands: 20 to 150 bytes for each use while it is read."""
    steps = steps_of(trace)
    ends = np.append(0, np.flatnonzero(steps.ends_S) + 1).tolist()
    prompts_S1 = np.append(0, np.cumsum(steps.prefills_S))
    windows = [
        Window(first + int(prompts_S1[last] - prompts_S1[first]), last)
        for first, last in pairwise(ends)
    ]
    if is_plain(trace):
        expert_N, begins_V1, kind_V, kinds = _plain(trace)
    else:
        expert_TLK = np.asarray(trace.expert_TLK)
        number_T = np.repeat(np.arange(len(steps.context_S)), np.diff(steps.begins_S1))
        expert_N, begins_V1, kind_V, kinds = _gathered(expert_TLK, number_T, trace.experts)
    return DemandTable(
        layers=trace.layers,
        experts=trace.experts,
        expert_N=expert_N,
        begins_V1=begins_V1,
        kind_V=kind_V,
        kinds=kinds,
        tokens_S=np.diff(steps.begins_S1),
        context_S=steps.context_S,
        windows=tuple(window for window in windows if window.first < window.last),
    )


def demands_in(
    expert_TLK: NDArray[np.int16],
    experts: int,
    tokens_S: Ints,
    context_S: Ints,
    together: Together,
) -> DemandTable:
    """Return what steps demand.

    Args:
        expert_TLK: The choices of their tokens, step after step.
        experts: E.
        tokens_S: New tokens of each step.
        context_S: Positions attended to.
        together: What else there is to say of them.
    """
    number_T = np.repeat(np.arange(len(tokens_S)), tokens_S)
    expert_N, begins_V1, kind_V, kinds = _gathered(expert_TLK, number_T, experts)
    return DemandTable(
        layers=expert_TLK.shape[1],
        experts=experts,
        expert_N=expert_N,
        begins_V1=begins_V1,
        kind_V=kind_V,
        kinds=kinds,
        tokens_S=tokens_S,
        context_S=context_S,
        windows=(),
        together=together,
    )


def _plain(trace: RoutingTrace) -> tuple[NDArray[np.int32], Ints, Ints, list[Kind]]:
    offset_L1 = (np.arange(trace.layers, dtype=np.int32) * trace.experts)[:, None]
    expert_N = (np.asarray(trace.expert_TLK) + offset_L1).ravel()
    events = trace.tokens * trace.layers
    return (
        expert_N,
        np.arange(events + 1, dtype=np.int64) * trace.top_k,
        np.tile(np.arange(trace.layers, dtype=np.int64), trace.tokens),
        [(layer, (1,) * trace.top_k) for layer in range(trace.layers)],
    )


def _gathered(
    expert_TLK: NDArray[np.int16], number_T: Ints, experts: int
) -> tuple[NDArray[np.int32], Ints, Ints, list[Kind]]:
    """Return the distinct experts of each event; ``number_T`` is the step of each token, rising."""
    layers = expert_TLK.shape[1]
    event_TL = number_T[:, None] * layers + np.arange(layers)
    key_TLK = event_TL[:, :, None] * experts + expert_TLK.astype(np.int64)
    # A row of a layer that was not recorded demands nothing.
    key_N, tokens_N = np.unique(key_TLK[(expert_TLK >= 0).all(axis=2)], return_counts=True)
    event_N = key_N // experts
    events = (int(number_T[-1]) + 1) * layers if len(number_T) else 0
    lengths_V = np.bincount(event_N, minlength=events)
    begins_V1 = np.append(0, np.cumsum(lengths_V))
    is_single_V = np.ones(events, np.bool_)
    is_single_V[event_N[tokens_N > 1]] = False
    layer_V = np.arange(events) % layers
    # Events of one token for each expert differ by layer and length alone.
    met, kind_V = np.unique(layer_V * (experts + 1) + lengths_V, return_inverse=True)
    kinds: list[Kind] = []
    for key in met.tolist():
        layer, length = divmod(key, experts + 1)
        kinds.append((layer, (1,) * length))
    kind_V = kind_V.ravel().astype(np.int64)
    known: dict[Kind, int] = {}
    for event in np.flatnonzero(~is_single_V).tolist():
        here = tokens_N[begins_V1[event] : begins_V1[event + 1]]
        kind = (event % layers, tuple(here.tolist()))
        if kind not in known:
            known[kind] = len(kinds)
            kinds.append(kind)
        kind_V[event] = known[kind]
    experts_N = key_N % (layers * experts)
    return experts_N.astype(np.int32), begins_V1.astype(np.int64), kind_V, kinds
