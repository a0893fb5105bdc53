"""What the cache policies of published systems give up, asked directly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moesim.simulator import registry
from moesim.simulator.policies.base import CachePolicy, RunInfo, View
from moesim.simulator.terms import Phase
from moesim.simulator.testing import trace_of
from moesim.traces import RoutingTrace

MakeRun = Callable[..., RunInfo]
MakeView = Callable[..., View]


def built(spec: str, run: RunInfo) -> Any:
    """Return a fresh cache policy."""
    return registry.parse("cache", spec).build(run)


def use(policy: CachePolicy, view: View, *layers: list[int], step: int = 0) -> None:
    """Tell a policy of one step, layer by layer, whose every expert is let in."""
    view.step = step
    for layer, experts in enumerate(layers):
        view.event += 1
        view.layer = layer
        for expert in experts:
            policy.on_touch(expert, view)
        for expert in experts:
            policy.on_admit(expert, view)


def test_likely_use_gives_up_the_smallest_product(make_run: MakeRun, make_view: MakeView) -> None:
    """1 / (p uses) is largest where p uses is least: 0.1 x 3 goes before 0.5 x 1 and 0.2 x 2."""
    run = make_run()
    view = make_view(run)
    policy = built("likely_use", run)
    for experts in ([0, 1, 2], [0, 2], [0]):
        use(policy, view, experts)
    view.predicted.update({0: 0.1, 1: 0.5, 2: 0.2})
    assert policy.choose_victim({0, 1, 2}, view) == 0


def test_the_demo_cuts_products_to_whole_numbers(make_run: MakeRun, make_view: MakeView) -> None:
    """0.45 x 2 and 0.1 x 2 are both 0 then, and the one touched longer ago goes."""
    run = make_run()
    view = make_view(run)
    exact, cut = built("likely_use", run), built("likely_use:key=integer", run)
    for policy in (exact, cut):
        use(policy, view, [0, 1])
        use(policy, view, [0, 1])
    view.predicted.update({0: 0.45, 1: 0.1})
    assert exact.choose_victim({0, 1}, view) == 1
    assert cut.choose_victim({0, 1}, view) == 0


def test_what_was_never_predicted_is_as_likely_as_any(
    make_run: MakeRun, make_view: MakeView
) -> None:
    """With four experts it counts 0.25, more than one of 0.2 and less than one of 0.3."""
    run = make_run()
    view = make_view(run)
    policy = built("likely_use", run)
    use(policy, view, [0, 1, 2])
    view.predicted.update({1: 0.2, 2: 0.3})
    assert policy.choose_victim({0, 1, 2}, view) == 1
    assert policy.choose_victim({0, 2}, view) == 0


def test_activation_priority_multiplies_share_nearness_and_visits(
    make_run: MakeRun, make_view: MakeView
) -> None:
    """At layer 2 of 3 the nearness of layers 2, 0, 1 is 1, 3/4, 1/2.

    Expert 0 has 2 of 3 tokens of layer 0 in two visits: 2/3 x 3/4 x 2 = 1; expert 1 has 1/3 x 3/4;
    expert 4 has all of layer 1 in one visit: 1/2; expert 8 all of layer 2: 1.
    """
    run = make_run()
    view = make_view(run)
    policy = built("activation_priority", run)
    use(policy, view, [0, 1], step=1)
    use(policy, view, [0], [4], [8], step=2)
    assert policy.choose_victim({0, 1, 4, 8}, view) == 1
    assert policy.choose_victim({0, 4, 8}, view) == 4
    use(policy, view, [0], [4], [8], step=3)
    assert policy.choose_victim({4, 8}, view) == 4  # 1 against 2
    assert policy.choose_victim({0, 8}, view) == 0  # 3/4 x 3/4 x 3 against 2


def test_activation_priority_begins_anew_with_a_request(
    make_run: MakeRun, make_view: MakeView
) -> None:
    """What only the request before used is worth next to nothing, however often it was visited."""
    run = make_run()
    view = make_view(run)
    policy = built("activation_priority", run)
    for step in range(5):
        use(policy, view, [0], step=step)
    view.phases = (Phase.PREFILL,)
    use(policy, view, [1], step=5)
    assert policy.choose_victim({0, 1}, view) == 0


@pytest.mark.parametrize(
    ("weights", "victim"),
    [("lru=1,lfu=0,fld=0", 0), ("lru=0,lfu=1,fld=0", 4), ("lru=0,lfu=0,fld=1", 4)],
)
def test_weighted_sum_has_three_terms(
    make_run: MakeRun, make_view: MakeView, weights: str, victim: int
) -> None:
    """Expert 0 of layer 0 is used in steps 0 and 1, 4 of layer 1 in step 2, 8 of layer 2 in 1 to 2.

    By recency 0 goes, by frequency 4; at layer 2 the next is layer 0, and layer 1 the farthest.
    """
    run = make_run()
    view = make_view(run)
    policy = built(f"weighted_sum:{weights},mask=false", run)
    use(policy, view, [0], step=0)
    use(policy, view, [0], [], [8], step=1)
    use(policy, view, [], [4], [8], step=2)
    assert policy.choose_victim({0, 4, 8}, view) == victim


def test_weighted_sum_gives_up_what_the_next_gate_promises_last(
    make_run: MakeRun, make_view: MakeView
) -> None:
    """Expert 5 was never used and is spared, since layer 0's look-ahead names experts 1 and 2."""
    run = make_run()
    view = make_view(run, signals={"look_in_TLHM": [[[1, 2, 0, 3]]]})
    policy = built("weighted_sum", run)
    policy.on_admit(5, view)
    use(policy, view, [0])
    assert policy.choose_victim({0, 5}, view) == 0


def test_router_score_is_a_running_mean_of_the_best(make_run: MakeRun, make_view: MakeView) -> None:
    """Half of the old and half of the new, and only half of the old for all but the best two."""
    run = make_run()
    view = make_view(run, signals={"router_probs_TLE": [[0.4, 0.3, 0.2, 0.1]]})
    policy = built("router_score:alpha=0.5,best=2", run)
    use(policy, view, [0, 1])
    view.signals = {"router_probs_TLE": [[0.1, 0.2, 0.6, 0.1], [0.1, 0.4, 0.4, 0.1]]}
    use(policy, view, [2, 1])
    assert policy.scores(range(4), view) == pytest.approx([0.1, 0.075 + 0.15, 0.25, 0.0])
    assert policy.choose_victim({0, 1, 2}, view) == 0


def profile_of_two_layers() -> RoutingTrace:
    """Return one token after another: layer 0 takes turns among four experts, layer 1 keeps one."""
    rows = [[[t % 4], [0]] for t in range(40)]
    return trace_of([([], rows)], experts=4)


def test_quotas_go_where_they_save_most(make_run: MakeRun) -> None:
    """Layer 0 misses always with three slots and never with four; layer 1 needs one."""
    counts_LE = np.zeros((2, 4), np.int64)
    run = make_run(
        layers=2,
        top_k=1,
        expert_bytes_L=(1, 1),
        budget_bytes=5,
        popularity_LE=counts_LE,
        profile_trace=profile_of_two_layers(),
    )
    assert built("quota_dp/lru:scope=per_layer", run).quotas_L() == [4, 1]


def test_quotas_fill_every_slot_they_can(make_run: MakeRun) -> None:
    """No layer gets more than its experts or less than one token needs; nothing is overspent."""
    for budget in range(2, 12):
        run = make_run(
            layers=2,
            top_k=1,
            expert_bytes_L=(1, 1),
            budget_bytes=budget,
            profile_trace=profile_of_two_layers(),
        )
        quotas_L = built("quota_dp/lru", run).quotas_L()
        assert sum(quotas_L) <= budget
        assert all(1 <= quota <= 4 for quota in quotas_L)


@pytest.mark.parametrize(
    ("order", "layers"), [("front", [0, 1, 2, 3, 4, 5]), ("back", [5, 4, 3, 2, 1, 0])]
)
def test_static_takes_whole_layers_from_either_end(
    make_run: MakeRun, order: str, layers: list[int]
) -> None:
    """The experts of a layer come together, in the order of the layers."""
    run = make_run(layers=6, expert_bytes_L=(1,) * 6, budget_bytes=14)
    initial = built(f"static:order={order}", run).initial()
    assert [expert // 4 for expert in initial[::4]] == layers


def test_static_spreads_whole_layers_evenly(make_run: MakeRun) -> None:
    """Of six layers two fit beside the staging room: the second and the fifth."""
    run = make_run(layers=6, expert_bytes_L=(1,) * 6, budget_bytes=10)
    initial = built("static:order=spread", run).initial()
    assert [expert // 4 for expert in initial[:8:4]] == [1, 4]
    assert sorted(initial) == list(range(24))
