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

from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# N uses: one for each distinct expert of each event, events in order.


@dataclass(frozen=True, slots=True)
class Uses:
    """What is demanded, flat: 13 bytes for each distinct expert of each event.

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


def must_move_bytes(uses: Uses, room_bytes: int, *, warm: bool = False) -> int:
    """Return the least bytes of all copies whose use counts, in O(N log N).

    Args:
        uses: What is demanded.
        room_bytes: Room for experts between two events.
        warm: Whether the cache may hold at the beginning whatever serves best; else it is empty.
    """
    wanted_bytes = int(uses.size_N[uses.counts_N].sum(dtype=np.int64))
    return wanted_bytes - _saved_bytes(uses, room_bytes, warm=warm)


def _saved_bytes(uses: Uses, room_bytes: int, *, warm: bool) -> int:
    """Return the most bytes of counted uses that can have stayed since the use before."""
    next_N, is_first_N = _next_uses(uses.expert_N)
    counts_N1 = np.append(uses.counts_N, False)
    total = len(next_N)
    ends = np.where(counts_N1[next_N], next_N, total).tolist()  # of the stay from each use on
    sizes = uses.size_N.tolist()
    staying = [0] * total  # bytes that stay until a use
    latest_first: list[
        int
    ] = []  # minus the end of each stay; those that are over sink to the bottom
    used_bytes = saved_bytes = 0

    def begin_stays(ends: list[int]) -> None:
        nonlocal used_bytes
        for end in ends:
            if end < total:
                staying[end] = sizes[end]
                used_bytes += sizes[end]
                heappush(latest_first, -end)
        while used_bytes > room_bytes:
            last = -latest_first[0]
            given_up = min(staying[last], used_bytes - room_bytes)
            staying[last] -= given_up
            used_bytes -= given_up
            if not staying[last]:
                heappop(latest_first)

    if warm:
        begin_stays(np.flatnonzero(is_first_N & uses.counts_N).tolist())
    events = np.flatnonzero(np.diff(uses.event_N, prepend=-1, append=-1)).tolist()
    for begin, end in pairwise(events):
        stayed_bytes = sum(staying[begin:end])
        used_bytes -= stayed_bytes
        saved_bytes += stayed_bytes
        begin_stays(ends[begin:end])
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
