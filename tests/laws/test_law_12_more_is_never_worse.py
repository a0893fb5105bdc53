"""Law 12: a faster link is never slower, and more room never misses more, where that must hold."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import shapes, traces

from moesim.simulator.messages import Copy
from moesim.simulator.testing import counted, logged, small_run
from moesim.traces import RoutingTrace


def token_ends(trace: RoutingTrace, link_bytes_per_s: int, cache: str, slots: int) -> list[int]:
    """Return when each token was complete."""
    run = small_run(trace, cache=cache, slots=slots, machine={"link_bytes_per_s": link_bytes_per_s})
    return [end for r in run.replay().timings.requests for end in r.token_ends_ns]


@given(st.data(), shapes(), st.integers(1, 8), st.integers(1, 8))
def test_a_faster_link_is_never_slower(data: st.DataObject, shape, slow: int, extra: int) -> None:
    """For fixed placement without prefetch no token ends later when the link is faster.

    Kernels do not slow down here: a copy that ends sooner may begin beside another kernel.
    """
    trace = data.draw(traces(shape))
    cache = data.draw(st.sampled_from(["lru", "lfu", "transient", "belady"]))
    slots = 2 * shape.top_k * shape.layers
    still = {"slow_down_ppm": 0}
    ends = []
    for rate in (slow, slow + extra):
        machine = {**still, "link_bytes_per_s": rate * 10**9}
        result = small_run(trace, cache=cache, slots=slots, machine=machine).replay()
        ends.append([end for r in result.timings.requests for end in r.token_ends_ns])
    assert all(fast <= late for late, fast in zip(*ends, strict=True))


@pytest.mark.parametrize("policy", ["lru", "belady"])
@settings(max_examples=25)  # each serves its trace at every size of the cache
@given(st.data(), shapes(layers=1, experts=8, top_k=3))
def test_more_slots_never_miss_more(policy: str, data: st.DataObject, shape) -> None:
    """In one layer, LRU and Belady are stack policies: every slot more keeps every hit."""
    trace = data.draw(traces(shape, prompt_tokens=0, decode_tokens=12))
    misses = [
        counted(small_run(trace, cache=policy, slots=slots)).counts.misses
        for slots in range(shape.top_k, shape.experts + 1)
    ]
    assert misses == sorted(misses, reverse=True)


@given(st.data(), shapes(layers=4))
def test_more_slots_never_miss_more_in_any_layer(data: st.DataObject, shape) -> None:
    """A larger global LRU holds all that a smaller one does, so no layer of several misses more."""
    trace = data.draw(traces(shape, prompt_tokens=0, decode_tokens=8))
    slots = data.draw(st.integers(shape.top_k, shape.top_k * shape.layers + 2))
    fewer, more = (
        Counter(
            command.expert // shape.experts
            for command in logged(counted(small_run(trace, slots=room)))
            if isinstance(command, Copy)
        )
        for room in (slots, slots + 1)
    )
    assert all(more[layer] <= fewer[layer] for layer in range(shape.layers))


def test_fifo_is_no_stack_policy() -> None:
    """Belady's anomaly: with FIFO four slots miss more than three, so the law above can fail."""
    from moesim.simulator.testing import trace_of  # noqa: PLC0415  beside its only use

    stream = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
    trace = trace_of([([], [[[expert]] for expert in stream])], experts=6)
    misses = [
        counted(small_run(trace, cache="fifo", slots=slots)).counts.misses for slots in (3, 4)
    ]
    assert misses == [9, 10]
