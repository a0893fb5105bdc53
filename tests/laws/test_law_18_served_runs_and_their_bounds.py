"""Law 18: no served run beats the bounds of its own steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.limits.bounds import Actions, bounds
from moesim.simulator.runs import Prepared
from moesim.simulator.serving.limits import GIVEN, Formed, served_bounds
from moesim.simulator.serving.spec import Serving
from moesim.simulator.serving.workload import ServedWorkload
from moesim.simulator.testing import WISH_AT_RANDOM, engine, small_run, tiny_trace


def check_bound(run: Prepared) -> tuple[list[Formed], Actions]:
    """Serve a run, and compare bytes and times with the bounds given its steps."""
    controller = run.controller()
    driver = engine(run, controller, name="clock", keep_spans=False)
    timings = driver.run()
    controller.close()
    workload = driver._workload
    assert isinstance(workload, ServedWorkload)
    assert workload.formed is not None
    assert run.served is not None
    rows_R = run.served.stream.drawing.all_rows()
    actions = Actions.of(controller.counts)
    budget_bytes = run.memory.expert_bytes
    limit = served_bounds(run.spec.trace, rows_R, workload.formed, run.costs, budget_bytes, actions)
    assert controller.counts.bytes_total >= limit.bytes_min
    assert timings.span_ns >= limit.span_ns
    assert timings.gpu_busy_ns >= limit.gpu_floor_ns
    assert timings.host_busy_ns >= limit.host_floor_ns
    gaps = [np.diff(times.token_ends_ns) for times in timings.requests]
    assert sum(int(each.sum()) for each in gaps) >= limit.decode_ns
    assert sum(map(len, gaps)) == limit.decode_gaps
    assert GIVEN in limit.notes
    return workload.formed, actions


@given(
    st.sampled_from(["poisson:rate=300", "gamma:rate=900,cv=4", "users:users=3,think=0.001"]),
    st.sampled_from(["none", "1", "3"]),
    st.integers(1, 4),
    st.integers(4, 12),
    st.sampled_from(["lru", "lfu", "transient"]),
    st.sampled_from(["none", WISH_AT_RANDOM]),
    st.sampled_from(["resident_first", "on_demand", "cpu_on_miss"]),
    st.integers(0, 99),
)
def test_no_served_run_beats_the_bound_of_its_steps(
    kind: str,
    chunk: str,
    batch: int,
    slots: int,
    cache: str,
    prefetch: object,
    inner: str,
    seed: int,
) -> None:
    """Bytes, span, GPU and host time and gaps are no less than the bounds, however it is served."""
    check_bound(
        small_run(
            tiny_trace(layers=2),
            slots=slots,
            cache=cache,
            prefetch=prefetch,
            schedule=f"fcfs:max_batch={batch},chunk={chunk}/{inner}",
            serving=Serving(f"{kind},requests=7,prompt=4,output=6"),
            runtime={"decision_ns": (0, 0, 0)},
            seed=seed,
        )
    )


def test_alone_the_bounds_are_those_of_the_trace() -> None:
    """One user who asks the recorded requests has the bounds of their replay, to the ns."""
    trace = tiny_trace()
    run = small_run(trace, slots=9, serving=Serving("users:requests=2,order=recorded"))
    formed, actions = check_bound(run)
    assert run.served is not None
    given = served_bounds(
        trace, run.served.stream.drawing.all_rows(), formed, run.costs, 9_000_000, actions
    )
    limit = bounds(trace, run.costs, 9_000_000, actions)
    assert (given.bytes_min, given.span_ns, given.decode_ns, given.decode_gaps) == (
        limit.bytes_min,
        limit.span_ns,
        limit.decode_ns,
        limit.decode_gaps,
    )


@pytest.mark.parametrize("slots", [6, 10])
def test_a_row_of_arrivals_has_its_bound(slots: int) -> None:
    """The row says what no policy beats under these steps, and that it is given the batching."""
    run = small_run(
        tiny_trace(layers=2),
        slots=slots,
        schedule="fcfs:max_batch=3/resident_first",
        serving=Serving("poisson:rate=300,requests=9,prompt=4,output=6"),
    )
    row = run.replay().row
    assert 0 < row["bound_tpot_ms"] <= row["mean_tpot_ms"]
    assert 0 < row["bound_bytes"] <= row["bytes_total"]
    assert row["over_bound"] >= 1
    assert row["bound_actions"] == "demand copies alone, given this batching"
    assert GIVEN in row["notes"]
