"""Which launches single schedule policies plan, asked directly."""

from collections.abc import Callable
from typing import Literal

import pytest

from moesim.simulator import registry
from moesim.simulator.policies.base import Demand, RunInfo, View
from moesim.simulator.policies.schedule.cheaper import Cheaper
from moesim.simulator.testing import counted, small_run, trace_of

MakeRun = Callable[..., RunInfo]
MakeView = Callable[..., View]
MakeDemand = Callable[..., Demand]


def planned(
    policy: str, run: RunInfo, view: View, demand: Demand
) -> list[tuple[str, tuple[int, ...]]]:
    """Return each launch as (device, experts)."""
    groups = registry.parse("schedule", policy).build(run).plan(demand, view)
    return [
        (group.device.kind, tuple(experts))
        for group in groups
        for experts in ([[expert] for expert in group.experts] if group.each else [group.experts])
    ]


def test_on_demand_launches_one_by_one_in_router_order(
    make_run: MakeRun, make_view: MakeView
) -> None:
    """Hits and misses run in the order in which the router named them."""
    run = make_run()
    routed = Demand(0, 0, [2, 0, 3], {2: 1, 0: 1, 3: 1}, [0], [], [], [2, 3])
    expected = [("gpu", (2,)), ("gpu", (0,)), ("gpu", (3,))]
    assert planned("on_demand", run, make_view(run), routed) == expected


def test_resident_first_launches_residents_together(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """All hits are one launch; then come those on their way, then the misses."""
    run = make_run()
    routed = demand(0, hits=[1, 2], late=[3], misses=[0])
    expected = [("gpu", (1, 2)), ("gpu", (3,)), ("gpu", (0,))]
    assert planned("resident_first", run, make_view(run), routed) == expected


def test_cpu_on_miss_begins_with_the_cpu(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """Misses are one CPU run, handed over before the GPU's; what is on its way is waited for."""
    run = make_run()
    routed = demand(0, hits=[1], late=[3], misses=[0, 2])
    expected = [("cpu", (0, 2)), ("gpu", (1,)), ("gpu", (3,))]
    assert planned("cpu_on_miss", run, make_view(run), routed) == expected


def test_cpu_on_miss_copies_nothing() -> None:
    """No byte moves and nothing is cached, so every step misses again."""
    trace = trace_of([([], [[[0, 1]]] * 3)], experts=4)
    counts = counted(small_run(trace, schedule="cpu_on_miss", slots=2)).counts
    assert (counts.copies, counts.hits, counts.misses, counts.cpu_experts) == (0, 0, 6, 6)


@pytest.mark.parametrize(
    ("objective", "tokens", "on_gpu"),
    [("sum", 1, []), ("sum", 10, [0, 1, 2, 3]), ("max", 1, [2]), ("max", 9, [0, 1, 2])],
)
def test_cheaper_sends_misses_where_they_end_first(
    make_run: MakeRun,
    make_view: MakeView,
    demand: MakeDemand,
    objective: Literal["sum", "max"],
    tokens: int,
    on_gpu: list[int],
) -> None:
    """A copy is 100 ns, a token 10 ns on the GPU and 50 on the CPU.

    By sum, one token costs 110 or 50 and ten cost 200 or 500. By max, the CPU ends one token at
    50 and 100 and would end the third at 150, when the GPU is done at 110. Of nine tokens the GPU
    ends experts at 190, 290 and 390; the fourth ends at 490 there and at 450 on the CPU.
    """
    run = make_run()
    groups = Cheaper(run, objective=objective).plan(
        demand(0, misses=[0, 1, 2, 3], tokens=tokens), make_view(run)
    )
    actual = [e for group in groups if group.device.kind == "gpu" for e in group.experts]
    assert on_gpu == actual
    assert sorted(e for group in groups for e in group.experts) == [0, 1, 2, 3]


def test_cheaper_counts_what_the_link_has_to_do_already(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """Behind a busy link a miss goes to the CPU that an idle link would have brought."""
    run = make_run()
    routed = demand(0, misses=[0], tokens=3)
    assert planned("cheaper", run, make_view(run), routed) == [("gpu", (0,))]
    busy = make_view(run, queued_bytes=1)
    assert planned("cheaper", run, busy, routed) == [("cpu", (0,))]


def test_cheaper_runs_residents_on_the_gpu(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """Hits are one launch before the copies; late ones wait for the GPU in any case."""
    run = make_run()
    routed = demand(0, hits=[1, 2], late=[3], misses=[0], tokens=10)
    expected = [("gpu", (1, 2)), ("gpu", (3,)), ("gpu", (0,))]
    assert planned("cheaper", run, make_view(run), routed) == expected
