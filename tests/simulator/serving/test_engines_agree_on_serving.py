"""The clock and SimPy agree to the nanosecond on requests that arrive whenever they like."""

from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.runs import Prepared
from moesim.simulator.serving.spec import Serving
from moesim.simulator.testing import engine, small_run, tiny_trace

PREFETCH = ["none", "next_gate:horizon=2", "expert_map:search=ask,distance=1,capacity=2"]
SCHEDULE = ["resident_first", "on_demand", "cpu_on_miss"]


def outcome(run: Prepared, name: str) -> dict[str, object]:
    """Return all that a run on an engine decided and measured."""
    controller = run.controller(keep_log=True)
    served = engine(run, controller, name=name)
    timings = served.run()
    controller.close()
    return {
        "timings": timings,
        "counts": controller.counts,
        "log": controller.log,
        "spans": served.spans,
    }


@given(st.data())
def test_the_engines_agree_whoever_arrives(data: st.DataObject) -> None:
    """Any arrivals, batching, prefetch and schedule give equal times, counts, logs and spans."""
    draw = data.draw
    kinds = ["poisson:rate=20000", "gamma:rate=3000,cv=3", "users:users=3,think=0.00001"]
    batching = draw(st.sampled_from(["fcfs", "shortest_first", "slo_first"]))
    chunk, batch = draw(st.sampled_from(["none", "2"])), draw(st.integers(1, 4))
    inner = draw(st.sampled_from(SCHEDULE))
    run = small_run(
        tiny_trace(layers=2),
        slots=draw(st.integers(4, 12)),
        prefetch=draw(st.sampled_from(PREFETCH)),
        schedule=f"{batching}:max_batch={batch},chunk={chunk}/{inner}",
        serving=Serving(f"{draw(st.sampled_from(kinds))},requests=5", most_waiting=3),
        ask_ns={"expert_map_search": draw(st.integers(0, 5_000))},
        machine={
            "link_latency_ns": draw(st.integers(0, 20_000)),
            "slow_down_ppm": draw(st.sampled_from([0, 500_000])),
        },
        seed=draw(st.integers(0, 9)),
    )
    reference, actual = (outcome(run, name) for name in ("simpy", "clock"))
    for what, expected in reference.items():
        assert expected == actual[what], what
