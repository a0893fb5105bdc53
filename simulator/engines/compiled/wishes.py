"""What a prefetch policy answers, where the trace alone determines it: once per trace and policy.

A transition table and an oracle look at demands, not at residency or time: the policy object itself
is asked, once, without a clock. A look-ahead is the signal's own rows, ranked. Wishes for what has
room are passed over when they are read, as the controller does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.assembly import build_policies
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.compiled.jit import entry
from moesim.simulator.engines.compiled.layout import TOKENS, Ints, Shorts
from moesim.simulator.engines.compiled.trace_arrays import uses_of
from moesim.simulator.errors import CapabilityError
from moesim.simulator.policies.base import Demand, PrefetchPolicy, View
from moesim.simulator.policies.prefetch.next_gate import SIGNAL, NextGate
from moesim.simulator.policies.prefetch.oracle import Oracle
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.terms import Phase
from moesim.simulator.workload.demands import Workload
from moesim.simulator.workload.foresight import RecordedFuture
from moesim.simulator.workload.recorded_steps import Flags, steps_of
from moesim.traces import RoutingTrace

# T tokens, L MoE layers, H horizons, M top-m, S steps, W wishes.


class Wishes(NamedTuple):
    """The answers to each call: at the beginning of each step, then after each layer."""

    begins: Ints
    expert_W: Shorts


@dataclass(frozen=True, slots=True)
class Asked:
    """What determines the answers; traces are told apart as objects, policies by their text."""

    trace: RoutingTrace
    profile_trace: RoutingTrace | None
    prefetch: str
    seed: int


def no_wishes() -> Wishes:
    """Return the answers of a policy that wishes for nothing."""
    return Wishes(np.zeros(1, np.int64), np.empty(0, np.int32))


def wishes_of(
    asked: Asked, policies: Mapping[Axis, PolicySpec], sizes_L: tuple[int, ...], costs: CostModel
) -> Wishes:
    """Return all answers of the run's prefetch policy.

    Raises:
        CapabilityError: It looks further than one turn of the layers, or what the trace has.
    """
    spec = policies["prefetch"]
    if issubclass(spec.cls, NextGate):
        known_at = asked.trace.header.signals[SIGNAL].known_at
        if known_at != "layer_routed":
            raise CapabilityError(
                f"engine compiled reads {SIGNAL} at layer_routed, this trace knows it at "
                f"{known_at}; use --engine clock"
            )
        width = spec.options.get("width")
        return _promised(
            asked.trace,
            spec.options.get("horizon", 1),
            asked.trace.top_k if width is None else width,
        )
    if issubclass(spec.cls, Oracle) and spec.options.keys() <= {"horizon"}:
        return _foreseen(asked.trace, spec.options.get("horizon", 1), asked.prefetch)
    return _answered(asked, _Builder(policies, sizes_L, costs))


class _Builder:
    """Builds the policy; equal to any other, since `Asked` holds all that matters."""

    def __init__(
        self, policies: Mapping[Axis, PolicySpec], sizes_L: tuple[int, ...], costs: CostModel
    ) -> None:
        self.policies, self.sizes_L, self.costs = policies, sizes_L, costs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Builder)

    def __hash__(self) -> int:
        return 0

    def policy(self, asked: Asked) -> PrefetchPolicy:
        """Return a fresh policy, with the future if it needs that."""
        axis: Axis = "prefetch"
        needs_future = "future" in self.policies[axis].needs
        _, built = build_policies(
            self.policies,
            experts=asked.trace.experts,
            top_k=asked.trace.top_k,
            sizes_L=self.sizes_L,
            budget_bytes=0,
            costs=self.costs,
            seed=asked.seed,
            profile_trace=asked.profile_trace,
            future=_future(asked.trace) if needs_future else None,
            axes=(axis,),
        )
        policy = built[axis]
        assert isinstance(policy, PrefetchPolicy)
        return policy


@lru_cache(maxsize=1)
def _future(trace: RoutingTrace) -> RecordedFuture:
    return RecordedFuture(Workload(trace).events())


class _Nowhere:
    """A residency in which nothing has room; policies asked here do not look."""

    def is_resident(self, expert: int) -> bool:  # noqa: ARG002  the protocol's
        """Return False."""
        return False

    def is_loading(self, expert: int) -> bool:  # noqa: ARG002  the protocol's
        """Return False."""
        return False

    def free_bytes(self, layer: int) -> int:  # noqa: ARG002  the protocol's
        """Return 0."""
        return 0


@lru_cache(maxsize=4)
def _answered(asked: Asked, builder: _Builder) -> Wishes:
    """Ask the policy itself, call by call."""
    trace, policy = asked.trace, builder.policy(asked)
    steps, uses = steps_of(trace), uses_of(trace)
    view = View(_Nowhere())
    begins, wished = [0], []
    for step, is_prefill in enumerate(steps.prefills_S.tolist()):
        view.step, view.layer = step, -1
        view.phases = (Phase.PREFILL if is_prefill else Phase.DECODE,)
        for layer in range(-1, trace.layers):
            demand = None
            if layer >= 0:
                view.event += 1
                view.layer = layer
                here = slice(uses.begins_N1[view.event], uses.begins_N1[view.event + 1])
                experts = uses.expert_U[here].tolist()
                counts = (
                    [1] * len(experts) if uses.is_plain else uses.detail_U3[here, TOKENS].tolist()
                )
                tokens = dict(zip(experts, counts, strict=True))
                demand = Demand(step, layer, experts, tokens, experts, (), (), ())
            for wish in policy.wants(demand, view):
                _check_horizon(int(wish.priority) - view.event, trace.layers, asked.prefetch)
                wished.append(wish.expert)
            begins.append(len(wished))
    return Wishes(np.asarray(begins, np.int64), np.asarray(wished, np.int32))


@lru_cache(maxsize=4)
def _foreseen(trace: RoutingTrace, horizon: int, prefetch: str) -> Wishes:
    """Return the demands of the next events, as an oracle that errs in nothing names them."""
    _check_horizon(horizon, trace.layers, prefetch)
    uses = uses_of(trace)
    events = len(uses.begins_N1) - 1
    # A step is begun after the last event of the step before, and sees what that saw.
    first_C = np.arange(events + events // trace.layers) - 1
    first_C -= np.arange(len(first_C)) // (trace.layers + 1)
    begins_C = uses.begins_N1[np.minimum(first_C + 1, events)]
    ends_C = uses.begins_N1[np.minimum(first_C + 1 + horizon, events)]
    begins = np.append(0, np.cumsum(ends_C - begins_C))
    place = np.arange(begins[-1]) - np.repeat(begins[:-1] - begins_C, ends_C - begins_C)
    return Wishes(begins, uses.expert_U[place])


def _check_horizon(horizon: int, layers: int, prefetch: str) -> None:
    if horizon > layers:
        raise CapabilityError(
            f"engine compiled looks at most {layers} layers ahead, one turn; prefetch policy "
            f"{prefetch} looks further: use --engine clock"
        )


@lru_cache(maxsize=4)
def _promised(trace: RoutingTrace, horizon: int, width: int) -> Wishes:
    look_TLHM = trace.signals[SIGNAL]
    _, layers, horizons, ranks = look_TLHM.shape
    for name, value, most in (("horizon", horizon, horizons), ("width", width, ranks)):
        if not 1 <= value <= most:
            raise CapabilityError(
                f"prefetch policy next_gate: option {name}={value}: the trace's {SIGNAL} "
                f"goes from 1 to {most}"
            )
    _check_horizon(horizon, layers, f"next_gate:horizon={horizon}")
    steps = steps_of(trace)
    look = np.require(look_TLHM, np.int32, ["C", "W"])
    return Wishes(*_rank(look, steps.begins_S1, steps.prefills_S, trace.experts, horizon, width))


@entry()
def _rank(  # noqa: C901, PLR0912  as above
    look_TLHM: NDArray[np.int32],
    begins_S1: Ints,
    prefills_S: Flags,
    experts: int,
    horizon: int,
    width: int,
) -> tuple[Ints, Shorts]:
    """Return what the tokens of each call promise: nearer layers first, then by votes."""
    layers = look_TLHM.shape[1]
    steps = len(prefills_S)
    most = 0
    for step in range(steps):
        tokens = begins_S1[step + 1] - begins_S1[step]
        most += min(tokens * width, experts) * layers * horizon
    begins = np.zeros(steps * (layers + 1) + 1, np.int64)
    wished = np.empty(most, np.int32)
    votes_E = np.zeros(experts, np.int64)
    call, at = 0, 0
    for step in range(steps):
        call += 1
        begins[call] = at
        for layer in range(layers):
            for ahead in range(horizon):
                target = layer + 1 + ahead
                first_row, last_row = begins_S1[step], begins_S1[step + 1]
                if target >= layers:
                    target %= layers
                    if prefills_S[step]:
                        first_row = last_row - 1
                first = at
                for row in range(first_row, last_row):
                    for place in range(width):
                        best = look_TLHM[row, layer, ahead, place]
                        if best < 0:
                            continue
                        if votes_E[best] == 0:
                            wished[at] = best
                            at += 1
                        votes_E[best] += 1
                for i in range(first + 1, at):  # insertion keeps equal votes in their order
                    best, j = wished[i], i
                    while j > first and votes_E[wished[j - 1]] < votes_E[best]:
                        wished[j] = wished[j - 1]
                        j -= 1
                    wished[j] = best
                for i in range(first, at):
                    votes_E[wished[i]] = 0
                    wished[i] += target * experts
            call += 1
            begins[call] = at
    return begins, wished[:at].copy()
