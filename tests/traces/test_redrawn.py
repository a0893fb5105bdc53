"""Long synthetic traces drawn from short ones."""

import numpy as np
import pytest

from moesim.traces import RoutingTrace, synthetic
from moesim.traces.redrawn import ids_only, redrawn


@pytest.fixture
def trace() -> RoutingTrace:
    """Return five requests of seven rows with gates and a signal."""
    return synthetic.zipf(seed=2, requests=5, prompt_tokens=3, decode_tokens=4, horizons=1)


def test_pieces_are_whole_requests_of_the_source(trace: RoutingTrace) -> None:
    """There are as many rows as asked for and no request more, each one of the source's."""
    pieces = list(redrawn(trace, tokens=100, seed=0, rows=30))
    assert [piece.tokens for piece in pieces] == [28, 28, 28, 21]
    known = {trace.select_requests([r]).expert_TLK.tobytes() for r in range(trace.requests)}
    for piece in pieces:
        piece.validate("piece")
        drawn = {piece.select_requests([r]).expert_TLK.tobytes() for r in range(piece.requests)}
        assert drawn <= known


def test_it_says_that_it_is_synthetic_and_of_what(trace: RoutingTrace) -> None:
    """Evidence, source and seed stand in the header."""
    header = next(redrawn(trace, tokens=10, seed=7)).header
    assert header.evidence == "synthetic"
    assert header.notes is not None
    assert trace.content_hash() in header.notes
    assert header.notes.endswith("seed 7")


def test_same_seed_same_rows(trace: RoutingTrace) -> None:
    """Two drawings agree, another seed's does not."""

    def ids(seed: int) -> bytes:
        pieces = redrawn(trace, tokens=200, seed=seed)
        return np.concatenate([piece.expert_TLK for piece in pieces]).tobytes()

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_ids_alone_leave_gates_and_signals_out(trace: RoutingTrace) -> None:
    """What is left is valid and has the same experts."""
    bare = ids_only(trace)
    bare.validate("bare")
    assert bare.gate_TLK is None
    assert not bare.signals
    assert np.array_equal(trace.expert_TLK, bare.expert_TLK)
