"""What parts a run from the bound on its span."""

from dataclasses import dataclass

from moesim.simulator.errors import BooksError
from moesim.simulator.ledger import Timings
from moesim.simulator.limits.bounds import Bounds

__all__ = ["Distance", "split"]


@dataclass(frozen=True, slots=True)
class Distance:
    """By how much a run is longer than its bound, and why; the parts add up to it exactly.

    What host and kernels do beyond their floors may hide behind other work: these two parts are the
    most that they can account for, in that order, once idle time is counted off, and waiting is
    what nobody accounts for.

    Attributes:
        gap_ns: Span minus the bound on it.
        transfer_ns: How much the bound grows if it is given the bytes that were copied in place of
            those that must be: what moving more than necessary costs where nothing hides it.
        host_ns: Work of the host beyond its floor: decisions, launches, issues of more copies.
        contention_ns: What kernels lost because copies ran beside them.
        idle_ns: Nobody was there to be served, or who was there was not let in.
        waiting_ns: The rest: copies that began too late, work that waited for its turn.
    """

    gap_ns: int
    transfer_ns: int
    host_ns: int
    contention_ns: int
    idle_ns: int
    waiting_ns: int


def split(timings: Timings, limit: Bounds) -> Distance:
    """Return what parts a run from its bound.

    Raises:
        BooksError: The run beats the bound: it is not within the bound's actions, or one of the two
            is wrong.
    """
    moved_bytes = timings.engine_bytes.get("h2d", 0)
    its_bytes_ns = limit.floor.time_ns(limit.link, moved_bytes, prefetch=limit.actions.prefetch)
    if moved_bytes < limit.bytes_min or timings.span_ns < its_bytes_ns:
        raise BooksError(
            f"a run of {timings.span_ns} ns and {moved_bytes} bytes beats the bounds for "
            f"{limit.actions}: {its_bytes_ns} ns and {limit.bytes_min} bytes"
        )
    left_ns = timings.span_ns - its_bytes_ns
    idle_ns = min(left_ns, timings.idle_ns)
    left_ns -= idle_ns
    extra_ns = timings.host_busy_ns - limit.host_floor_ns
    if limit.decides_on_gpu:
        extra_ns += timings.decision_ns
    host_ns = min(left_ns, max(0, extra_ns))
    left_ns -= host_ns
    contention_ns = min(left_ns, timings.slow_down_ns)
    return Distance(
        gap_ns=timings.span_ns - limit.span_ns,
        transfer_ns=its_bytes_ns - limit.span_ns,
        host_ns=host_ns,
        contention_ns=contention_ns,
        idle_ns=idle_ns,
        waiting_ns=left_ns - contention_ns,
    )
