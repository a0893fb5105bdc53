"""Layers that are told from their like take what they would have taken: every ns, every count."""

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.engines.repeats import Repeats
from moesim.simulator.runs import ENGINES, Prepared
from moesim.simulator.testing import engine, small_run, tiny_trace

LAYERS, TOKENS = 3, 40
TRACE = tiny_trace(layers=LAYERS, prompt_tokens=2, decode_tokens=TOKENS)

durations = st.integers(0, 3)


def outcome(run: Prepared, name: str, *, keep_spans: bool) -> tuple[object, ...]:
    """Return what a run measured, counted and decided; where spans are kept nothing is repeated."""
    controller = run.controller(keep_log=True)
    timings = engine(run, controller, name=name, keep_spans=keep_spans).run()
    controller.close()
    return timings, controller.counts, controller.log


@given(st.data())
def test_repeated_layers_change_nothing(data: st.DataObject) -> None:
    """With durations of few ns, which force ties, all figures are those of working each one out."""
    draw = data.draw
    run = small_run(
        TRACE,
        cache=draw(st.sampled_from(["lru", "fifo", "lfu", "static"])),
        prefetch=draw(st.sampled_from(["none", "none", "oracle"])),
        schedule=draw(st.sampled_from(["resident_first", "on_demand", "cheaper"])),
        slots=draw(st.integers(6, 12)),
        expert_bytes_L=draw(st.sampled_from([[100] * LAYERS, [100, 100, 300]])),
        machine={
            "memory_bytes_per_s": 10**15,
            "flop_per_s": 10**18,
            "link_bytes_per_s": 10**11 // draw(st.integers(1, 12)),
            "link_latency_ns": draw(durations),
            "first_copy_extra_ns": draw(durations),
            "pause_threshold_ns": draw(st.integers(1, 30)),
            "slow_down_ppm": draw(st.sampled_from([0, 500_000, 1_000_000])),
        },
        runtime={
            "copy_issue_ns": draw(durations),
            "copy_start_ns": draw(durations),
            "launch_layer_ns": draw(durations),
            "launch_run_ns": draw(durations),
            "router_wait_ns": draw(durations),
            "poll_ns": draw(durations),
            "dense_fixed_ns": draw(durations),
            "expert_fixed_ns": draw(durations),
            "expert_after_copy_ns": draw(durations),
            "expert_while_copying_ns": draw(durations),
            "decision_ns": (draw(durations), draw(durations), draw(durations)),
        },
    )
    expected = outcome(run, "clock", keep_spans=True)
    for name in ENGINES:
        assert expected == outcome(run, name, keep_spans=False), name


@pytest.mark.parametrize("pause_us", [10, 20, 30, 40, 60])
def test_how_long_the_link_stood_still_is_told_apart(pause_us: int) -> None:
    """The first copy after a pause is longer, whichever layers made the pause."""
    run = small_run(
        TRACE,
        slots=14,
        machine={"first_copy_extra_ns": 50_000, "pause_threshold_ns": 1_000 * pause_us},
    )
    expected = outcome(run, "clock", keep_spans=True)
    assert expected == outcome(run, "clock", keep_spans=False)


@pytest.mark.parametrize("name", ENGINES)
def test_most_layers_of_a_decode_are_repeated(name: str) -> None:
    """Without prefetch hardly a layer of a decode is worked out twice."""
    told = []

    def noting(repeats: Repeats, *asked: object) -> int | None:
        told.append(serve(repeats, *asked))  # type: ignore[arg-type]
        return told[-1]

    serve = Repeats.serve
    run = small_run(TRACE, slots=8)
    with patch.object(Repeats, "serve", noting):
        outcome(run, name, keep_spans=False)
    repeated = sum(took_ns is not None for took_ns in told)
    assert len(told) >= 2 * LAYERS * TOKENS
    assert repeated > 0.8 * len(told)
