"""Law 9: bytes are the sum over causes, and busy and idle time are the span, exactly."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import shapes, traces

from moesim.simulator import registry
from moesim.simulator.controller import Controller
from moesim.simulator.errors import BooksError
from moesim.simulator.ledger import check
from moesim.simulator.messages import Copy
from moesim.simulator.registry import Axis
from moesim.simulator.runs import Prepared
from moesim.simulator.terms import Cause
from moesim.simulator.testing import (
    KEEP_AT_RANDOM,
    SPLIT_AT_RANDOM,
    WISH_AT_RANDOM,
    engine,
    sample_spec,
    small_run,
    tiny_trace,
)

EVERY_POLICY = [(axis, name) for axis in registry.AXES for name in registry.names(axis)]


def bytes_by_cause(run: Prepared, served: Controller) -> Counter[Cause]:
    """Sum the copies of a log by cause, each by the size that its part had then."""
    again, moved = run.controller(), Counter[Cause]()
    assert served.log
    for facts, now_ns, commands in served.log:
        again.handle(facts, now_ns)
        for copy in commands:
            if isinstance(copy, Copy):
                moved[copy.cause] += again.residency.part_bytes(copy.expert, copy.part)
    return moved


def check_books(run: Prepared) -> None:
    """Serve a run and check its books against its log and its spans."""
    controller = run.controller(keep_log=True)
    served = engine(run, controller)
    timings = served.run()
    controller.close()
    counts = controller.counts
    check(counts, timings)

    moved = bytes_by_cause(run, controller)
    ahead = moved[Cause.PREFETCH]
    assert counts.bytes_demand == moved[Cause.DEMAND]
    assert counts.bytes_rebalance == moved[Cause.REBALANCE]
    assert (
        counts.bytes_prefetch_useful + counts.bytes_prefetch_late + counts.bytes_prefetch_wasted
        == ahead
    )
    assert counts.bytes_total == sum(moved.values()) == timings.engine_bytes["h2d"]

    assert served.spans is not None
    busy_ns = {
        "gpu": timings.gpu_busy_ns,
        "host": timings.host_busy_ns,
        "cpu": timings.cpu_busy_ns,
        **timings.engines_busy_ns,
    }
    for name, busy in busy_ns.items():
        spans = sorted((begin, end) for where, _, begin, end in served.spans if where == name)
        idle_ns, last_ns = 0, 0
        for begin, end in spans:
            assert last_ns <= begin <= end, f"{name} does two things at {begin} ns"
            idle_ns += begin - last_ns
            last_ns = end
        assert last_ns <= timings.span_ns, f"{name} is busy after the run has ended"
        idle_ns += timings.span_ns - last_ns
        assert busy + idle_ns == timings.span_ns, name


@pytest.mark.parametrize("place", ["host", "device"])
@pytest.mark.parametrize(("axis", "name"), EVERY_POLICY)
def test_every_policy_balances(axis: Axis, name: str, place: str) -> None:
    """The books of a run balance under each policy, wherever decisions are taken."""
    run = small_run(
        tiny_trace(),
        slots=8,
        runtime={"decision_ns": (5_000, 100, 10)},
        **{axis: sample_spec(axis, name)},
    )
    run.costs.decides_on = place
    check_books(run)


@given(st.data(), shapes())
def test_any_run_balances(data: st.DataObject, shape) -> None:
    """The books balance whatever is wished for, split and passed on."""
    trace = data.draw(traces(shape))
    run = small_run(
        trace,
        cache=data.draw(st.sampled_from([KEEP_AT_RANDOM, "lru"])),
        prefetch=WISH_AT_RANDOM,
        schedule=data.draw(st.sampled_from([SPLIT_AT_RANDOM, "resident_first"])),
        slots=2 * shape.top_k,
        machine={"slow_down_ppm": data.draw(st.sampled_from([0, 50_000]))},
        runtime={"blocking": data.draw(st.booleans())},
        seed=data.draw(st.integers(0, 99)),
    )
    check_books(run)


def test_time_spent_deciding_on_the_gpu_is_inside_the_run() -> None:
    """The GPU's last decision, after the last token, belongs to the span that it makes busy."""
    run = small_run(
        tiny_trace(layers=1, prompt_tokens=0, decode_tokens=2),
        runtime={"decision_ns": (50_000_000, 0, 0)},
    )
    run.costs.decides_on = "device"
    check_books(run)


@pytest.mark.parametrize(
    ("field", "what"),
    [("hits", "demands"), ("copies", "copies"), ("bytes_prefetch_wasted", "bytes moved")],
)
def test_a_count_that_is_off_is_found(field: str, what: str) -> None:
    """One hit, copy or byte too many is a BooksError that says which sum is off."""
    run = small_run(tiny_trace(), prefetch=WISH_AT_RANDOM, slots=8)
    controller = run.controller()
    timings = engine(run, controller).run()
    controller.close()
    setattr(controller.counts, field, getattr(controller.counts, field) + 1)
    with pytest.raises(BooksError, match=f"the run's {what} do not add up"):
        check(controller.counts, timings)


def test_busy_for_longer_than_the_run_is_found() -> None:
    """A resource that was busy for longer than the run lasted is a BooksError."""
    run = small_run(tiny_trace(), slots=8)
    controller = run.controller()
    timings = engine(run, controller).run()
    timings.cpu_busy_ns = timings.span_ns + 1
    with pytest.raises(BooksError, match="cpu was busy"):
        check(controller.counts, timings)


def test_spans_are_in_the_order_of_their_server() -> None:
    """A server notes its jobs in the order handed over, each after the one before."""
    run = small_run(tiny_trace(), slots=6)
    served = engine(run, run.controller())
    served.run()
    assert served.spans is not None
    for name in ("gpu", "h2d"):
        spans = [(begin, end) for where, _, begin, end in served.spans if where == name]
        assert spans
        assert all(one[1] <= other[0] for one, other in pairwise(spans))
