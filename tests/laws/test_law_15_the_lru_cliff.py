"""Law 15: a global LRU of at most (L-1)·k slots hits exactly nothing in decode at batch 1."""

from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import shapes, traces

from moesim.simulator.testing import counted, small_run
from moesim.traces import synthetic


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 99))
def test_below_one_token_s_footprint_nothing_is_hit(layers: int, top_k: int, seed: int) -> None:
    """A token of L layers pushes its own first layer out before the next token comes."""
    trace = synthetic.sticky(
        seed=seed,
        reuse=0.9,
        layers=layers,
        experts=8,
        top_k=top_k,
        requests=1,
        prompt_tokens=0,
        decode_tokens=20,
    )
    counts = counted(small_run(trace, slots=(layers - 1) * top_k)).counts
    assert counts.hits == 0
    assert counts.misses == layers * top_k * 20


@given(st.data(), shapes(layers=4))
def test_below_the_footprint_no_trace_hits_in_decode(data: st.DataObject, shape) -> None:
    """So it is on any trace, prompts before it included, and in any smaller cache."""
    assume(shape.layers > 1)
    trace = data.draw(traces(shape))
    slots = data.draw(st.integers(shape.top_k, (shape.layers - 1) * shape.top_k))
    assert counted(small_run(trace, slots=slots)).counts.decode_hits == 0


def test_at_one_token_s_footprint_the_same_trace_hits() -> None:
    """The cliff is where the law says: with L·k slots, reuse is found."""
    trace = synthetic.sticky(
        seed=0,
        reuse=0.9,
        layers=4,
        experts=8,
        top_k=2,
        requests=1,
        prompt_tokens=0,
        decode_tokens=50,
    )
    assert counted(small_run(trace, slots=6)).counts.hits == 0
    assert counted(small_run(trace, slots=16)).counts.hits > 0
    per_layer = counted(small_run(trace, cache="lru:scope=per_layer", slots=8)).counts
    assert per_layer.hits > 0
