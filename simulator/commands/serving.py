"""How the options of serving become a schedule that forms batches, and who arrives."""

from collections.abc import Sequence

from moesim.simulator import registry
from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.policies.batching import Batching
from moesim.simulator.serving.spec import Serving, parse_slo

__all__ = ["choose_serving"]

DEFAULT_BATCHING = "fcfs"


def choose_serving(
    schedule: str,
    *,
    arrivals: str | None,
    requests: int | None = None,
    batching: str | None = None,
    max_batch: int | None = None,
    chunk: int | None = None,
    slo: Sequence[str] = (),
    max_waiting: int | None = None,
    kv: str | None = None,
    kv_reserve: str | None = None,
) -> tuple[str, Serving | None]:
    """Return the schedule, batching around it, and how the run is served.

    Args:
        schedule: The schedule policy that was chosen; one that forms batches itself stays as it is.
        arrivals: Spec of who arrives; None serves one recorded request after another.
        requests: How many of them.
        batching: Request scheduler to put around the schedule.
        max_batch: Its option.
        chunk: Its option.
        slo: What is promised to requests.
        max_waiting: Requests that may wait at a time.
        kv: VRAM for KV caches; whoever divides VRAM reads it.
        kv_reserve: What of its KV cache a request reserves.

    Raises:
        InputError: An option has no meaning beside the others.
    """
    given = {
        "--batching": batching,
        "--max-batch": max_batch,
        "--chunk": chunk,
        "--slo": slo or None,
        "--max-waiting": max_waiting,
        "--kv": kv,
        "--kv-reserve": kv_reserve,
    }
    if arrivals is None:
        for option, value in given.items():
            if value is not None:
                raise InputError(f"{option} is for requests that arrive; add --arrivals")
        return schedule, None
    if issubclass(registry.parse("schedule", schedule).cls, Batching):
        for option in ("--batching", "--max-batch", "--chunk"):
            if given[option] is not None:
                raise InputError(f"{option}: --schedule {schedule} forms batches itself")
    else:
        schedule = _around(schedule, batching or DEFAULT_BATCHING, max_batch, chunk)
    serving = Serving(
        arrivals,
        requests,
        most_waiting=max_waiting,
        reserve=kv_reserve or "whole",
        slo=parse_slo(slo),
    )
    return schedule, serving


def _around(schedule: str, batching: str, max_batch: int | None, chunk: int | None) -> str:
    """Return the spec of a request scheduler around a schedule."""
    if "/" in batching:
        raise InputError(f"--batching {batching}: what is inside is --schedule's to say")
    name = registry.name_of(batching)
    known = [one for one in registry.names("schedule") if _forms_batches(one)]
    if name not in known and not (":" in name and _forms_batches(name)):
        raise UnknownNameError("batching", name, known)
    extra = [
        f"{option}={value}"
        for option, value in (("max_batch", max_batch), ("chunk", chunk))
        if value is not None
    ]
    joined = ",".join(extra)
    if joined:
        joined = f",{joined}" if ":" in batching else f":{joined}"
    return f"{batching}{joined}/{schedule}"


def _forms_batches(name: str) -> bool:
    return issubclass(registry.find("schedule", name), Batching)
