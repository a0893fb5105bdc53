"""Recorded requests that arrive by themselves are served with the rows recorded of them."""

from typing import Any

import numpy as np
import pytest

from moesim.simulator import registry
from moesim.simulator.assembly import assemble
from moesim.simulator.controller import Controller
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.clock import ClockEngine
from moesim.simulator.engines.counts import count
from moesim.simulator.errors import CapabilityError
from moesim.simulator.messages import FormStep
from moesim.simulator.serving.recorded import RecordedRequests
from moesim.traces import synthetic

SIZE = 1000
BUDGET = 9 * SIZE


def trace() -> Any:
    """Return three requests of 6 prompt tokens and 4 decode rows."""
    return synthetic.uniform(
        seed=1, layers=2, experts=8, top_k=2, requests=3, prompt_tokens=6, decode_tokens=4
    )


def controller(of: Any, guard: str) -> Controller:
    """Return LRU behind a guard, which keeps its log."""
    specs = {
        axis: registry.parse(axis, text)
        for axis, text in {
            "cache": "lru",
            "prefetch": "none",
            "schedule": f"{guard}/resident_first",
        }.items()
    }
    return assemble(
        specs,
        experts=of.experts,
        top_k=of.top_k,
        sizes_L=(SIZE,) * of.layers,
        budget_bytes=BUDGET,
        costs=CostModel.for_tests(
            layers=of.layers, experts=of.experts, top_k=of.top_k, expert_bytes=SIZE
        ),
        window_bytes=SIZE,
        seed=0,
        keep_log=True,
    )


def commands(one: Controller) -> list[Any]:
    """Return every command in order."""
    assert one.log is not None
    return [command for _, _, answer in one.log for command in answer]


@pytest.mark.parametrize("guard", ["fcfs:max_batch=2", "fcfs:max_batch=3,chunk=4"])
def test_all_at_once_is_decided_alike_with_and_without_a_clock(guard: str) -> None:
    """Who arrives together is batched alike whatever time passes."""
    of = trace()
    counted, timed = controller(of, guard), controller(of, guard)

    count(counted, RecordedRequests(of), budget_bytes=BUDGET)
    ClockEngine(
        timed,
        RecordedRequests(of),
        CostModel.for_tests(
            layers=of.layers, experts=of.experts, top_k=of.top_k, expert_bytes=SIZE
        ),
        expert_bytes=lambda _expert, _part: SIZE,
        budget_bytes=BUDGET,
    ).run()

    assert commands(counted) == commands(timed)
    assert counted.counts.output_tokens == 3 * 5


def test_prompts_are_cut_where_the_schedule_says() -> None:
    """A prompt goes through in the pieces of the guard, not in the steps of its recording."""
    of = trace()
    one = controller(of, "fcfs:max_batch=1,chunk=4")

    count(one, RecordedRequests(of), budget_bytes=BUDGET)

    chunks = [c.prompt_chunks for c in commands(one) if isinstance(c, FormStep)]
    assert chunks[:3] == [(4,), (2,), (None,)]
    assert len(chunks) == 3 * (2 + 4)


def test_requests_come_when_they_are_said_to() -> None:
    """Arrivals of one's own are told in order, and a fresh source begins again."""
    workload = RecordedRequests(trace(), [5, 7, 7])
    for _ in range(2):
        arrivals = workload.arrivals()
        assert arrivals.next_ns == 5
        assert arrivals.take(6) == [(0, 5)]
        assert arrivals.take(7) == [(1, 7), (2, 7)]


def test_a_request_without_a_prompt_is_refused() -> None:
    """What arrives begins with a prompt; a trace without one is refused by its request."""
    of = trace()
    bare = of.select_requests([0])
    bare.is_prefill_T[:] = np.False_
    with pytest.raises(CapabilityError, match="request 0 has no prompt rows"):
        count(controller(bare, "fcfs:max_batch=2"), RecordedRequests(bare), budget_bytes=BUDGET)
