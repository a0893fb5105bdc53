"""The compiled engine equals the clock in every time, count and byte, for all that it takes.

Durations of a few ns force ties. A counterexample is printed as a script that shows it.
"""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.engines.compiled.engine import replay_compiled
from moesim.simulator.errors import BudgetError, CapabilityError, PolicyError
from moesim.simulator.runs import Prepared
from moesim.simulator.testing import engine, small_run, tiny_trace
from moesim.traces import RoutingTrace

pytest.importorskip("numba")

CACHES = [
    "lru",
    "lru:scope=per_layer",
    "fifo",
    "fifo:scope=per_layer",
    "lfu",
    "lfu:count=lifetime",
    "lfu:scope=per_layer",
    "lfru",
    "lfru:count=lifetime",
    "lfru:scope=per_layer",
    "belady",
    "lcp",
    "lcp:rho=1",
    "static:order=uniform",
    "static:order=frequency,scope=per_layer",
    "transient",
]
PREFETCHES = [
    "none",
    "next_gate",
    "next_gate:horizon=2,width=3",
    "transition_table",
    "transition_table:fit=online,width=3",
    "oracle",
    "oracle:recall=0.7,precision=0.6,horizon=2",
]
SCHEDULES = ["resident_first", "on_demand"]
TRACES: Mapping[str, RoutingTrace] = {
    f"tiny_trace(**{options})": tiny_trace(**options)
    for options in (
        {"layers": 2, "experts": 6, "top_k": 2, "prompt_tokens": 4, "decode_tokens": 6},
        {"layers": 3, "experts": 5, "top_k": 2, "prompt_tokens": 1, "decode_tokens": 9, "seed": 3},
        {"layers": 2, "experts": 4, "top_k": 1, "prompt_tokens": 7, "decode_tokens": 3, "seed": 5},
    )
}


def outcome(run: Prepared) -> dict[str, object]:
    """Return what the clock counts and measures."""
    controller = run.controller()
    timings = engine(run, controller, name="clock", keep_spans=False).run()
    controller.close()
    return {"counts": controller.counts, "timings": timings}


def assert_equal(trace: str, options: Mapping[str, Any]) -> None:
    """Assert that both engines agree on a small run, or refuse it alike."""
    run = small_run(TRACES[trace], **options)
    try:
        expected = outcome(run)
    except (BudgetError, CapabilityError, PolicyError) as error:
        with pytest.raises(type(error)):
            replay_compiled(run)
        return
    controller, timings = replay_compiled(run)
    actual = {"counts": controller.counts, "timings": timings}
    assert expected == actual, (
        "the engines differ; to see it:\n"
        "from moesim.simulator.engines.compiled.engine import replay_compiled\n"
        "from moesim.simulator.testing import engine, small_run, tiny_trace\n"
        f"run = small_run({trace}, **{dict(options)!r})\n"
        "controller = run.controller()\n"
        'print(engine(run, controller, name="clock").run(), controller.counts)\n'
        "controller, timings = replay_compiled(run)\n"
        "print(timings, controller.counts)"
    )


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("cache", CACHES)
def test_every_choice_of_policies_is_equal(trace: str, cache: str) -> None:
    """Every prefetch x schedule that it takes gives equal counts and times beside each cache."""
    for prefetch in PREFETCHES:
        for schedule in SCHEDULES:
            for slots in (8, 5, 3):
                chosen = {"cache": cache, "prefetch": prefetch, "schedule": schedule}
                assert_equal(trace, {**chosen, "slots": slots})


durations = st.integers(0, 3)

machines = st.fixed_dictionaries(
    {
        "memory_bytes_per_s": st.just(10**12),
        "flop_per_s": st.just(10**15),
        "link_bytes_per_s": st.integers(1, 12).map(lambda slow: 10**11 // slow),
        "link_latency_ns": durations,
        "first_copy_extra_ns": durations,
        "pause_threshold_ns": st.integers(1, 20),
        "slow_down_ppm": st.sampled_from([0, 500_000, 1_000_000]),
    }
)
runtimes = st.fixed_dictionaries(
    {
        "blocking": st.sampled_from([False, False, False, True]),
        "copy_issue_ns": durations,
        "launch_layer_ns": durations,
        "launch_run_ns": durations,
        "launch_prompt_run_ns": durations,
        "router_wait_ns": durations,
        "poll_ns": durations,
        "dense_fixed_ns": durations,
        "expert_fixed_ns": durations,
        "expert_after_copy_ns": durations,
        "copy_start_ns": durations,
        "expert_while_copying_ns": durations,
        "head_fixed_ns": durations,
        "decision_ns": st.tuples(durations, st.integers(0, 1), st.integers(0, 1)),
        "decision_place": st.sampled_from(["host", "host", "device"]),
    }
)


@given(
    trace=st.sampled_from(sorted(TRACES)),
    cache=st.sampled_from(CACHES),
    prefetch=st.sampled_from(PREFETCHES),
    schedule=st.sampled_from(SCHEDULES),
    machine=machines,
    runtime=runtimes,
    size=st.sampled_from([(100, 100, 100), (100, 150, 60)]),
    slots=st.integers(3, 9),
    window_bytes=st.sampled_from([1, 150, 10_000]),
    seed=st.integers(0, 9),
)
def test_whatever_ties_is_equal(
    trace: str,
    cache: str,
    prefetch: str,
    schedule: str,
    machine: dict[str, Any],
    runtime: dict[str, Any],
    size: tuple[int, ...],
    slots: int,
    window_bytes: int,
    seed: int,
) -> None:
    """Any policies that it takes, with durations of few ns, give equal counts and times."""
    options = {
        "cache": cache,
        "prefetch": prefetch,
        "schedule": schedule,
        "machine": machine,
        "runtime": runtime,
        "expert_bytes_L": size[: TRACES[trace].layers],
        "slots": slots,
        "window_bytes": window_bytes,
        "seed": seed,
    }
    assert_equal(trace, options)
