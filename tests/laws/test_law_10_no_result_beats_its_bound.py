"""Law 10: no result beats the bound of its own action set.

Belady with bypass takes its staging slots out of the same budget, so it is compared at a budget
that leaves its cache as many slots as the other has altogether.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import shapes, traces

from moesim.simulator import registry
from moesim.simulator.limits.bounds import Actions, bounds
from moesim.simulator.registry import Axis
from moesim.simulator.runs import Prepared
from moesim.simulator.testing import (
    KEEP_AT_RANDOM,
    WISH_AT_RANDOM,
    counted,
    engine,
    sample_spec,
    small_run,
    tiny_trace,
)
from moesim.traces import RoutingTrace

WITHOUT_SIGNALS = [
    name
    for name in registry.names("cache")
    if registry.find("cache", name).needs <= {"future", "profile"}
]
EVERY_POLICY = [(axis, name) for axis in registry.AXES for name in registry.names(axis)]


def check_bound(run: Prepared) -> None:
    """Serve a run, and compare bytes and times with the bound for what it did."""
    controller = run.controller()
    timings = engine(run, controller).run()
    controller.close()
    counts = controller.counts
    limit = bounds(run.spec.trace, run.costs, run.memory.expert_bytes, Actions.of(counts))
    assert counts.bytes_total >= limit.bytes_min
    assert timings.span_ns >= limit.span_ns
    assert timings.gpu_busy_ns >= limit.gpu_floor_ns
    gaps_ns = 0
    for request in timings.requests:
        begins_ns = request.token_ends_ns[0] if request.has_first_token else request.began_ns
        gaps_ns += request.token_ends_ns[-1] - begins_ns
    assert gaps_ns >= limit.decode_ns


@pytest.mark.parametrize("slots", [8, 13])
@pytest.mark.parametrize(("axis", "name"), EVERY_POLICY)
def test_no_policy_beats_its_bound(axis: Axis, name: str, slots: int) -> None:
    """Bytes, span and gaps between tokens of each policy are no less than its bound."""
    check_bound(small_run(tiny_trace(), slots=slots, **{axis: sample_spec(axis, name)}))


@given(st.data(), shapes())
def test_no_run_beats_its_bound(data: st.DataObject, shape) -> None:
    """The same on any small trace, by an optimum or by chance."""
    trace = data.draw(traces(shape))
    check_bound(
        small_run(
            trace,
            cache=data.draw(st.sampled_from(["belady", "belady:admit=bypass", KEEP_AT_RANDOM])),
            prefetch=data.draw(st.sampled_from(["none", WISH_AT_RANDOM])),
            slots=data.draw(st.integers(2 * shape.top_k, 2 * shape.top_k + 4)),
            runtime={"decision_ns": (0, 0, 0)},
            seed=data.draw(st.integers(0, 99)),
        )
    )


def bytes_moved(trace: RoutingTrace, cache: object, slots: int) -> int:
    """Return the expert bytes of a run without prefetch, those placed before the start included."""
    counts = counted(small_run(trace, cache=cache, slots=slots)).counts
    return counts.bytes_total + counts.bytes_initial


@given(st.data(), shapes())
def test_no_cache_moves_fewer_bytes_than_belady(data: st.DataObject, shape) -> None:
    """No cache policy moves fewer expert bytes than Belady with bypass and as large a cache."""
    trace = data.draw(traces(shape))
    name = data.draw(st.sampled_from(WITHOUT_SIGNALS))
    slots = data.draw(
        st.integers(2 * shape.top_k * shape.layers, 2 * shape.top_k * shape.layers + 3)
    )
    best = bytes_moved(trace, "belady:admit=bypass", slots + shape.top_k)
    assert best <= bytes_moved(trace, sample_spec("cache", name), slots)


@pytest.mark.parametrize("slots", [9, 12])
def test_a_bound_can_be_reached(slots: int) -> None:
    """Where an event's own members need not leave at once, Belady moves just what must move."""
    trace = tiny_trace(prompt_tokens=0)
    run = small_run(trace, slots=slots)
    limit = bounds(run.spec.trace, run.costs, run.memory.expert_bytes, Actions())
    assert limit.bytes_min == bytes_moved(trace, "belady:admit=bypass", slots + trace.top_k)
