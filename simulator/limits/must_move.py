"""How many bytes no cache can avoid copying, given all that will be demanded.

An expert that is demanded, and demanded again later, either kept its room in between or is copied
again. Call the time between two demands of one expert a *stay*. What had room between two events
fits into the cache, so a run saves at most the heaviest choice of stays of which those that span
any one gap between events fit together. Nothing else is asked of a stay: the members of an event
may leave as soon as it is over, and an expert that only passes through needs no room. Every cache
of that size, staging included, moves at least what this choice leaves.

Stays are chosen as Belady would, with bypass: whenever too much wants to stay, what is needed last
leaves. Stays of one weight on a line, so many side by side: giving up the one that ends last is
optimal (Carlisle and Lloyd 1995). An expert of b bytes is b stays of one byte, so with unequal
sizes, or room that is no multiple of the size, the same rule solves the relaxation in which any
share of an expert may stay: a lower bound, and for equal sizes in whole slots the minimum itself.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from heapq import heappop, heappush
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

# N uses: one for each distinct expert of each event, events in order.


Whole = Any
"""Whole numbers, one for each place: an array where it is compiled, else a list."""

COMPILED_FROM_USES = {True: 20_000, False: 1_000_000}
"""So many are counted compiled, by whether numba is loaded: fewer are done before it is ready."""


@dataclass(frozen=True)
class Uses:
    """What is demanded, flat.

    Attributes:
        expert_N: int32 expert, ``layer * E + expert``.
        event_N: int32 number of the event, never decreasing.
        size_N: int32 or int64 bytes of the expert.
        counts_N: Whether a copy for this use counts. One that does not is for free, and its expert
            may stay from there on like any other.
    """

    expert_N: NDArray[Any]
    event_N: NDArray[Any]
    size_N: NDArray[Any]
    counts_N: NDArray[np.bool_]

    def window(self, part: slice) -> "Uses":
        """Return some of the uses as views."""
        return Uses(self.expert_N[part], self.event_N[part], self.size_N[part], self.counts_N[part])

    @cached_property
    def stays(self) -> "Stays":
        """Return what could stay."""
        return Stays.of(self)


@dataclass(frozen=True, slots=True)
class Stays:
    """What could stay, whatever the room; G events.

    Attributes:
        wanted_bytes: Bytes of all uses that count.
        size_N: Bytes of each use's expert.
        use_begins_G1: First use of each event that has any, and the number of all.
        end_N: The use until which the expert of each use might stay, N where none counts.
        warm_ends: Likewise for what might be there at the beginning.
    """

    wanted_bytes: int
    size_N: NDArray[np.int64]
    use_begins_G1: NDArray[np.int64]
    end_N: NDArray[np.int64]
    warm_ends: NDArray[np.int64]

    @classmethod
    def of(cls, uses: Uses) -> "Stays":
        """Return what could stay."""
        next_N, is_first_N = _next_uses(uses.expert_N)
        counts_N1 = np.append(uses.counts_N, False)
        return cls(
            wanted_bytes=int(uses.size_N[uses.counts_N].sum(dtype=np.int64)),
            size_N=uses.size_N.astype(np.int64),
            use_begins_G1=np.flatnonzero(np.diff(uses.event_N, prepend=-1, append=-1)),
            end_N=np.where(counts_N1[next_N], next_N, len(next_N)),
            warm_ends=np.flatnonzero(is_first_N & uses.counts_N),
        )


def must_move_bytes(uses: Uses, room_bytes: int, *, warm: bool = False) -> int:
    """Return the least bytes of all copies whose use counts, in O(N log N).

    Args:
        uses: What is demanded.
        room_bytes: Room for experts between two events.
        warm: Whether the cache may hold at the beginning whatever serves best; else it is empty.
    """
    stays = uses.stays
    use_begins_G1, stay_begins_G1, end_N = stays.use_begins_G1, stays.use_begins_G1, stays.end_N
    if warm:  # an event before all others, which ends nothing
        more = len(stays.warm_ends)
        end_N = np.append(stays.warm_ends, end_N)
        use_begins_G1 = np.append(0, use_begins_G1)
        stay_begins_G1 = np.append(0, stay_begins_G1 + more)
    arrays = (end_N, stay_begins_G1, use_begins_G1, stays.size_N)
    if is_worth_compiling(len(stays.end_N)):
        saved_bytes = _compiled_saving()(*arrays, np.zeros_like(stays.size_N), room_bytes)
    else:
        ends, stay_begins, use_begins, sizes = (array.tolist() for array in arrays)
        saved_bytes = _saving(ends, stay_begins, use_begins, sizes, [0] * len(sizes), room_bytes)
    return stays.wanted_bytes - int(saved_bytes)


def is_worth_compiling(uses: int) -> bool:
    """Whether so many uses are counted faster compiled; the figures are the same."""
    is_loaded = "numba" in sys.modules
    return uses >= COMPILED_FROM_USES[is_loaded] and find_spec("numba") is not None


@cache
def _compiled_saving() -> Callable[..., int]:
    from moesim.simulator.engines.compiled.jit import entry  # noqa: PLC0415  numba takes 0.4 s

    return entry()(_saving)


def _saving(
    end_N: Whole,
    stay_begins_G1: Whole,
    use_begins_G1: Whole,
    size_N: Whole,
    staying_N: Whole,
    room_bytes: int,
) -> int:
    """Return the most bytes of counted uses that can have stayed since the use before.

    ``staying_N`` are zeros: the bytes that stay until each use.
    """
    total = len(size_N)
    # Minus the end of each stay, so that the latest is first; those that are over sink.
    latest_first = [-total][:0]
    used_bytes = saved_bytes = 0
    for event in range(len(use_begins_G1) - 1):
        for use in range(use_begins_G1[event], use_begins_G1[event + 1]):
            used_bytes -= staying_N[use]
            saved_bytes += staying_N[use]
        for stay in range(stay_begins_G1[event], stay_begins_G1[event + 1]):
            end = end_N[stay]
            if end < total:
                staying_N[end] = size_N[end]
                used_bytes += size_N[end]
                heappush(latest_first, -end)
        while used_bytes > room_bytes:
            last = -latest_first[0]
            given_up = min(staying_N[last], used_bytes - room_bytes)
            staying_N[last] -= given_up
            used_bytes -= given_up
            if staying_N[last] == 0:
                heappop(latest_first)
    return saved_bytes


def _next_uses(expert_N: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the next use of the same expert, N where there is none, and which uses are first."""
    order = np.argsort(expert_N, kind="stable")
    again = expert_N[order][1:] == expert_N[order][:-1]
    next_N = np.full(len(expert_N), len(expert_N), np.int64)
    next_N[order[:-1][again]] = order[1:][again]
    is_first_N = np.ones(len(expert_N), np.bool_)
    is_first_N[order[1:][again]] = False
    return next_N, is_first_N
