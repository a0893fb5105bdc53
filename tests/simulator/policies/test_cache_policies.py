"""Rules of single cache policies that counts over a trace would not tell apart."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from moesim.simulator import registry
from moesim.simulator.errors import BudgetError
from moesim.simulator.messages import Copy
from moesim.simulator.policies.base import RunInfo, View
from moesim.simulator.terms import Verdict
from moesim.simulator.testing import counted, logged, small_run, tiny_trace, trace_of
from moesim.traces import RoutingTrace

MakeRun = Callable[..., RunInfo]
MakeView = Callable[..., View]


def decode(*tokens: Sequence[int], experts: int = 8) -> RoutingTrace:
    """Return one request of decode steps of one layer, each given by its experts."""
    return trace_of([([], [[list(token)] for token in tokens])], experts=experts)


def copied(trace: RoutingTrace, cache: str, slots: int, **options: Any) -> list[int]:
    """Return the experts copied, in order."""
    controller = counted(small_run(trace, cache=cache, slots=slots, **options))
    return [command.expert for command in logged(controller) if isinstance(command, Copy)]


def test_lru_forgets_the_longest_unused() -> None:
    """A hit makes an expert young: 1 leaves for 3, so that 2 and then 1 are copied again."""
    assert copied(decode([1], [2], [1], [3], [2], [1]), "lru", 2) == [1, 2, 3, 2, 1]


def test_fifo_ignores_hits() -> None:
    """The first to come leaves although it was just used."""
    assert copied(decode([1], [2], [1], [3], [2], [1]), "fifo", 2) == [1, 2, 3, 1]


def test_a_repeat_in_a_batch_makes_an_expert_young() -> None:
    """Of a prompt's experts 1, 2, 1 the second is the older one, and leaves first."""
    prompt = [[[1]], [[2]], [[1]]]
    trace = trace_of([(prompt, [[[3]], [[1]]])], experts=8)
    assert copied(trace, "lru", 2) == [1, 2, 3]


def test_per_layer_pools_evict_their_own_layer_only() -> None:
    """A busy layer takes nothing from a quiet one, where a global pool would."""
    rows = [[[0], [e]] for e in (1, 2, 3)]
    trace = trace_of([([], rows)], experts=4)
    assert copied(trace, "lru:scope=per_layer", 2) == [0, 5, 6, 7]
    assert copied(trace, "lru", 2) == [0, 5, 6, 7]
    assert copied(trace, "fifo", 2) == [0, 5, 6, 0, 7]


def test_in_cache_counts_begin_anew_and_lifetime_counts_go_on() -> None:
    """Expert 1, which left with four uses and has two more, stays only if they are remembered."""
    trace = decode(*[[1]] * 4, *[[2]] * 5, [3], [1], [1], [4], [1])
    assert copied(trace, "lfu", 2) == [1, 2, 3, 1, 4, 1]
    assert copied(trace, "lfu:count=lifetime", 2) == [1, 2, 3, 1, 4]


def test_a_use_counts_once_for_an_event_whatever_its_tokens() -> None:
    """Three tokens of one prompt are one use, so two later uses outweigh them."""
    trace = trace_of([([[[1]]] * 3, [[[2]], [[2]], [[3]], [[2]], [[1]]])], experts=4)
    assert copied(trace, "lfu", 2) == [1, 2, 3, 1]


def test_decay_lets_recent_uses_outweigh_old_ones() -> None:
    """Without decay the expert used most stays; with it the one used last does."""
    trace = decode(*[[1]] * 9, *[[2]] * 4, [3], [1])
    assert copied(trace, "lfu", 2) == [1, 2, 3]
    assert copied(trace, "lfu:decay=0.5", 2) == [1, 2, 3, 1]


def test_decay_survives_more_events_than_floats_can_count() -> None:
    """Weights that would overflow are scaled back, and the order stays."""
    pattern = [[1], [1], [2], [3]]
    trace = decode(*pattern * 700)
    copies = copied(trace, "lfu:decay=0.5", 2)
    assert copies[-30:] == copies[-60:-30]


def test_lfru_weighs_uses_by_age() -> None:
    """An expert used three times long ago leaves before one used once just now; not so by LFU."""
    trace = decode(*[[1]] * 3, *[[2]] * 8, [3], [4], [3])
    assert copied(trace, "lfu", 3) == [1, 2, 3, 4, 3]
    assert copied(trace, "lfru", 3) == [1, 2, 3, 4]


def test_static_never_changes() -> None:
    """What the profile trace uses most is placed before the run; all else passes through."""
    profile = decode(*[[1]] * 3, *[[2]] * 2, [3])
    trace = decode([3], [3], [1], [2], [3])
    run = small_run(trace, cache="static", slots=3, profile_trace=profile)
    controller = counted(run)
    assert controller.initial() == (1, 2)
    assert controller.counts.bytes_initial == 2_000_000
    assert (controller.counts.hits, controller.counts.misses) == (2, 3)
    assert controller.counts.evictions == 0


@pytest.mark.parametrize(
    ("order", "expected"),
    [("uniform", (0, 4, 1, 5)), ("front", (0, 1, 2, 3)), ("frequency", (6, 1, 5, 7))],
)
def test_static_orders(make_run: MakeRun, order: str, expected: tuple[int, ...]) -> None:
    """The first four of the placement: evenly by id, layer by layer, or by use."""
    popularity_LE = np.array([[0, 5, 0, 0], [1, 2, 9, 2]])
    run = make_run(layers=2, expert_bytes_L=(1, 1), popularity_LE=popularity_LE)
    policy = registry.parse("cache", f"static:order={order}").build(run)
    assert tuple(policy.initial())[:4] == expected


def test_static_shares_a_budget_between_layers_and_staging(make_run: MakeRun) -> None:
    """Quotas are what staging leaves, and staging can be asked to hold whole layers."""
    build = registry.parse("cache", "static:order=front,scope=per_layer,staging_layers=1").build
    policy = build(make_run(budget_bytes=11))
    assert (policy.staging_bytes(), policy.quotas_L()) == (4, [3, 2, 2])


def test_transient_keeps_nothing() -> None:
    """The same expert is copied at every step."""
    assert copied(decode([1], [1], [1]), "transient", 4) == [1, 1, 1]


def test_insert_cap_lets_so_many_in_for_each_layer_event() -> None:
    """Of four experts of a prompt one stays, and the others are copied again."""
    trace = trace_of([([[[1]], [[2]], [[3]], [[4]]], [[[1]], [[2]], [[2]]])], experts=8)
    assert copied(trace, "insert_cap:limit=1,staging=3/lru", 8) == [1, 2, 3, 4, 2]


def test_insert_cap_takes_its_staging_from_the_largest_shares(make_run: MakeRun) -> None:
    """Per-layer shares of the guarded policy shrink to what staging leaves."""
    policy = registry.parse("cache", "insert_cap/lru:scope=per_layer").build(
        make_run(budget_bytes=10)
    )
    assert (policy.staging_bytes(), policy.quotas_L()) == (2, [3, 3, 2])


def test_insert_cap_inserts_nothing_where_nothing_fits(
    make_run: MakeRun, make_view: MakeView
) -> None:
    """With a budget that staging takes whole, every expert passes through."""
    run = make_run(budget_bytes=2)
    policy = registry.parse("cache", "insert_cap/lru").build(run)
    assert policy.admit(0, make_view(run)) is Verdict.TRANSIENT


def test_insert_cap_leaves_room_of_its_own_to_the_policy_inside() -> None:
    """A guard around a policy with staging reserves none beside it."""
    trace = tiny_trace()
    run = small_run(trace, cache="insert_cap:limit=1/transient", slots=6)
    assert run.controller().residency.staging.capacity_bytes == 6_000_000


def test_belady_with_bypass_keeps_what_comes_sooner() -> None:
    """A visitor that is never used again passes, and the expert used next stays."""
    trace = decode([1], [2], [1], [3], [1])
    assert copied(trace, "belady:admit=bypass", 2) == [1, 2, 3]
    assert copied(trace, "belady", 1) == [1, 2, 1, 3, 1]


def test_a_budget_below_one_tokens_experts_is_refused() -> None:
    """No policy runs where the experts of one token of one layer have no room."""
    for name in ("lru", "transient", "belady:admit=bypass", "static:order=front"):
        with pytest.raises(BudgetError, match="at least|needs less"):
            small_run(tiny_trace(top_k=3), cache=name, slots=2).controller()
