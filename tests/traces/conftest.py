"""Traces that the tests here start from."""

import pytest

from moesim.traces import RoutingTrace, synthetic


@pytest.fixture
def trace() -> RoutingTrace:
    """Return a valid trace: 2 requests of 3 + 4 rows, 3 layers, 8 experts, top-2."""
    return synthetic.uniform(
        seed=7, layers=3, experts=8, top_k=2, requests=2, prompt_tokens=3, decode_tokens=4
    )
