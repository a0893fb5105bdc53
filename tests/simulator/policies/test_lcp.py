"""MoEpic's least cache priority, asked directly and held against the policies at its limits."""

from collections.abc import Callable

import numpy as np
import pytest

from moesim.simulator import registry
from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import RunInfo, View
from moesim.simulator.testing import counted, decisions, logged, small_run, trace_of
from moesim.traces import RoutingTrace

MakeRun = Callable[..., RunInfo]
MakeView = Callable[..., View]


def skewed(top_k: int) -> RoutingTrace:
    """Return 80 tokens of two layers of 8 unequally used experts, without a prompt."""
    rng = np.random.default_rng(5)
    share_E = np.arange(1, 9) / 36
    rows = [
        [rng.choice(8, size=top_k, replace=False, p=share_E).tolist() for _ in range(2)]
        for _ in range(80)
    ]
    return trace_of([([], rows[:50]), ([], rows[50:])], experts=8)


@pytest.fixture(scope="module")
def decode_only() -> RoutingTrace:
    """Return such a trace of two experts for each token."""
    return skewed(2)


def decided(trace: RoutingTrace, cache: str, slots: int = 8) -> list[tuple[object, ...]]:
    """Return what a cache policy decides about a trace."""
    return decisions(logged(counted(small_run(trace, cache=cache, slots=slots))))


def test_without_fading_it_is_lifetime_lfu(decode_only: RoutingTrace) -> None:
    """At rho = 1 every copy, run and place is that of LFU that never forgets, ties included."""
    expected = decided(decode_only, "lfu:count=lifetime,scope=per_layer")
    assert expected == decided(decode_only, "lcp:rho=1")


def test_fading_at_once_it_is_lru() -> None:
    """Towards rho = 0 every copy, run and place is that of LRU, where no two are as old."""
    trace = skewed(1)
    expected = decided(trace, "lru:scope=per_layer")
    assert expected == decided(trace, "lcp:rho=1e-300,omega=1")
    assert expected != decided(trace, "lcp:rho=1")


def test_of_two_as_old_the_less_used_goes(make_run: MakeRun, make_view: MakeView) -> None:
    """Experts of one token have the same nu, so that mu decides, whatever their ranks."""
    run = make_run()
    view = make_view(run)
    policy = registry.parse("cache", "lcp:rho=1e-300,omega=1").build(run)
    for experts in ([0, 2], [0, 1]):
        view.event += 1
        policy.on_touches(experts, view)
    for expert in (0, 1):
        policy.on_admit(expert, view)
    assert policy.choose_victim({0, 1}, view) == 1


def test_as_published_it_is_neither(decode_only: RoutingTrace) -> None:
    """With fading that matters within the trace it decides like none of the two."""
    ours = decided(decode_only, "lcp:rho=0.25,omega=8")
    assert ours != decided(decode_only, "lfu:count=lifetime,scope=per_layer")
    assert ours != decided(decode_only, "lru:scope=per_layer")


@pytest.mark.parametrize(("idle", "victim"), [(101, 1), (102, 0)])
def test_three_uses_fade_to_one_in_102_tokens(
    make_run: MakeRun, make_view: MakeView, idle: int, victim: int
) -> None:
    """3 x 0.25 ** (nu / 128) falls below one fresh use between 101 and 102 tokens."""
    run = make_run(top_k=1)
    view = make_view(run)
    policy = registry.parse("cache", "lcp").build(run)
    for expert in [0, 0, 0, *[2] * (idle - 1), 1]:
        view.event += 1
        policy.on_touches([expert], view)
    for expert in (0, 1):
        policy.on_admit(expert, view)
    assert victim == policy.choose_victim({0, 1}, view)


def test_the_hooks_of_one_touch_and_of_all_agree(make_run: MakeRun, make_view: MakeView) -> None:
    """A prompt told touch by touch ranks experts as one told at once."""
    run = make_run()
    orders = []
    for at_once in (True, False):
        view, policy = make_view(run), registry.parse("cache", "lcp:omega=2").build(run)
        for experts in ([0, 1, 1, 2, 2, 0], [3, 1], [0, 3, 2, 3]):
            view.event += 1
            if at_once:
                policy.on_touches(experts, view)
            else:
                for expert in experts:
                    policy.on_touch(expert, view)
        here = [0, 1, 2, 3]
        for expert in here:
            policy.on_admit(expert, view)
        orders.append([])
        while here:
            here.remove(policy.choose_victim(here, view))
            orders[-1].append(tuple(here))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("option", ["rho=0", "rho=1.5", "omega=0"])
def test_options_out_of_range_are_refused(make_run: MakeRun, option: str) -> None:
    """The line names policy, option and value."""
    with pytest.raises(InputError, match=f"lcp: option {option}"):
        registry.parse("cache", f"lcp:{option}").build(make_run())
