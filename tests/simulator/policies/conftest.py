"""Builds policies and views by hand, for tests that ask a policy a single question."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from moesim.simulator.control.residency import WholeResidency
from moesim.simulator.policies.base import Demand, RunInfo, View
from moesim.simulator.terms import Phase


class RoundCosts:
    """A copy takes 100 ns a byte, an expert 10 ns a token on the GPU and 50 on the CPU."""

    def copy_ns(self, nbytes: int) -> int:
        """Return 100 ns for each byte."""
        return 100 * nbytes

    def experts_gpu_ns(self, _layer: int, tokens_per_expert: Sequence[int]) -> int:
        """Return 10 ns for each token of each expert."""
        return 10 * sum(tokens_per_expert)

    def expert_cpu_ns(self, _layer: int, tokens: int) -> int:
        """Return 50 ns for each token."""
        return 50 * tokens

    def layer_ns(self, _layer: int) -> int:
        """Return 180 ns."""
        return 180


MakeRun = Callable[..., RunInfo]
MakeView = Callable[..., View]


@pytest.fixture
def make_run() -> MakeRun:
    """Return a function of RunInfo's attributes: 3 layers of 4 experts of a byte, top-2, room 6."""

    def make(**changes: Any) -> RunInfo:
        attributes: dict[str, Any] = {
            "layers": 3,
            "experts": 4,
            "top_k": 2,
            "expert_bytes_L": (1, 1, 1),
            "budget_bytes": 6,
            "costs": RoundCosts(),
            "rng": np.random.default_rng(0),
        }
        return RunInfo(**{**attributes, **changes})

    return make


@pytest.fixture
def make_view() -> MakeView:
    """Return a function (run, residents, **attributes of View) -> view of a cache with these in."""

    def make(run: RunInfo, residents: Sequence[int] = (), **attributes: Any) -> View:
        residency = WholeResidency(
            run.expert_bytes_L, run.experts, run.top_k, run.budget_bytes, None, 0
        )
        for expert in residents:
            residency.cache_L[run.layer(expert)].take(expert, run.size(expert))
        return View(residency, **{"phases": (Phase.DECODE,), **attributes})

    return make


def make_demand(
    layer: int,
    *,
    hits: Sequence[int] = (),
    late: Sequence[int] = (),
    misses: Sequence[int] = (),
    tokens: int = 1,
) -> Demand:
    """Return the demand of one layer, every expert for the same number of tokens."""
    experts = [*hits, *late, *misses]
    return Demand(0, layer, experts, dict.fromkeys(experts, tokens), hits, late, (), misses)


@pytest.fixture
def demand() -> Callable[..., Demand]:
    """Return `make_demand`."""
    return make_demand
