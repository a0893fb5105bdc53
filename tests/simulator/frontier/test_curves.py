"""The one-pass curves against a replay at every size."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.simulator.errors import CapabilityError
from moesim.simulator.frontier.curves import (
    PER_LAYER,
    POLICIES,
    Curve,
    frontier,
    rows,
    useful_region,
)
from moesim.simulator.frontier.stack_distances import event_uses
from moesim.simulator.testing import counted, small_run
from moesim.traces import RoutingTrace, load, synthetic

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from strategies import shapes, traces


def assert_equals_replay(trace: RoutingTrace, curve: Curve, slots: int) -> None:
    """Compare a curve at one size with the controller's own counts."""
    counts = counted(small_run(trace, cache=curve.cache, slots=slots)).counts
    assert curve.at(slots) == (counts.hits, counts.decode_hits)
    assert (curve.demands, curve.decode_demands) == (counts.demands, counts.decode_demands)


@given(st.data(), shapes(layers=3, experts=6, top_k=3), st.sampled_from(POLICIES))
@settings(max_examples=120)
def test_a_curve_equals_the_replay_at_every_size(data: st.DataObject, shape, cache: str) -> None:
    """At each size that a curve holds, hits are the controller's, prompts included."""
    trace = data.draw(traces(shape, requests=2, prompt_tokens=4, decode_tokens=8))
    (curve,) = frontier(trace, [cache]).curves
    sizes = curve.slots_S.tolist()
    for slots in {sizes[0], data.draw(st.sampled_from(sizes)), data.draw(st.sampled_from(sizes))}:
        assert_equals_replay(trace, curve, slots)


@given(st.data(), shapes(layers=3, experts=8, top_k=2))
def test_lru_holds_every_size_that_a_run_accepts(data: st.DataObject, shape) -> None:
    """LRU is exact in waves too: from the top-k of one layer to all experts nothing is left out."""
    trace = data.draw(traces(shape, prompt_tokens=6))
    found = frontier(trace)
    total = trace.layers * trace.experts
    one_pool, shares = found.curves
    assert one_pool.slots_S.tolist() == [*range(trace.top_k, total + 1)]
    assert shares.slots_S.tolist() == [*range(trace.layers * trace.top_k, total + 1)]
    assert found.notes == []


@pytest.mark.parametrize("cache", POLICIES)
def test_a_longer_trace_crosses_many_chunks_and_stays_exact(cache: str) -> None:
    """Distances that reach back over thousands of uses are right."""
    trace = synthetic.sticky(
        seed=3, reuse=0.6, layers=4, experts=16, top_k=3,
        requests=3, prompt_tokens=5, decode_tokens=120,
    )  # fmt: skip
    (curve,) = frontier(trace, [cache]).curves
    for slots in (17, 40, 64):
        if curve.at(slots) is not None:
            assert_equals_replay(trace, curve, slots)
    assert curve.at(64) is not None


def test_the_recorded_sample_is_exact_at_each_tenth(repository: Path) -> None:
    """On the trace that ships, prompts in one step, every tenth of residency equals the replay."""
    trace = load(repository / "traces" / "samples" / "reference-12x32.npz").head(requests=2)
    for curve in frontier(trace).curves:
        for tenth in (2, 5, 9):
            assert_equals_replay(trace, curve, round(curve.experts * tenth / 10))


def test_sizes_below_the_largest_event_are_left_out_and_said_so() -> None:
    """Belady is no stack where an event takes waves: its curve begins at the largest event."""
    trace = synthetic.sticky(
        seed=0, reuse=0.5, layers=2, experts=16, top_k=2,
        requests=1, prompt_tokens=12, decode_tokens=10,
    )  # fmt: skip
    found = frontier(trace, ["belady"])
    largest = event_uses(trace).largest
    assert largest > trace.top_k
    assert found.curves[0].slots_S[0] == largest
    assert found.curves[0].at(largest - 1) is None
    assert f"from {largest} slots on" in found.notes[0]


def test_the_cliff_and_the_useful_region() -> None:
    """Global LRU hits nothing in decode up to the cliff; the region begins where it first does."""
    trace = synthetic.sticky(
        seed=1, reuse=0.9, layers=4, experts=8, top_k=2,
        requests=1, prompt_tokens=0, decode_tokens=60,
    )  # fmt: skip
    found = frontier(trace, ["lru"])
    (curve,) = found.curves
    assert found.cliff == 6
    assert curve.decode_hits_S[curve.slots_S <= found.cliff].sum() == 0
    region = useful_region(curve)
    assert region is not None
    assert region.first > found.cliff
    assert curve.at(region.first - 1)[1] == 0 < curve.at(region.first)[1]
    at_last = curve.at(region.last)[1] / curve.decode_demands
    assert at_last >= curve.rate_S[-1] - 0.01


def test_belady_is_never_below_the_others() -> None:
    """The optimum with forced admission is at least LRU and LFU at each size."""
    trace = synthetic.sticky(
        seed=5, reuse=0.6, layers=3, experts=10, top_k=2,
        requests=1, prompt_tokens=0, decode_tokens=80,
    )  # fmt: skip
    lru, lfu, best = frontier(trace, ["lru", "lfu:count=lifetime", "belady"]).curves
    assert np.all(best.hits_S >= lru.hits_S)
    assert np.all(best.hits_S >= lfu.hits_S)
    assert np.any(best.hits_S > lru.hits_S)


def test_layers_add_up_to_their_equal_shares() -> None:
    """At one share for all, hits over all layers are the sum of the layers' own."""
    trace = synthetic.sticky(
        seed=2, reuse=0.7, layers=3, experts=8, top_k=2,
        requests=2, prompt_tokens=3, decode_tokens=20,
    )  # fmt: skip
    (cache, *_) = PER_LAYER
    found = frontier(trace, [cache])
    assert [curve.layer for curve in found.layer_curves] == [0, 1, 2]
    for share in range(2, 9):
        each = [curve.at(share)[0] for curve in found.layer_curves]
        assert found.curves[0].at(3 * share)[0] == sum(each)


def test_rows_hold_every_size() -> None:
    """A row for each size of each curve; misses are what does not hit."""
    trace = synthetic.sticky(
        seed=2, reuse=0.7, layers=2, experts=4, top_k=2,
        requests=1, prompt_tokens=0, decode_tokens=9,
    )  # fmt: skip
    found = frontier(trace)
    lines = rows(found)
    assert len(lines) == sum(len(c.slots_S) for c in (*found.curves, *found.layer_curves))
    assert lines[-1][:3] == ("lru:scope=per_layer", 1, 4)
    assert all(demands == hits + misses for _, _, _, _, demands, hits, misses, *_ in lines)


def test_a_policy_that_is_no_stack_is_refused() -> None:
    """FIFO may keep in a small cache what it drops in a larger one: the way out is named."""
    trace = synthetic.sticky(
        seed=0, reuse=0.5, layers=2, experts=4, top_k=2,
        requests=1, prompt_tokens=0, decode_tokens=2,
    )  # fmt: skip
    with pytest.raises(CapabilityError, match="cache policy fifo is no stack policy.*moesim sweep"):
        frontier(trace, ["fifo"])


def test_experts_of_several_sizes_are_said_to_be_taken_as_one() -> None:
    """Slots are not bytes: where some layers' experts are larger the reader is told."""
    trace = synthetic.sticky(
        seed=0, reuse=0.5, layers=2, experts=4, top_k=2,
        requests=1, prompt_tokens=0, decode_tokens=2,
    )  # fmt: skip
    unequal = replace(
        trace, header=trace.header.model_copy(update={"expert_bytes": [1_000_000, 2_000_000]})
    )
    assert any("of 2 sizes" in note for note in frontier(unequal).notes)
    assert frontier(trace).notes == []
