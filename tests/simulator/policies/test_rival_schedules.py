"""Where the schedule policies of published systems send experts, asked directly.

A copy takes 100 ns, a token 10 ns on the GPU and 50 on the CPU.
"""

from collections.abc import Callable

import pytest

from moesim.simulator import registry
from moesim.simulator.policies.base import Demand, RunInfo, View
from moesim.simulator.terms import Phase

MakeRun = Callable[..., RunInfo]
MakeView = Callable[..., View]
MakeDemand = Callable[..., Demand]


def planned(spec: str, run: RunInfo, view: View, demand: Demand) -> list[tuple[str, list[int]]]:
    """Return each launch as (device, experts)."""
    groups = registry.parse("schedule", spec).build(run).plan(demand, view)
    return [
        (group.device.kind, list(experts))
        for group in groups
        for experts in ([[expert] for expert in group.experts] if group.each else [group.experts])
    ]


def test_two_pointers_meet_in_the_middle(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """Residents end on the GPU at 10 and 20; the CPU would take the last missing one by 50.

    The GPU would end the first missing one at 110: the CPU takes three, by 50, 100 and 150, of
    which the third loses against 110. So one is copied, and the CPU has the two at the back.
    """
    run = make_run(experts=8)
    routed = demand(0, hits=[0, 1], misses=[2, 3, 4])
    expected = [("cpu", [3, 4]), ("gpu", [0, 1]), ("gpu", [2])]
    assert planned("two_pointers", run, make_view(run), routed) == expected


def test_two_pointers_line_up_by_tokens(make_run: MakeRun, make_view: MakeView) -> None:
    """The GPU begins with the missing expert of most tokens, the CPU with that of fewest."""
    run = make_run(experts=8)
    tokens = {2: 1, 3: 9, 4: 2}
    routed = Demand(0, 0, [2, 3, 4], tokens, [], [], (), [2, 3, 4])
    expected = [("cpu", [4, 2]), ("gpu", [3])]
    assert planned("two_pointers", run, make_view(run), routed) == expected


def test_two_pointers_give_residents_to_an_idle_cpu(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """The GPU would end the sixth and seventh at 60 and 70; the CPU ends one by 50, two by 100."""
    run = make_run(experts=8)
    routed = demand(0, hits=[0, 1, 2, 3, 4, 5, 6])
    expected = [("cpu", [6]), ("gpu", [0, 1, 2, 3, 4, 5])]
    assert planned("two_pointers", run, make_view(run), routed) == expected


@pytest.mark.parametrize(("misses", "copied"), [(1, 0), (2, 0), (3, 1), (4, 1), (6, 2), (9, 3)])
def test_bandwidth_split_copies_the_links_share(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand, misses: int, copied: int
) -> None:
    """The link has a third of link and CPU: rho = 50 / 150.

    Of four misses, one copy is max(1 x 2/3, 3 x 1/3) = 1 and two are 4/3; of two, none and one are
    2/3 alike, and none is taken.
    """
    run = make_run(experts=16)
    routed = demand(0, misses=list(range(misses)))
    groups = planned("bandwidth_split", run, make_view(run), routed)
    assert sum(device == "gpu" for device, _ in groups) == copied


def test_bandwidth_split_copies_what_was_used_last(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """Of three misses the one used in the event before is copied."""
    run = make_run()
    view = make_view(run)
    policy = registry.parse("schedule", "bandwidth_split").build(run)
    view.event = 0
    policy.plan(demand(0, hits=[2]), view)
    view.event = 3
    groups = policy.plan(demand(0, misses=[0, 1, 2]), view)
    assert [(g.device.kind, list(g.experts)) for g in groups] == [("cpu", [0, 1]), ("gpu", [2])]


def test_bandwidth_split_copies_all_misses_of_a_prompt(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """The CPU has no part in a prompt."""
    run = make_run()
    view = make_view(run, phases=(Phase.PREFILL,))
    groups = planned("bandwidth_split", run, view, demand(0, misses=[0, 1, 2], tokens=4))
    assert groups == [("gpu", [0]), ("gpu", [1]), ("gpu", [2])]


@pytest.mark.parametrize(("tokens", "device"), [(31, "cpu"), (32, "gpu")])
def test_batch_threshold_turns_at_its_number_of_tokens(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand, tokens: int, device: str
) -> None:
    """Each token chooses two experts: 31 tokens are 62 choices and 32 are 64."""
    run = make_run()
    routed = demand(0, misses=[1, 2], tokens=tokens)
    assert {kind for kind, _ in planned("batch_threshold", run, make_view(run), routed)} == {device}
