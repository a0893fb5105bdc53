"""Law 5: the clock never goes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import shapes, traces

from moesim.simulator.errors import ProtocolError
from moesim.simulator.messages import RunBegan
from moesim.simulator.testing import (
    SPLIT_AT_RANDOM,
    WISH_AT_RANDOM,
    Witness,
    engine,
    small_run,
    tiny_trace,
)


@given(st.data(), shapes())
def test_the_engine_reports_in_order_of_time(data: st.DataObject, shape) -> None:
    """What the engine tells the controller is told at times that never decrease."""
    trace = data.draw(traces(shape))
    run = small_run(
        trace,
        prefetch=WISH_AT_RANDOM,
        schedule=SPLIT_AT_RANDOM,
        machine={"link_latency_ns": data.draw(st.integers(0, 50_000))},
        seed=data.draw(st.integers(0, 9)),
    )
    controller = run.controller(keep_log=True)
    timings = engine(run, controller).run()
    assert controller.log is not None
    times_ns = [now_ns for _, now_ns, _ in controller.log]
    assert times_ns == sorted(times_ns)
    assert times_ns[-1] <= timings.span_ns
    for request in timings.requests:
        ends_ns = [request.arrived_ns, request.began_ns, *request.token_ends_ns]
        assert ends_ns == sorted(ends_ns)


def test_a_driver_whose_clock_goes_back_is_refused() -> None:
    """The controller refuses facts that are older than the last."""
    controller = small_run(tiny_trace()).controller()
    controller.handle([RunBegan((), 18_000_000)], 7)
    controller.handle([], 7)
    with pytest.raises(ProtocolError, match="the clock went back from 7 to 6 ns"):
        controller.handle([], 6)


def test_the_witness_sees_a_clock_that_goes_back() -> None:
    """The witness notices it before the controller does."""
    witness = Witness(small_run(tiny_trace()).controller())
    witness.handle([RunBegan((), 18_000_000)], 7)
    with pytest.raises(AssertionError, match="law 5"):
        witness.handle([], 6)
