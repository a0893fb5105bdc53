"""LRU's hits at every size, counted by loops: for long traces, where numba is installed.

Every touch takes the next *seat*, and the expert's seat before is given up. How many seats are
taken after that one is its distance, which a tree of partial sums tells in a few steps (Fenwick
1994). When all seats have been used the experts move to the front ones, in their order.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.engines.compiled.jit import entry, jit
from moesim.simulator.engines.compiled.layout import Ints, Shorts

# V events; U uses; X experts; M seats; S sizes.

_SEATS_OF_EXPERT = 4
_NEXT, _KNOWN = range(2)


class TouchTree(NamedTuple):
    """The order in which a cache's experts were touched last.

    Attributes:
        seat_X: The seat of each expert, -1 before its first touch.
        owner_M: Who took each seat last.
        taken_M1: The tree: how many of some seats, up to this one, are taken.
        state_2: The next seat, and how many experts have one.
    """

    seat_X: Ints
    owner_M: Ints
    taken_M1: Ints
    state_2: Ints


def touch_tree(everyone: int, cached: int) -> TouchTree:
    """Return the order of a cache for so many experts, numbered among everyone's; none is known."""
    seats = _SEATS_OF_EXPERT * cached
    return TouchTree(
        np.full(everyone, -1, np.int64),
        np.zeros(seats, np.int64),
        np.zeros(seats + 1, np.int64),
        np.zeros(2, np.int64),
    )


@entry(allocates=False)
def count_uses(
    tree: TouchTree,
    begins_V1: Ints,
    touched_U: Shorts,
    is_decode_V: NDArray[np.bool_],
    first: int,
    stride: int,
    hits_S: Ints,
    decode_hits_S: Ints,
) -> tuple[int, int, int]:
    """Add the uses of every so many-th event to the hits by distance.

    Args:
        tree: What the events before have left; changed.
        begins_V1: First use of each event, and the number of all.
        touched_U: Experts of each event in the order of their last touch.
        is_decode_V: Whether the event's step has no prompt tokens.
        first: The first event to count.
        stride: From one to the next.
        hits_S: Uses at each distance; added to.
        decode_hits_S: Those of decode events.

    Returns:
        The uses, those of decode events, and the most of one event.
    """
    seat_X, owner_M, taken_M1, state = tree
    seats = len(owner_M)
    uses, decode_uses, largest = 0, 0, 0
    for event in range(first, len(is_decode_V), stride):
        begins, ends = begins_V1[event], begins_V1[event + 1]
        uses += ends - begins
        largest = max(largest, ends - begins)
        if is_decode_V[event]:
            decode_uses += ends - begins
        if state[_NEXT] + ends - begins > seats:
            _move_up(seat_X, owner_M, taken_M1, state)
        for at in range(begins, ends):
            seat = seat_X[touched_U[at]]
            if seat < 0:
                continue
            distance = state[_KNOWN] + 1
            place = seat + 1
            while place > 0:
                distance -= taken_M1[place]
                place &= place - 1
            hits_S[distance] += 1
            if is_decode_V[event]:
                decode_hits_S[distance] += 1
        for at in range(begins, ends):
            expert = touched_U[at]
            if seat_X[expert] < 0:
                state[_KNOWN] += 1
            else:
                _add(taken_M1, seat_X[expert], -1)
            seat = state[_NEXT]
            seat_X[expert] = seat
            owner_M[seat] = expert
            _add(taken_M1, seat, 1)
            state[_NEXT] = seat + 1
    return uses, decode_uses, largest


@jit
def _add(taken_M1: Ints, seat: int, number: int) -> None:
    place = seat + 1
    while place < len(taken_M1):
        taken_M1[place] += number
        place += place & -place


@jit
def _move_up(seat_X: Ints, owner_M: Ints, taken_M1: Ints, state: Ints) -> None:
    """Let the experts take the first seats, in their order."""
    after = 0
    for seat in range(state[_NEXT]):
        expert = owner_M[seat]
        if seat_X[expert] == seat:
            seat_X[expert] = after
            owner_M[after] = expert
            after += 1
    state[_NEXT] = after
    for place in range(1, len(taken_M1)):
        lowest = place - (place & -place)
        taken_M1[place] = max(min(place, after) - lowest, 0)
