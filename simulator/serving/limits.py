"""What no policy can beat on requests that arrived, given the steps in which they were served.

Other steps could have been formed, so these bounds are *given this batching*: they hold for every
cache, prefetch and placement under the same steps. Bytes are Belady's on the sequence of unions
that the batches demanded; the span is at least the floors of all steps (``floors``), idle time not
counted.

A gap between two tokens of a request contains the whole of the step that gives the second, so the
sum of all gaps is at least that of the steps, each counted once for each token that it gives in
decode. Say w(s) is that number. Floors are linear, so they are summed with weights w. Without
prefetch the copies of a step are made in it; the weighted sum of their bytes is a sum over levels,

    sum_s w(s) b(s) = sum_k>0 (sum of b over the steps with w >= k)

and each of these sums is at least what Belady moves in such steps if all other copies are for free.
A few levels stand for all: with fewer tokens to a step than a level, its bytes count for less. With
prefetch the copies may be made elsewhere, and only the work of the steps counts.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.costs import CostModel
from moesim.simulator.limits.bounds import Actions, Bounds, BytesKind
from moesim.simulator.limits.floors import Link, StepFloors
from moesim.simulator.limits.must_move import Uses, must_move_bytes
from moesim.simulator.terms import Phase
from moesim.simulator.workload.demand_table import DemandTable, Together, demands_in
from moesim.simulator.workload.demands import Rows, Step
from moesim.simulator.workload.recorded_steps import Ints
from moesim.traces import RoutingTrace

__all__ = ["GIVEN", "Formed", "served_bounds"]

# S steps; N uses: one for each distinct expert of each layer of each step.

GIVEN = "the bounds are given this batching: other steps could have been formed"

_LEVELS = 4


class Formed(NamedTuple):
    """A step that was formed.

    Attributes:
        requests: Who was in it.
        spans: Which rows of each, from begin to end.
        context_tokens: Positions attended to.
        pairs: (query, key) pairs of attention.
        given: Tokens that it gave.
        decoded: How many of them to requests in decode.
    """

    requests: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    context_tokens: int
    pairs: int
    given: int
    decoded: int

    @classmethod
    def of(cls, step: Step) -> "Formed":
        """Return what bounds need of a step."""
        return cls(
            step.requests,
            step.spans,
            step.context_tokens,
            step.pairs,
            sum(step.tokens_out),
            step.phases.count(Phase.DECODE),
        )


def served_bounds(
    trace: RoutingTrace,
    rows_R: Sequence[Rows],
    steps: Sequence[Formed],
    costs: CostModel,
    budget_bytes: int,
    actions: Actions,
) -> Bounds:
    """Return the bounds of all runs that form these steps, within a budget and a set of actions.

    Args:
        trace: The recorded sequences.
        rows_R: Which of its rows each request has; nothing is read of those that were refused.
        steps: Those that were formed.
        costs: How long things take; its shape says how large experts are.
        budget_bytes: Room for experts at its most, staging included.
        actions: The means allowed.
    """
    size_L = np.array([layer.expert_bytes for layer in costs.shape.layers], np.int64)
    largest, is_equal = int(size_L.max()), len(set(size_L.tolist())) == 1
    room_bytes = budget_bytes // largest * largest if is_equal else budget_bytes
    link, demands = Link.of(costs), _demands(trace, rows_R, steps)
    floors = StepFloors(costs, cpu_experts=actions.cpu_experts, lossy=actions.lossy).of(demands)
    decoded_S = np.array([step.decoded for step in steps], np.int64)
    kind: BytesKind = "belady_bypass" if is_equal else "fractional"
    bytes_min = weighted_bytes = 0
    if actions.must_copy:
        moved = _Moved(demands, size_L, room_bytes, warm=actions.initial)
        bytes_min = moved.least_bytes(np.ones(len(steps), np.bool_))
        if not actions.prefetch:
            weighted_bytes = moved.weighted_bytes(decoded_S)
    else:
        kind = "lossy" if actions.lossy else "none"
    floor, gaps = floors.whole(), int(decoded_S.sum())
    decode_ns = floors.weighted(decoded_S).time_ns(link, weighted_bytes, prefetch=actions.prefetch)
    least, in_decode = (kind, bytes_min), (decode_ns, gaps)
    return Bounds.over(floor, costs, actions, moved=least, decode=in_decode, notes=(GIVEN,))


def _demands(trace: RoutingTrace, rows_R: Sequence[Rows], steps: Sequence[Formed]) -> DemandTable:
    rows_T = [
        np.asarray(rows_R[request])[begin:end]
        for step in steps
        for request, (begin, end) in zip(step.requests, step.spans, strict=True)
    ]
    return demands_in(
        np.asarray(trace.expert_TLK[np.concatenate([np.empty(0, np.int64), *rows_T])]),
        trace.experts,
        np.array([sum(end - begin for begin, end in step.spans) for step in steps], np.int64),
        np.array([step.context_tokens for step in steps], np.int64),
        Together(
            np.array([len(step.requests) for step in steps], np.int64),
            np.array([step.pairs for step in steps], np.int64),
            np.array([step.given for step in steps], np.int64),
        ),
    )


class _Moved:
    """The bytes that steps must move."""

    def __init__(self, demands: DemandTable, size_L: Ints, room_bytes: int, *, warm: bool) -> None:
        self._demands = demands
        self._event_N = np.repeat(
            np.arange(len(demands.begins_V1) - 1, dtype=np.int32), np.diff(demands.begins_V1)
        )
        self._size_N = size_L[demands.expert_N // demands.experts]
        self._room_bytes = room_bytes
        self._warm = warm

    def least_bytes(self, counts_S: NDArray[np.bool_]) -> int:
        """Return the bytes of some steps, where those of all others are for free."""
        counts_N = counts_S[self._event_N // self._demands.layers]
        uses = Uses(self._demands.expert_N, self._event_N, self._size_N, counts_N)
        return must_move_bytes(uses, self._room_bytes, warm=self._warm)

    def weighted_bytes(self, weight_S: Ints) -> int:
        """Return the least sum of bytes times weights, as far as a few levels tell; see above."""
        weights = np.sort(weight_S[weight_S > 0])
        if not len(weights):
            return 0
        at = np.linspace(0, len(weights) - 1, _LEVELS).astype(np.int64)
        levels = [0, *np.unique(weights[at]).tolist()]
        return sum(
            (level - before) * self.least_bytes(weight_S >= level)
            for before, level in pairwise(levels)
        )
