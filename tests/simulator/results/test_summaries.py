"""Times are summed up in one way, whether all are kept or only counted."""

import numpy as np
import pytest

from moesim.simulator.results.digest import Digest
from moesim.simulator.results.summaries import summary


def test_kept_and_digested_times_have_the_same_fields_and_values() -> None:
    """A digest that is still exact gives what the list gives, key by key."""
    times_ns = [3_000_000, 1_000_000, 2_000_000, 50_000_000]
    digest = Digest()
    digest.add(np.asarray(times_ns))
    found = summary("ttft", times_ns)
    assert found == pytest.approx(summary("ttft", digest))
    assert found == {
        "mean_ttft_ms": 14.0,
        "p50_ttft_ms": 2.5,
        "p90_ttft_ms": 35.9,
        "p99_ttft_ms": 48.59,
    }


def test_no_times_have_no_figures() -> None:
    """Every field is there and empty, never 0."""
    assert {*summary("e2e", []).values()} == {None}
    assert summary("e2e", []) == summary("e2e", Digest())
