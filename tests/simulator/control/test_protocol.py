"""The controller refuses facts that cannot have happened and names them: driver bugs are loud."""

from collections.abc import Callable

import pytest

from moesim.simulator.controller import Controller
from moesim.simulator.errors import ProtocolError
from moesim.simulator.messages import (
    Answered,
    CopyEnded,
    CpuRunEnded,
    Fact,
    LayerRouted,
    RequestArrived,
    RequestEnded,
    RunBegan,
    StepBegan,
    StepEnded,
)
from moesim.simulator.terms import Phase
from moesim.simulator.testing import small_run, tiny_trace

BUDGET_BYTES = 18_000_000
STEP = StepBegan(0, (0,), (Phase.DECODE,), {})


def begun(schedule: str = "resident_first") -> Controller:
    """Return a controller whose run has begun and where a request waits."""
    controller = small_run(tiny_trace(), schedule=schedule).controller()
    controller.handle([RunBegan((), BUDGET_BYTES), RequestArrived(0)], 0)
    return controller


def in_step(schedule: str = "resident_first") -> Controller:
    """Return a controller in a step, before its first router."""
    controller = begun(schedule)
    controller.handle([STEP], 0)
    return controller


def on_the_cpu() -> Controller:
    """Return a controller whose first layer waits for a CPU run."""
    controller = in_step("cpu_on_miss")
    controller.handle([LayerRouted(0, 0, (0, 1))], 0)
    return controller


@pytest.mark.parametrize(
    ("state", "fact", "says"),
    [
        (begun, LayerRouted(0, 0, (0, 1)), "layer 0 was routed outside a step"),
        (on_the_cpu, LayerRouted(0, 1, (6, 7)), "layer 1 was routed .* before the last was done"),
        (in_step, STEP, "step 0 began inside another"),
        (in_step, CopyEnded(1), "copy 1 ended but was not under way"),
        (in_step, CpuRunEnded(1), "CPU run 1 ended but was not under way"),
        (in_step, Answered(4, "map", None), "answer 4"),
        (begun, RunBegan((), BUDGET_BYTES - 1), "17999999 bytes for experts"),
        (on_the_cpu, StepEnded(0, (1,)), "step 0"),
        (begun, StepEnded(0, (1,)), "step 0"),
        (begun, RequestEnded(5), "request 5"),
        (in_step, LayerRouted(0, 2, (12, 13)), "layer 2"),
        (in_step, LayerRouted(0, 0, (7, 8)), "expert 7"),
        (begun, RunBegan((0, 0), BUDGET_BYTES), "expert 0"),
        (begun, RunBegan((99,), BUDGET_BYTES), "expert 99"),
    ],
)
def test_what_cannot_have_happened_is_refused(
    state: Callable[[], Controller], fact: Fact, says: str
) -> None:
    """Each gets a ProtocolError with the number that is wrong."""
    controller = state()
    with pytest.raises(ProtocolError, match=says):
        controller.handle([fact], 0)


def test_a_run_that_stops_half_way_is_refused() -> None:
    """The books of a run are not closed in the middle of a step."""
    with pytest.raises(ProtocolError, match="in the middle of a step"):
        in_step().close()
