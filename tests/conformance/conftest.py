"""Replays a trace without a clock and checks the books; lets tests import what lies beside them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesim.simulator.engines.counts import count
from moesim.simulator.ledger import Counts
from moesim.simulator.testing import small_run
from moesim.traces import RoutingTrace

sys.path.insert(0, str(Path(__file__).parent))

Replay = Callable[..., Counts]
"""(trace, cache policy, **options of `small_run`) -> counts."""


@pytest.fixture(scope="session")
def replay() -> Replay:
    """Return a function that replays a trace and returns what was counted."""

    def replay(trace: RoutingTrace, cache: str, **options: Any) -> Counts:
        on_step = options.pop("on_step", None)
        run = small_run(trace, cache=cache, **options)
        controller = run.controller()
        if on_step is not None:
            on_step = on_step(controller.counts)
        count(controller, run.workload(), budget_bytes=run.memory.expert_bytes, on_step=on_step)
        controller.residency.check()
        counts = controller.counts
        judged = counts.hits + counts.late_hits + counts.partial_hits + counts.misses
        assert counts.demands == judged
        return counts

    return replay
