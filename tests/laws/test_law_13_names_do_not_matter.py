"""Law 13: renaming the experts of each layer renames the result and changes nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import shapes, traces

from moesim.simulator import registry
from moesim.simulator.ledger import Counts, Timings
from moesim.simulator.messages import Copy, Run
from moesim.simulator.registry import Axis
from moesim.simulator.runs import Prepared
from moesim.simulator.testing import (
    counted,
    engine,
    logged,
    rename_experts,
    sample_spec,
    small_run,
    tiny_trace,
)

BY_AGE = ["lru", "lru:scope=per_layer", "fifo", "lfu", "lfu:count=lifetime", "lfru", "transient"]


@given(st.data(), shapes())
def test_renaming_renames_every_copy(data: st.DataObject, shape) -> None:
    """The same copies are made of the renamed experts, in the same order."""
    trace = data.draw(traces(shape))
    cache = data.draw(st.sampled_from(BY_AGE))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    new_LE = np.stack([rng.permutation(shape.experts) for _ in range(shape.layers)])
    slots = 2 * shape.top_k * shape.layers
    copied = [
        [
            c.expert
            for c in logged(counted(small_run(t, cache=cache, slots=slots)))
            if isinstance(c, Copy)
        ]
        for t in (trace, rename_experts(trace, new_LE))
    ]
    offset = [expert // shape.experts * shape.experts for expert in copied[0]]
    renamed = [o + int(new_LE.flat[e]) for o, e in zip(offset, copied[0], strict=True)]
    assert copied[1] == renamed


@pytest.mark.parametrize("cache", BY_AGE)
def test_renaming_changes_no_time(cache: str) -> None:
    """On the engine every token of the renamed trace ends when it did."""
    trace = tiny_trace()
    rng = np.random.default_rng(5)
    new_LE = np.stack([rng.permutation(trace.experts) for _ in range(trace.layers)])
    ends = [
        [r.token_ends_ns for r in small_run(t, cache=cache, slots=8).replay().timings.requests]
        for t in (trace, rename_experts(trace, new_LE))
    ]
    assert ends[0] == ends[1]


BY_DEMAND_OR_SIGNAL = [("prefetch", "next_gate"), ("prefetch", "oracle:recall=0.6")] + [
    ("schedule", sample_spec("schedule", name).text) for name in registry.names("schedule")
]


@pytest.mark.parametrize(("axis", "text"), BY_DEMAND_OR_SIGNAL)
def test_renaming_renames_prefetches_and_plans(axis: Axis, text: str) -> None:
    """Copies ahead and runs are of the renamed experts too; every count and time is the same."""
    trace = tiny_trace()
    rng = np.random.default_rng(7)
    new_LE = np.stack([rng.permutation(trace.experts) for _ in range(trace.layers)])
    new = (new_LE + np.arange(trace.layers)[:, None] * trace.experts).ravel().tolist()
    run = small_run(trace, slots=9, **{axis: text})
    renamed = small_run(rename_experts(trace, new_LE), slots=9, **{axis: text})
    moves, counts, timings = result(run)
    assert counts.demands > 0
    expected = [tuple(new[expert] for expert in experts) for experts in moves]
    assert (expected, counts, timings) == result(renamed)


def result(run: Prepared) -> tuple[list[tuple[int, ...]], Counts, Timings]:
    """Return which experts were copied and run, in order, then counts and times."""
    controller = run.controller(keep_log=True)
    timings = engine(run, controller).run()
    moves = [
        (command.expert,) if isinstance(command, Copy) else command.experts
        for command in logged(controller)
        if isinstance(command, Copy | Run)
    ]
    return moves, controller.counts, timings


def test_expert_three_of_layer_zero_is_not_that_of_layer_two() -> None:
    """Residency is by (layer, expert): the same index in another layer is another expert."""
    from moesim.simulator.testing import trace_of  # noqa: PLC0415  beside its only use

    trace = trace_of([([], [[[3], [1], [3]]])], experts=4)
    counts = counted(small_run(trace, slots=3)).counts
    assert (counts.demands, counts.hits, counts.misses) == (3, 0, 3)
