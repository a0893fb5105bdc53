"""Serving several prompts together: the guard that forms the batches, and what arrives when."""

from collections.abc import Mapping, Sequence

from moesim.simulator import registry
from moesim.simulator.errors import CapabilityError, InputError
from moesim.simulator.policies.batching import ELASTIC
from moesim.simulator.registry import Axis
from moesim.simulator.serving.arrivals import Arrivals, OpenLoop, Users
from moesim.simulator.serving.recorded import RecordedRequests
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace


def batched(policies: Mapping[Axis, str], batch: int | None, chunk: int | None) -> dict[Axis, str]:
    """Return policies whose schedule serves so many requests together, first come first served.

    Where all arrive at once, whom it serves depends on no time: decisions are timing-free if those
    of the policies are.

    Args:
        policies: A spec for each axis.
        batch: The most that run together; None leaves it to the schedule.
        chunk: The most prompt tokens of a step; None takes prompts whole.

    Raises:
        InputError: The schedule batches by itself.
        CapabilityError: A policy sees the future.
    """
    found = dict(policies)
    if batch is None and chunk is None:
        return found
    schedule = found["schedule"]
    given = f"--max-batch {batch}" if batch is not None else f"--chunk {chunk}"
    if forms_batches(policies):
        raise InputError(f"{given}: the schedule {schedule} forms its batches; change its options")
    options = f"max_batch={batch or 1}" + ("" if chunk is None else f",chunk={chunk}")
    found["schedule"] = f"fcfs:{options}/{schedule}"
    check_future(found)
    return found


def forms_batches(policies: Mapping[Axis, str]) -> bool:
    """Return whether the schedule says who is served together."""
    return "max_batch" in registry.options(registry.parse("schedule", policies["schedule"]).cls)


def check_future(policies: Mapping[Axis, str]) -> None:
    """Refuse a policy that would be told of other steps than those that are formed.

    Raises:
        CapabilityError: It sees the future, and the schedule forms batches.
    """
    for axis in registry.AXES:
        spec = registry.parse(axis, policies[axis])
        if "future" in spec.needs and forms_batches(policies):
            raise CapabilityError(
                f"{spec.text} sees the future of requests that are served one after another; "
                "serve them so, without --max-batch and --chunk"
            )


def check_room(policies: Mapping[Axis, str]) -> None:
    """Refuse a schedule that trades room for experts against KV caches, whose room is laid out.

    Raises:
        CapabilityError: It does.
    """
    spec = registry.parse("schedule", policies["schedule"])
    if spec.all_options.get("kv") == ELASTIC:
        raise CapabilityError(
            f"{spec.text}: a live model keeps the room that experts and KV caches began with; "
            "leave out kv=elastic"
        )


def arrivals_for(policies: Mapping[Axis, str], requests: int) -> Arrivals:
    """Return when prompts arrive: all at once where the schedule forms batches, else in turn."""
    return OpenLoop([0] * requests) if forms_batches(policies) else Users(1, requests)


def workload_for(
    policies: Mapping[Axis, str],
    trace: RoutingTrace,
    *,
    signals: Sequence[str] = (),
    gates: bool = False,
) -> Workload:
    """Return the requests of a trace as a replay of an execution serves them."""
    kind = RecordedRequests if forms_batches(policies) else Workload
    return kind(trace, signals=signals, gates=gates)
