"""No run beats its bounds, and the bound on bytes is the minimum where it says so."""

from collections.abc import Sequence
from functools import cache
from inspect import Parameter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.hardware_profiles.round_numbers import round_machine, round_runtime
from moesim.simulator import registry
from moesim.simulator.controller import Controller
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.counts import count
from moesim.simulator.engines.simpy import SimpyEngine
from moesim.simulator.errors import BooksError
from moesim.simulator.ledger import Counts, Timings
from moesim.simulator.limits import must_move
from moesim.simulator.limits.bounds import Actions, Bounds, bounds, known_bounds
from moesim.simulator.limits.distance import split
from moesim.simulator.limits.floors import StepFloors
from moesim.simulator.limits.must_move import Uses, must_move_bytes
from moesim.simulator.models.cost_shape import CostShape
from moesim.simulator.policies.base import (
    CachePolicy,
    Demand,
    Evictable,
    Group,
    PrefetchPolicy,
    RunInfo,
    SchedulePolicy,
    View,
    Wish,
)
from moesim.simulator.policies.cache.lru import LeastRecentlyUsed
from moesim.simulator.policies.prefetch.none import NoPrefetch
from moesim.simulator.policies.schedule.resident_first import ResidentFirst
from moesim.simulator.results.rows import token_times
from moesim.simulator.terms import CPU, GPU, Verdict
from moesim.simulator.testing.tiny import trace_of
from moesim.simulator.workload.demands import Workload
from moesim.simulator.workload.foresight import RecordedFuture
from moesim.traces import RoutingTrace, synthetic

Events = Sequence[Sequence[int]]

EXPERTS = 5
SMALL_EVENTS = st.lists(
    st.lists(st.integers(0, EXPERTS - 1), max_size=3, unique=True), min_size=1, max_size=7
)


# The bytes that must move


def uses_of(events: Events, size_E: Sequence[int], counted: Sequence[bool] | None = None) -> Uses:
    """Return events as flat arrays."""
    flat = [(expert, number) for number, event in enumerate(events) for expert in event]
    expert_N = np.array([expert for expert, _ in flat], np.int32)
    event_N = np.array([number for _, number in flat], np.int32)
    counts = np.ones(len(events), np.bool_) if counted is None else np.array(counted)
    return Uses(expert_N, event_N, np.array(size_E)[expert_N], counts[event_N])


def searched_bytes(
    events: Events,
    size_E: Sequence[int],
    room: int,
    *,
    warm: bool,
    counted: Sequence[bool] | None = None,
) -> int:
    """Return the least bytes over every choice of what stays after each event."""

    def fitting(experts: set[int]) -> list[frozenset[int]]:
        sets = [c for n in range(len(experts) + 1) for c in combinations(sorted(experts), n)]
        return [frozenset(c) for c in sets if sum(size_E[e] for e in c) <= room]

    start = fitting(set(range(len(size_E)))) if warm else [frozenset[int]()]
    least = dict.fromkeys(start, 0)
    for number, event in enumerate(events):
        after: dict[frozenset[int], int] = {}
        for here, moved in least.items():
            missed = sum(size_E[e] for e in event if e not in here)
            total = moved + (missed if counted is None or counted[number] else 0)
            for stays in fitting({*here, *event}):
                after[stays] = min(total, after.get(stays, total))
        least = after
    return min(least.values())


@given(SMALL_EVENTS, st.integers(0, 4), st.booleans(), st.data())
def test_equal_experts_move_what_an_exhaustive_search_moves(
    events: Events, slots: int, warm: bool, data: st.DataObject
) -> None:
    """The bound equals the least over all choices of what stays, with and without free uses."""
    counted = data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events)))
    size_E = [7] * EXPERTS
    expected = searched_bytes(events, size_E, 7 * slots, warm=warm, counted=counted)
    assert expected == must_move_bytes(uses_of(events, size_E, counted), 7 * slots, warm=warm)


@given(SMALL_EVENTS, st.lists(st.integers(1, 3), min_size=EXPERTS, max_size=EXPERTS), st.data())
def test_unequal_experts_move_no_less_than_the_bound(
    events: Events, size_E: list[int], data: st.DataObject
) -> None:
    """The bound is the minimum for experts cut into single bytes, so whole ones can't beat it."""
    room, warm = data.draw(st.integers(0, 7)), data.draw(st.booleans())
    bound = must_move_bytes(uses_of(events, size_E), room, warm=warm)
    begins = np.cumsum([0, *size_E])
    cut = [[b for e in event for b in range(begins[e], begins[e + 1])] for event in events]
    assert bound == must_move_bytes(uses_of(cut, [1] * int(begins[-1])), room, warm=warm)
    assert bound <= searched_bytes(events, size_E, room, warm=warm)


def test_unequal_experts_in_single_bytes_move_what_a_search_moves() -> None:
    """The relaxation is solved exactly: five bytes of two experts, found by search as well."""
    events = [[0, 1], [2], [0, 1], [2], [0, 1, 2]]
    size_E = [2, 2, 1]
    cut = [[0, 1, 2, 3], [4], [0, 1, 2, 3], [4], [0, 1, 2, 3, 4]]
    for room in range(6):
        expected = searched_bytes(cut, [1] * 5, room, warm=False)
        assert expected == must_move_bytes(uses_of(events, size_E), room)


@given(SMALL_EVENTS, st.lists(st.integers(1, 3), min_size=EXPERTS, max_size=EXPERTS), st.data())
def test_what_is_compiled_counts_the_same(
    events: Events, size_E: list[int], data: st.DataObject
) -> None:
    """Where numba is there the bytes of a long workload come from the same function, compiled."""
    pytest.importorskip("numba")
    room, warm = data.draw(st.integers(0, 7)), data.draw(st.booleans())
    uses = uses_of(events, size_E)
    expected = must_move_bytes(uses, room, warm=warm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(must_move, "is_worth_compiling", lambda _: True)
        assert expected == must_move_bytes(uses, room, warm=warm)


def test_without_demands_nothing_must_move() -> None:
    """A workload without a single demand moves nothing."""
    assert must_move_bytes(uses_of([[], []], [1]), 3) == 0


# The time that steps must take


def run(
    trace: RoutingTrace,
    costs: CostModel,
    budget_bytes: int,
    policies: tuple[type[CachePolicy], type[PrefetchPolicy], type[SchedulePolicy]],
    seed: int = 0,
) -> tuple[Counts, Timings]:
    """Replay a trace with fresh policies under the SimPy engine."""
    sizes_L = tuple(layer.expert_bytes for layer in costs.shape.layers)
    future = RecordedFuture(Workload(trace).events())
    infos = [
        RunInfo(
            trace.layers,
            trace.experts,
            trace.top_k,
            sizes_L,
            budget_bytes,
            costs,
            np.random.default_rng([seed, axis]),
            future=future,
        )
        for axis in range(3)
    ]
    cache, prefetch, schedule = (p(i) for p, i in zip(policies, infos, strict=True))
    controller = Controller(infos[0], cache, prefetch, schedule, window_bytes=4)
    engine = SimpyEngine(
        controller,
        Workload(trace),
        costs,
        expert_bytes=lambda expert, _: sizes_L[expert // trace.experts],
        budget_bytes=budget_bytes,
    )
    timings = engine.run()
    controller.close()
    return controller.counts, timings


def assert_bounded(counts: Counts, timings: Timings, limit: Bounds) -> None:
    """Assert that a run is not below any figure of its bounds, and that its distance adds up."""
    gaps = token_times(timings.requests).gaps_ns
    assert limit.decode_gaps == len(gaps)
    assert limit.decode_ns <= sum(gaps)
    assert limit.span_ns <= timings.span_ns
    assert limit.bytes_min <= counts.bytes_total
    assert limit.gpu_floor_ns <= timings.gpu_busy_ns
    assert limit.link_floor_ns <= timings.link_busy_ns
    distance = split(timings, limit)
    parts = [
        distance.transfer_ns,
        distance.host_ns,
        distance.contention_ns,
        distance.waiting_ns,
    ]
    assert timings.span_ns - limit.span_ns == distance.gap_ns == sum(parts)
    assert min(parts) >= 0


class AnyCache(CachePolicy):
    """Stages, places and evicts at random, from one pool or from one for each layer."""

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self._rng = run.rng
        largest = max(run.expert_bytes_L)
        self._least = run.top_k * largest
        spare = run.budget_bytes - self._least
        self._staging = int(self._rng.integers(spare + 1)) if self._rng.random() < 0.5 else 0
        self._by_layer = spare - self._staging >= self._least * (run.layers - 1)
        self._by_layer &= bool(self._rng.random() < 0.5)
        self._places = bool(self._rng.random() < 0.3)

    def quotas_L(self) -> list[int] | None:
        """Return equal shares, or one pool."""
        if not self._by_layer:
            return None
        return [(self.run.budget_bytes - self._staging) // self.run.layers] * self.run.layers

    def staging_bytes(self) -> int:
        """Return any share that leaves enough."""
        return self._staging

    def initial(self) -> list[int]:
        """Return experts in any order, or none."""
        total = self.run.layers * self.run.experts
        return self._rng.permutation(total).tolist() if self._places else []

    def admit(self, expert: int, view: View) -> Verdict:
        """Stage half of what may be staged."""
        can = self._staging >= self.run.size(expert)
        return Verdict.TRANSIENT if can and self._rng.random() < 0.5 else Verdict.KEEP

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return anybody."""
        return int(self._rng.choice(sorted(evictable)))


class NothingAhead(PrefetchPolicy):
    """No prefetch."""


class AnythingAhead(PrefetchPolicy):
    """Wishes for random experts, half of the time for what comes next."""

    def wants(self, demand: Demand | None, view: View) -> list[Wish]:
        """Return up to three wishes."""
        rng, total = self.run.rng, self.run.layers * self.run.experts
        assert self.run.future is not None
        ahead = [e for n in (1, 2) for e in self.run.future.demand(view.event + n)]
        chosen = ahead if rng.random() < 0.5 else rng.integers(total, size=2).tolist()
        return [Wish(int(expert), float(rng.random())) for expert in chosen[:3]]


class AnyGroups(SchedulePolicy):
    """Cuts the experts of a layer into launches at random, all on the GPU."""

    share_on_cpu = 0.0

    def plan(self, demand: Demand, view: View) -> list[Group]:
        """Return launches of one or two experts in any order."""
        rng = self.run.rng
        left = rng.permutation(np.array(demand.experts, np.int64)).tolist()
        groups = []
        while left:
            size = int(rng.integers(1, 3))
            device = CPU if rng.random() < self.share_on_cpu else GPU
            groups.append(Group(device, left[:size]))
            left = left[size:]
        return groups


class AnyDevice(AnyGroups):
    """The same, on GPU and CPU."""

    share_on_cpu = 0.5


SMALL = st.integers(0, 6)


@st.composite
def tiny_costs(draw: st.DrawFn, *, layers: int) -> CostModel:
    """Draw costs of a few ns each, so that ties and every order of length occur."""
    one_size = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(1, 6), min_size=layers, max_size=layers))
    shape = CostShape.from_bytes(
        [one_size] * layers if draw(st.booleans()) else sizes,
        draw(st.lists(SMALL, min_size=layers, max_size=layers)),
        experts=4,
        top_k=2,
        hidden=1,
        head_bytes=draw(SMALL),
    )
    machine = round_machine(
        memory_bytes_per_s=draw(st.sampled_from([10**9, 3 * 10**9])),
        link_bytes_per_s=draw(st.sampled_from([10**9, 3 * 10**8, 4 * 10**9])),
        cpu_bytes_per_s=draw(st.sampled_from([10**9, 2 * 10**9])),
        slow_down_ppm=draw(st.sampled_from([0, 300_000])),
        link_latency_ns=draw(SMALL),
        first_copy_extra_ns=draw(SMALL),
        pause_threshold_ns=draw(st.integers(1, 30)),
    )
    runtime = round_runtime(
        blocking=draw(st.booleans()),
        copy_issue_ns=draw(SMALL),
        launch_layer_ns=draw(SMALL),
        launch_run_ns=draw(SMALL),
        launch_per_expert_ns=draw(SMALL),
        router_wait_ns=draw(SMALL),
        poll_ns=draw(SMALL),
        expert_fixed_ns=draw(SMALL),
        hand_over_ns=draw(SMALL),
        notice_ns=draw(SMALL),
        decision_ns=(draw(SMALL), draw(st.integers(0, 1)), draw(st.integers(0, 1))),
    )
    costs = CostModel(machine, runtime, shape)
    costs.decides_on = draw(st.sampled_from(["host", "device"]))
    return costs


@st.composite
def tiny_workloads(draw: st.DrawFn) -> tuple[RoutingTrace, CostModel, int]:
    """Draw a trace, costs and a budget that holds at least one token's experts of a layer."""
    layers = draw(st.integers(2, 3))
    trace = synthetic.sticky(
        seed=draw(st.integers(0, 999)),
        layers=layers,
        experts=4,
        top_k=2,
        requests=draw(st.integers(1, 3)),
        prompt_tokens=draw(st.sampled_from([0, 0, 3])),
        decode_tokens=draw(st.integers(1, 5)),
    )
    costs = draw(tiny_costs(layers=layers))
    sizes = [layer.expert_bytes for layer in costs.shape.layers]
    budget_bytes = draw(st.integers(2 * max(sizes), 4 * sum(sizes) + 2 * max(sizes)))
    return trace, costs, budget_bytes


@pytest.mark.parametrize("prefetch", [NothingAhead, AnythingAhead])
@pytest.mark.parametrize("schedule", [AnyGroups, AnyDevice])
@given(workload=tiny_workloads(), seed=st.integers(0, 999))
def test_no_random_policy_beats_the_bounds(
    prefetch: type[PrefetchPolicy],
    schedule: type[SchedulePolicy],
    workload: tuple[RoutingTrace, CostModel, int],
    seed: int,
) -> None:
    """Whatever is evicted, staged, placed, prefetched and cut, a run stays above its bounds."""
    trace, costs, budget_bytes = workload
    counts, timings = run(trace, costs, budget_bytes, (AnyCache, prefetch, schedule), seed)
    assert_bounded(counts, timings, bounds(trace, costs, budget_bytes, Actions.of(counts)))


@cache
def built_in(axis: registry.Axis) -> list[type[Any]]:
    """Return the policies of an axis that guard no other and need no option, profile or signal."""
    found = []
    for name in registry.names(axis):
        cls = registry.find(axis, name)
        is_complete = not registry.guards(cls) and all(
            option.default is not Parameter.empty for option in registry.options(cls).values()
        )
        if is_complete and cls.needs <= {"future"}:
            found.append(cls)
    return found


@given(workload=tiny_workloads(), data=st.data())
def test_no_built_in_policy_beats_the_bounds(
    workload: tuple[RoutingTrace, CostModel, int], data: st.DataObject
) -> None:
    """Every built-in that this trace can serve stays above the bounds of what it did."""
    trace, costs, budget_bytes = workload
    cache, prefetch, schedule = (
        data.draw(st.sampled_from(built_in(axis)), label=axis) for axis in registry.AXES
    )
    sizes = [layer.expert_bytes for layer in costs.shape.layers]
    budget_bytes = budget_bytes * trace.layers + 2 * max(sizes)
    counts, timings = run(trace, costs, budget_bytes, (cache, prefetch, schedule))
    assert_bounded(counts, timings, bounds(trace, costs, budget_bytes, Actions.of(counts)))


PLAIN = (LeastRecentlyUsed, NoPrefetch, ResidentFirst)


def alternating(*, decode_tokens: int = 2) -> RoutingTrace:
    """Return decode steps of one layer that need expert 0, then 1, then 0."""
    return trace_of([([], [[[step % 2]] for step in range(decode_tokens)])], experts=2)


def hand_costs(**machine: int) -> CostModel:
    """Return the round machine with free decisions; the numbers are in the tests."""
    shape = CostShape.from_bytes([10**6], [500_000], experts=2, top_k=1, head_bytes=10**6)
    return CostModel(round_machine(**machine), round_runtime(decision_ns=(0, 0, 0)), shape)


def test_the_bound_without_prefetch_is_the_chain_that_the_routers_force() -> None:
    """Two missing steps, in µs, by hand.

    Each: launch 10, attention 0.5, reading router and token 5 + 5, head 1, and from router to head
    the copy of 105, longer than launches (6 + 10) and expert (6 + 1). The run adds, each step, the
    issue of the copy (2) and the expert after it (1), which nothing overlaps.
    """
    trace, costs = alternating(), hand_costs()
    limit = bounds(trace, costs, 10**6, Actions())
    assert limit.span_ns == 2 * (10_000 + 500 + 10_000 + 1_000 + 105_000)
    assert limit.span_ns // 2 == limit.tpot_ns
    assert limit.bytes_min == 2 * 10**6
    assert limit.gpu_floor_ns == 2 * (500 + 1_000 + 1_000)
    assert limit.host_floor_ns == 2 * (10_000 + 2 * 5_000 + 6_000 + 10_000 + 2_000)
    _, timings = run(trace, costs, 10**6, PLAIN)
    distance = split(timings, limit)
    assert limit.span_ns + 2 * 3_000 == timings.span_ns
    assert (
        distance.gap_ns,
        distance.transfer_ns,
        distance.host_ns,
        distance.contention_ns,
        distance.waiting_ns,
    ) == (6_000, 0, 0, 0, 6_000)


def test_the_bound_with_prefetch_is_the_longest_resource() -> None:
    """Copies may overlap everything: two of 105 µs are longer than the chain of 2 x 37.5."""
    limit = bounds(alternating(), hand_costs(), 10**6, Actions(prefetch=True))
    assert limit.span_ns == 2 * 105_000
    roomy = bounds(alternating(), hand_costs(), 2 * 10**6, Actions(True, False, True))
    assert roomy.bytes_min == 0
    assert roomy.span_ns == 2 * (10_000 + 500 + 10_000 + 1_000 + 16_000)


def test_transfer_is_what_more_bytes_than_needed_cost() -> None:
    """A cache of two thirds that keeps the wrong expert copies six instead of four of 105 µs."""
    trace = trace_of([([], [[[0]], [[1]], [[2]], [[0]], [[1]], [[2]]])], experts=3)
    shape = CostShape.from_bytes([10**6], [500_000], experts=3, top_k=1, head_bytes=10**6)
    costs = CostModel(round_machine(), round_runtime(), shape)
    counts, timings = run(trace, costs, 2 * 10**6, PLAIN)
    limit = bounds(trace, costs, 2 * 10**6, Actions())
    assert (counts.misses, limit.bytes_min // 10**6) == (6, 4)
    assert split(timings, limit).transfer_ns == 2 * 105_000


class TwoRates:
    """Costs of experts whose time on the GPU and on the CPU is looked up by their tokens."""

    def __init__(self, rates: list[tuple[int, int]]) -> None:
        self.rates = rates

    def experts_gpu_ns(self, layer: int, tokens: tuple[int, ...]) -> int:
        """Return the sum and 7 ns for each run."""
        return 7 + sum(self.rates[count][0] for count in tokens)

    def expert_cpu_ns(self, layer: int, tokens: int) -> int:
        """Return the time of one expert."""
        return self.rates[tokens][1]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_no_split_between_gpu_and_cpu_is_faster_than_the_shared_floor(
    rates: list[tuple[int, int]],
) -> None:
    """The floor is at most the longer load of the best split, found by trying all."""
    floors = StepFloors.__new__(StepFloors)
    floors._costs = TwoRates(rates)  # type: ignore[assignment]
    number = range(len(rates))
    loads = [
        max(sum(rates[i][0] for i in on_gpu), sum(rates[i][1] for i in number if i not in on_gpu))
        for size in range(len(rates) + 1)
        for on_gpu in combinations(number, size)
    ]
    assert floors._shared_ns(0, tuple(number)) <= min(loads)


def test_equal_experts_share_gpu_and_cpu_by_their_rates() -> None:
    """Five experts of 2 ns on the GPU or 3 ns on the CPU: three and two, 6 ns each."""
    floors = StepFloors.__new__(StepFloors)
    floors._costs = TwoRates([(2, 3)] * 5)  # type: ignore[assignment]
    assert floors._shared_ns(0, (0, 1, 2, 3, 4)) == 6


def test_a_trace_of_prompts_has_no_bound_on_tpot() -> None:
    """Without decode steps TPOT is absent, not zero."""
    trace = trace_of([([[[0]], [[1]]], [])], experts=2)
    limit = bounds(trace, hand_costs(), 2 * 10**6, Actions())
    assert limit.tpot_ns is None
    assert limit.decode_gaps == 0


def test_a_signal_that_costs_time_has_bounds_of_its_own() -> None:
    """Bounds are kept for equal machines alone: who looks ahead pays for it in every layer."""
    plain = hand_costs()
    looks = CostModel(plain.profile, plain.runtime, plain.shape, looks_ahead=True)
    looks._dense_fixed_ns += 1_000  # this runtime looks ahead for nothing
    trace = alternating(decode_tokens=3)
    first, second = (known_bounds(trace, costs, 10**6, Actions()) for costs in (plain, looks))
    assert second.span_ns == first.span_ns + trace.tokens * trace.layers * 1_000


def test_a_run_outside_the_actions_is_refused() -> None:
    """The distance of a run that prefetched is not measured against the bound without."""
    trace, costs = alternating(decode_tokens=3), hand_costs()
    limit = bounds(trace, costs, 2 * 10**6, Actions())
    _, timings = run(trace, costs, 2 * 10**6, PLAIN)
    timings.engine_bytes["h2d"] = 10**6
    with pytest.raises(BooksError, match="beats the bounds for demand copies alone"):
        split(timings, limit)


def test_actions_name_what_a_run_did() -> None:
    """Bytes that were not demanded are prefetch; bytes before the start are placement."""
    assert str(Actions.of(Counts(bytes_demand=5))) == "demand copies alone"
    did = Actions.of(Counts(bytes_prefetch_wasted=1, bytes_initial=1, cpu_experts=1))
    assert Actions(prefetch=True, cpu_experts=True, initial=True) == did


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_belady_with_bypass_is_near_the_bound(share: float) -> None:
    """The built-in moves what the bound allows at its cache's size, or a few copies in 100 more.

    It may not evict the members of an event for that event, as no cache of the contract may; the
    bound lets them leave at once. Its staging comes on top, so that the caches are equal.
    """
    layers, experts, top_k, size = 4, 16, 3, 10
    trace = synthetic.zipf(
        seed=3,
        layers=layers,
        experts=experts,
        top_k=top_k,
        requests=2,
        prompt_tokens=0,
        decode_tokens=150,
    )
    costs = CostModel.for_tests(
        layers=layers, experts=experts, top_k=top_k, expert_bytes=size, dense_bytes=1
    )
    cache_bytes = int(share * layers * experts) * size
    spec = registry.parse("cache", "belady:admit=bypass")

    def info(budget_bytes: int) -> RunInfo:
        return RunInfo(
            layers,
            experts,
            top_k,
            (size,) * layers,
            budget_bytes,
            costs,
            np.random.default_rng(0),
            future=RecordedFuture(Workload(trace).events()),
        )

    staging_bytes = spec.build(info(cache_bytes)).staging_bytes()
    run = info(cache_bytes + staging_bytes)
    prefetch = registry.parse("prefetch", "none").build(run)
    schedule = registry.parse("schedule", "resident_first").build(run)
    controller = Controller(run, spec.build(run), prefetch, schedule)
    count(controller, Workload(trace), budget_bytes=run.budget_bytes)
    limit = bounds(trace, costs, cache_bytes, Actions())
    assert limit.bytes_kind == "belady_bypass"
    assert limit.bytes_min <= controller.counts.bytes_total <= 1.05 * limit.bytes_min
