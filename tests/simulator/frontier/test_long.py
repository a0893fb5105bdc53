"""Curves of a trace that is too long to be held are those of a trace that is not."""

from pathlib import Path

import numpy as np
import pytest

from moesim.simulator import long_traces
from moesim.simulator.errors import CapabilityError
from moesim.simulator.frontier import curves
from moesim.simulator.frontier import long as long_frontier
from moesim.simulator.frontier.stack_distances import LruStack, event_uses, lru_distances
from moesim.traces import RoutingTrace, load, synthetic
from moesim.traces.chunks import cut, write_chunks


@pytest.fixture
def trace() -> RoutingTrace:
    """Return eight requests with prompts, 4 x 8 top-2."""
    return synthetic.sticky(seed=6, requests=8, prompt_tokens=5, decode_tokens=20)


@pytest.fixture
def _everything_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no trace be short, and pieces be of two requests or so."""
    monkeypatch.setattr(long_traces, "MOST_DEMANDS", 0)
    monkeypatch.setattr(long_frontier, "PIECE_ROWS", 60)


def test_distances_do_not_depend_on_how_uses_come(trace: RoutingTrace) -> None:
    """Portions of whole requests give, one after another, the distances of all uses at once."""
    stack = LruStack(trace.layers * trace.experts)
    parts = [stack.distances(event_uses(piece)) for piece in cut(trace, 30)]
    assert len(parts) > 3
    assert np.array_equal(np.concatenate(parts), lru_distances(event_uses(trace)))


@pytest.mark.usefixtures("_everything_is_long")
@pytest.mark.parametrize("counting", ["_by_arrays", "_by_loops"])
def test_counts_are_those_of_the_short_way(
    trace: RoutingTrace, counting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hits of every size from the largest event on agree, all layers together and each alone."""
    if counting == "_by_loops":
        pytest.importorskip("numba")
    monkeypatch.setattr(long_frontier, "_counting", getattr(long_frontier, counting))
    long = curves.frontier(trace)
    monkeypatch.setattr(long_traces, "MOST_DEMANDS", 10**9)
    short = curves.frontier(trace)
    pairs = zip(
        (*long.curves, *long.layer_curves), (*short.curves, *short.layer_curves), strict=True
    )
    for one, other in pairs:
        assert (one.cache, one.layer, one.demands) == (other.cache, other.layer, other.demands)
        assert len(one.slots_S) > 1
        for slots in one.slots_S.tolist():
            assert one.at(slots) == other.at(slots)


@pytest.mark.usefixtures("_everything_is_long")
def test_a_chunked_trace_is_read_piece_by_piece(trace: RoutingTrace, tmp_path: Path) -> None:
    """The curves of the folder are those of the trace in memory."""
    write_chunks(cut(trace, 60), tmp_path / "long")
    one, other = curves.frontier(load(tmp_path / "long")), curves.frontier(trace)
    assert curves.rows(one) == curves.rows(other)


@pytest.mark.usefixtures("_everything_is_long")
def test_what_needs_the_whole_is_refused_by_name(trace: RoutingTrace) -> None:
    """Belady looks ahead: the message names it, and what can be taken."""
    with pytest.raises(CapabilityError, match="cache policy belady takes 100 bytes .* take lru or"):
        curves.frontier(trace, ["lru", "belady"])
