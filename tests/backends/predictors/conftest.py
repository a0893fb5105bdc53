"""A trace of prompts with a pattern that a predictor can learn."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.simulator.testing import trace_of
from moesim.traces import RoutingTrace

LAYERS, EXPERTS, TOP_K, TOKENS = 3, 8, 2, 6
SUCCESSION = (0, 3, 1, 2)


def make_patterned(prompts: int) -> RoutingTrace:
    """Return prompts of four kinds that follow each other in one order, each with its experts."""
    rng = np.random.default_rng(0)
    set_ALK = np.stack(
        [[rng.permutation(EXPERTS)[:TOP_K] for _ in range(LAYERS)] for _ in range(4)]
    )
    kinds = [SUCCESSION[at % 4] for at in range(prompts)]
    trace = trace_of(
        [([], [set_ALK[kind].tolist()] * TOKENS) for kind in kinds],
        experts=EXPERTS,
        tasks=[f"kind{kind % 2}" for kind in kinds],
    )
    return replace(trace)


@pytest.fixture(scope="session")
def patterned() -> RoutingTrace:
    """Return 48 such prompts."""
    return make_patterned(48)
