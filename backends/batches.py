"""Serving several prompts together: the guard that forms the batches, and what arrives when."""

from collections.abc import Mapping

from moesim.simulator import registry
from moesim.simulator.errors import InputError
from moesim.simulator.registry import Axis
from moesim.simulator.serving.arrivals import Arrivals, OpenLoop, Users
from moesim.simulator.serving.setup import batching_of


def batched(
    policies: Mapping[Axis, str], batch: int | None, chunk: int | None
) -> dict[Axis, str]:
    """Return policies whose schedule serves so many requests together, first come first served.

    Where all arrive at once, whom it serves depends on no time: decisions are timing-free if those
    of the policies are.

    Args:
        policies: A spec for each axis.
        batch: The most that run together; None leaves it to the schedule.
        chunk: The most prompt tokens of a step; None takes prompts whole.

    Raises:
        InputError: The schedule batches by itself.
    """
    found = dict(policies)
    if batch is None and chunk is None:
        return found
    schedule = found["schedule"]
    if "max_batch" in registry.options(registry.parse("schedule", schedule).cls):
        given = f"--batch {batch}" if batch is not None else f"--chunk {chunk}"
        raise InputError(f"{given}: the schedule {schedule} forms its batches; change its options")
    options = f"max_batch={batch or 1}" + ("" if chunk is None else f",chunk={chunk}")
    found["schedule"] = f"fcfs:{options}/{schedule}"
    return found


def arrivals_for(policies: Mapping[Axis, str], requests: int) -> Arrivals:
    """Return when prompts arrive: all at once where they are served together, else in turn."""
    batch, _ = batching_of(registry.parse("schedule", policies["schedule"]))
    return OpenLoop([0] * requests) if batch > 1 else Users(1, requests)
