"""pytest fixtures for policy authors; pytest finds them through the entry-point group pytest11.

Everything is imported when a fixture is asked for, so that other people's test runs pay nothing.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from moesim.simulator.policies.base import View
    from moesim.simulator.testing import AdversarialDriver
    from moesim.traces import RoutingTrace

__all__ = ["adversarial_driver", "tiny_trace", "view"]


@pytest.fixture
def tiny_trace() -> "RoutingTrace":
    """Return two short requests of two tasks, with gates and look-ahead signals."""
    from moesim.simulator.testing import tiny_trace as make  # noqa: PLC0415  see the module

    return make()


@pytest.fixture
def adversarial_driver() -> "Callable[..., AdversarialDriver]":
    """Return a function (seed, **options of `small_run`) -> driver that checks laws 1 to 6."""
    from moesim.simulator import testing  # noqa: PLC0415  see the module

    def make(seed: int = 0, **options: Any) -> "AdversarialDriver":  # noqa: ANN401  small_run's own
        trace = options.pop("trace", None) or testing.tiny_trace()
        options.setdefault("slots", trace.layers * trace.experts // 2)
        return testing.adversarial(
            testing.small_run(trace, seed=seed, **options), testing.seeded(seed)
        )

    return make


@pytest.fixture
def view() -> "View":
    """Return a view of 3 layers of 6 experts of a megabyte, nobody resident, room for nine."""
    from moesim.simulator.control.residency import WholeResidency  # noqa: PLC0415  see the module
    from moesim.simulator.policies.base import View  # noqa: PLC0415  see the module

    return View(WholeResidency([1_000_000] * 3, 6, 2, 9_000_000, None, 0))
