"""Runs too long to be kept: their rows are those of the same run kept, but for the bounds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.simulator import long_traces
from moesim.simulator.memory import MemorySpec
from moesim.simulator.results.digest import Digest
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import prepare
from moesim.traces import RoutingTrace, load, synthetic
from moesim.traces.chunks import cut, write_chunks

NOT_KEPT = {"bound_tpot_ms", "bound_bytes", "over_bound", "notes"}
"""What a long run lacks."""

Row = dict[str, Any]


@pytest.fixture
def trace() -> RoutingTrace:
    """Return twelve requests with prompts, 4 x 8 top-2."""
    return synthetic.sticky(seed=8, requests=12, prompt_tokens=3, decode_tokens=15)


@pytest.fixture
def row_of() -> Callable[..., Row]:
    """Return a function that runs a trace under a cache policy and gives the row."""

    def run(trace: RoutingTrace, cache: str = "lru", engine: str = "clock") -> Row:
        spec = RunSpec(
            trace=trace,
            trace_name="made up",
            hardware="rtx4090",
            policies={"cache": cache, "prefetch": "none", "schedule": "resident_first"},
            memory=MemorySpec(None, None, "50%"),
            cost_of="mixtral-8x7b",
            weights_format="int4",
            engine=engine,
        )
        return prepare(spec).replay().row

    return run


@pytest.fixture
def kept(trace: RoutingTrace, row_of: Callable[..., Row]) -> Row:
    """Return the row of the run whose tokens are kept."""
    return row_of(trace)


def _without(row: Row) -> Row:
    return {
        name: value
        for name, value in row.items()
        if name not in NOT_KEPT and "request_tpot" not in name
    }


@pytest.mark.usefixtures("kept")
def test_a_long_run_gives_the_row_of_a_short_one(
    trace: RoutingTrace,
    row_of: Callable[..., Row],
    kept: Row,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every figure agrees (TPOT by request to a ns); there are no bounds, and a note says why."""
    monkeypatch.setattr(long_traces, "MOST_DEMANDS", 0)
    long = row_of(trace)
    assert _without(kept) == _without(long)
    for name in kept:
        if "request_tpot" in name:
            assert kept[name] == pytest.approx(long[name], abs=2e-6)
    assert long["bound_tpot_ms"] is None
    assert "no bounds: what is served has more than" in long["notes"]


def test_a_chunked_trace_gives_the_same_row(
    trace: RoutingTrace,
    row_of: Callable[..., Row],
    kept: Row,
    tmp_path: Path,
) -> None:
    """How a trace lies on disk changes nothing, the run's id included."""
    write_chunks(cut(trace, 40), tmp_path / "long")
    assert kept == row_of(load(tmp_path / "long"))


def test_percentiles_of_few_values_are_numpys() -> None:
    """As long as they are kept, mean and percentiles are exact, however they came."""
    values = np.random.default_rng(0).integers(0, 10**9, 1_000)
    digest = Digest()
    for part in np.array_split(values, 7):
        digest.add(part)
    assert digest.is_exact
    assert digest.mean() == float(np.mean(values))
    for percent in (0, 50, 90, 99, 100):
        assert digest.percentile(percent) == np.percentile(values, percent)


@pytest.mark.parametrize("largest", [10, 9_000, 10**6, 10**12])
def test_percentiles_of_many_are_within_their_bound(largest: int) -> None:
    """Past the limit a percentile is off by at most 1/8192; mean and count stay exact."""
    values = np.random.default_rng(1).integers(0, largest, 5_000)
    digest = Digest(most_exact=100)
    for part in np.array_split(values, 11):
        digest.add(part)
    assert not digest.is_exact
    assert digest.mean() == values.sum() / len(values)
    for percent in (1, 50, 90, 99):
        assert digest.percentile(percent) == pytest.approx(
            float(np.percentile(values, percent)), rel=1 / 8192, abs=1
        )
