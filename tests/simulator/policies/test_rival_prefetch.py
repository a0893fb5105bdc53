"""What the prefetch policies of published systems wish for, asked directly."""

from collections.abc import Callable
from typing import Any

import pytest

from moesim.simulator import registry
from moesim.simulator.policies.base import Demand, RunInfo, View
from moesim.simulator.terms import Phase
from moesim.simulator.testing import trace_of

MakeRun = Callable[..., RunInfo]
MakeView = Callable[..., View]
MakeDemand = Callable[..., Demand]


def built(spec: str, run: RunInfo) -> Any:
    """Return a fresh prefetch policy."""
    return registry.parse("prefetch", spec).build(run)


def begin(policy: Any, view: View, phase: Phase) -> None:
    """Begin a step."""
    view.step += 1
    view.layer = -1
    view.phases = (phase,)
    assert list(policy.wants(None, view)) == []


def serve(policy: Any, view: View, demand: MakeDemand, *layers: list[int]) -> list[list[Any]]:
    """Serve one layer after another; return what is wished for after each."""
    wished = []
    for layer, experts in enumerate(layers):
        view.layer = layer
        wished.append(list(policy.wants(demand(layer, misses=experts), view)))
    return wished


def test_the_nearest_matrix_is_copied_by_share_and_distance(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """The third request begins as the second did, whose later layers are wished for.

    With three layers the weight of the next is 3/4 and of the one after it 1/2.
    """
    run = make_run()
    view = make_view(run)
    policy = built("activation_matrix", run)
    for request in ([0, 1], [4, 5], [8]), ([2, 3], [6, 7], [11]):
        begin(policy, view, Phase.PREFILL)
        serve(policy, view, demand, *request)
    begin(policy, view, Phase.PREFILL)
    first, *_ = serve(policy, view, demand, [2, 3])
    expected = [(11, -0.5), (6, -0.375), (7, -0.375)]
    assert sorted(expected, key=lambda wish: wish[1]) == first


def test_a_running_request_does_not_predict_itself(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """The first request wishes for nothing, however long it runs."""
    run = make_run()
    view = make_view(run)
    policy = built("activation_matrix", run)
    begin(policy, view, Phase.PREFILL)
    assert serve(policy, view, demand, [0], [4], [8]) == [[], [], []]
    begin(policy, view, Phase.DECODE)
    assert serve(policy, view, demand, [0], [4], [8]) == [[], [], []]


def test_a_full_collection_gives_up_what_was_found_least(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """With room for one, the second request has replaced the first when the third begins."""
    run = make_run()
    view = make_view(run)
    policy = built("activation_matrix:capacity=1", run)
    for request in ([0], [4], [8]), ([0], [5], [9]), ([0], [6], [10]):
        begin(policy, view, Phase.PREFILL)
        wished = serve(policy, view, demand, *request)
    assert [wish.expert for wish in wished[0]] == [5, 9]


def test_a_collection_may_come_from_the_profile_trace(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """The first request is foreseen by one of another trace."""
    profile = trace_of([([], [[[0], [1], [2]]]), ([], [[[3], [2], [1]]])], experts=4)
    run = make_run(top_k=1, profile_trace=profile)
    view = make_view(run)
    policy = built("activation_matrix:fill=profile", run)
    begin(policy, view, Phase.PREFILL)
    assert [wish.expert for wish in serve(policy, view, demand, [3])[0]] == [6, 9]


@pytest.mark.parametrize(
    ("residents", "expected"),
    [([], [(4, 1), (5, 1)]), ([4], [(5, 1)]), ([4, 5], [(10, 2)]), ([4, 5, 10, 11], [])],
)
def test_the_gate_after_the_next_is_asked_only_where_nothing_is_missing(
    make_run: MakeRun,
    make_view: MakeView,
    demand: MakeDemand,
    residents: list[int],
    expected: list[tuple[int, int]],
) -> None:
    """Layer 0 promises experts 4 and 5 of layer 1, and 10 and 11 of layer 2."""
    run = make_run()
    look = [[[0, 1, 2, 3], [2, 3, 0, 1]]]
    view = make_view(run, [*residents, 11], event=0, layer=0, signals={"look_in_TLHM": look})
    wishes = built("adaptive_depth:depth=2", run).wants(demand(0, hits=[0]), view)
    assert expected == list(wishes)


def test_router_scores_choose_from_the_next_layer(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """Nothing is known of a layer before its first turn; then its best by running score comes."""
    run = make_run()
    view = make_view(run)
    policy = built("router_score_top:width=2", run)
    wished = []
    for _ in range(2):
        for layer, probs in enumerate([[0.5, 0.3, 0.2, 0], [0, 0.2, 0.3, 0.5], [0.1, 0.2, 0, 0.7]]):
            view.layer = layer
            view.signals = {"router_probs_TLE": [probs]}
            wished.append([wish.expert for wish in policy.wants(demand(layer), view)])
    assert wished == [[], [], [0, 1], [7, 6], [11, 9], [0, 1]]
