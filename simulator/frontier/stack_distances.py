"""How large a cache must be for each use to hit: one number per use gives every size at once.

A *stack policy* keeps in a cache of any size what it keeps in every smaller one, so all sizes are
one ordering of the experts (Mattson, Gecsei, Slutz and Traiger 1970); a use hits if the expert's
place in it, its *distance*, is within the cache. That holds by event as it does by access: all of
an event is touched before the first victim is chosen and nothing of it leaves before its end, so a
cache of C slots keeps the D members of an event and the C - D best others, by an order in which C
does not occur. LRU orders by the last touch, LFU with lifetime counts by uses, Belady by the next
use. It holds for experts of one size, admitted whenever copied, in caches of D slots or more for
the largest event: below, an event takes waves, in which its own members leave, and `waved_hits`
replays LRU size by size.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces import RoutingTrace

# T tokens, L MoE layers, E experts of a layer, K chosen; V events; N uses: one for each distinct
# expert of each event, events in order.

Array = NDArray[Any]

NEVER = np.iinfo(np.int32).max
"""Distance of an expert's first use: no cache hits it."""

CHUNK_USES = 192

_UNTOUCHED = np.iinfo(np.int32).min


@dataclass(frozen=True)
class EventUses:
    """What is demanded, event by event, about 100 bytes for each use.

    Attributes:
        by_first_N: Experts of each event in the order of their first touch.
        by_last_N: The same experts in the order of their last touch.
        begin_V1: First use of each event, and the number of all.
        is_decode_V: Whether the event's step has no prompt tokens.
    """

    by_first_N: Array
    by_last_N: Array
    begin_V1: Array
    is_decode_V: NDArray[np.bool_]

    @property
    def largest(self) -> int:
        """Distinct experts of the largest event."""
        return int(np.diff(self.begin_V1).max(initial=0))

    @cached_property
    def event_N(self) -> Array:
        """Return the event of each use."""
        return np.repeat(np.arange(len(self.is_decode_V)), np.diff(self.begin_V1))

    @cached_property
    def is_decode_N(self) -> NDArray[np.bool_]:
        """Return whether each use is of a decode event."""
        return self.is_decode_V[self.event_N]

    def of_layer(self, layer: int, layers: int) -> "EventUses":
        """Return the events of one layer, every ``layers``-th."""
        is_here_N = self.event_N % layers == layer
        lengths_V = np.diff(self.begin_V1)[layer::layers]
        return EventUses(
            self.by_first_N[is_here_N],
            self.by_last_N[is_here_N],
            np.append(0, np.cumsum(lengths_V)),
            self.is_decode_V[layer::layers],
        )


def event_uses(trace: RoutingTrace) -> EventUses:
    """Return what a trace demands, its requests one after another; a token's gap demands nothing.

    Experts are numbered ``layer * E + expert``; event ``step * L + layer``.
    """
    begins_step_T = np.ones(trace.tokens, np.bool_)
    step_T, request_T = np.asarray(trace.step_T), np.asarray(trace.request_T)
    begins_step_T[1:] = (np.diff(step_T) != 0) | (np.diff(request_T) != 0)
    number_T = np.cumsum(begins_step_T) - 1
    events = (int(number_T[-1]) + 1) * trace.layers
    expert_TLK = np.asarray(trace.expert_TLK).astype(np.int64)
    layer_L = np.arange(trace.layers)
    event_TL = number_T[:, None] * trace.layers + layer_L
    is_there_TL = (expert_TLK >= 0).all(axis=2)
    # One key for each touch: by event, then by expert. Touches of an event go by token and rank.
    key_TLK = event_TL[:, :, None] * trace.experts + expert_TLK
    key_M = key_TLK[is_there_TL].reshape(-1)
    key_M = key_M[np.argsort(key_M // trace.experts, kind="stable")]
    first_N = np.sort(np.unique(key_M, return_index=True)[1])
    last_N = np.sort(len(key_M) - 1 - np.unique(key_M[::-1], return_index=True)[1])

    def experts_of(key_N: Array) -> Array:
        event_N, expert_N = np.divmod(key_N, trace.experts)
        return (event_N % trace.layers * trace.experts + expert_N).astype(np.int32)

    lengths_V = np.bincount(key_M[first_N] // trace.experts, minlength=events)
    is_decode_S = ~np.asarray(trace.is_prefill_T)[begins_step_T]
    return EventUses(
        experts_of(key_M[first_N]),
        experts_of(key_M[last_N]),
        np.append(0, np.cumsum(lengths_V)),
        np.repeat(is_decode_S, trace.layers),
    )


def lru_distances(uses: EventUses) -> Array:
    """Return the distance of each use (in ``by_last_N`` order) under LRU: distance_N.

    It is 1 and the distinct experts touched since the expert's last touch and before the event.
    """
    return LruStack(int(uses.by_last_N.max(initial=0)) + 1).distances(uses)


class LruStack:
    """The distances of uses that come in portions of whole events.

    They are counted in chunks of events, each use of a chunk against all of it at once.

    Args:
        experts: How many there are.
    """

    def __init__(self, experts: int) -> None:
        # Last touches as places among the uses of the portion; those before it lie below 0, and of
        # them the order counts alone.
        self._last_touch_X = np.full(experts, _UNTOUCHED, np.int32)

    def distances(self, uses: EventUses) -> Array:
        """Return the distance of each use (in ``by_last_N`` order) of the next portion."""
        previous_N, next_N = _neighbours(uses.by_last_N)
        last_touch_X = self._last_touch_X
        is_first_N = previous_N < 0
        previous_N[is_first_N] = last_touch_X[uses.by_last_N[is_first_N]]
        start_N = uses.begin_V1[uses.event_N]
        distance_N = np.full(len(previous_N), NEVER, np.int32)
        for begin, end in _chunks(uses.begin_V1):
            part = slice(begin, end)
            here_B = np.arange(begin, end, dtype=np.int32)
            previous_B, start_B = previous_N[part], start_N[part].astype(np.int32)
            is_earlier_BB = here_B < start_B[:, None]
            is_last_BB = is_earlier_BB & (next_N[part] >= start_B[:, None])
            in_chunk_B = (is_last_BB & (here_B > previous_B[:, None])).sum(axis=1)
            # Those touched before the chunk alone, later than this expert.
            touched = np.sort(last_touch_X)
            before_B = len(touched) - np.searchsorted(touched, previous_B, side="right")
            again_BB = is_earlier_BB & (previous_N[part] < begin)
            before_B -= (again_BB & (previous_N[part] > previous_B[:, None])).sum(axis=1)
            distance_B = 1 + in_chunk_B + np.where(previous_B < begin, before_B, 0)
            distance_N[part] = np.where(previous_B == _UNTOUCHED, NEVER, distance_B)
            last_touch_X[uses.by_last_N[part]] = here_B
        known = np.flatnonzero(last_touch_X != _UNTOUCHED)
        in_order = known[np.argsort(last_touch_X[known])]
        last_touch_X[in_order] = np.arange(-len(in_order), 0)
        return distance_N


def lifetime_lfu_priorities(uses: EventUses) -> Array:
    """Return how much each expert is worth after each use to LFU that never forgets.

    More uses are worth more; among equals the later touched is.
    """
    order_N = np.argsort(uses.by_last_N, kind="stable")
    begins_N = np.flatnonzero(np.diff(uses.by_last_N[order_N], prepend=-1))
    lengths = np.diff(np.append(begins_N, len(order_N)))
    uses_N = np.empty(len(order_N), np.int64)
    uses_N[order_N] = np.arange(len(order_N)) - np.repeat(begins_N, lengths)
    return uses_N * len(order_N) + np.arange(len(order_N))


def belady_priorities(uses: EventUses) -> Array:
    """Return how much each expert is worth after each use to Belady: the sooner used, the more."""
    total = len(uses.by_last_N)
    next_N = _neighbours(uses.by_last_N)[1]
    next_event_N = np.append(uses.event_N, len(uses.is_decode_V))[next_N]
    return -next_event_N.astype(np.int64) * total + np.arange(total)


def priority_distances(uses: EventUses, priority_N: Array) -> Array:
    """Return the distance of each use under the policy that keeps what is worth most: distance_N.

    Mattson's update of the stack, 5 to 20 µs for each use; exact from the largest event on.

    Args:
        uses: What is demanded.
        priority_N: Worth of the expert from that use to its next; no two are equal.
    """
    distance_N = np.full(len(priority_N), NEVER, np.int32)
    room = int(uses.by_last_N.max(initial=0)) + 1
    stack = np.full(room, -1, np.int64)
    worth = np.zeros(room, np.int64)  # of each place of the stack
    depth = 0
    highest = np.iinfo(np.int64).max
    experts = uses.by_last_N.tolist()
    for begin, end in pairwise(uses.begin_V1.tolist()):
        members = experts[begin:end]
        places = [np.flatnonzero(stack[:depth] == expert) for expert in members]
        for at, found in enumerate(places):
            if len(found):
                distance_N[begin + at] = found[0] + 1
                worth[found[0]] = highest  # nothing of an event leaves before its end
        for expert in members:
            found = np.flatnonzero(stack[:depth] == expert)
            place = int(found[0]) if len(found) else depth
            depth += not len(found)
            above = worth[:place]
            falls = np.flatnonzero(above == np.minimum.accumulate(above))
            lands = np.append(falls[1:], place)[: len(falls)]
            stack[lands], worth[lands] = stack[falls], worth[falls]
            stack[0], worth[0] = expert, highest
        # The members are on top, the last first.
        worth[: end - begin] = priority_N[begin:end][::-1]
    return distance_N


def waved_hits(uses: EventUses, slots: int) -> Array:
    """Return the hits of each event under LRU in a cache of one size, waves included: hits_V.

    In an event larger than the cache the hits run first, then the misses in the order of their
    first touch, each in the room of the member that has run for longest.
    """
    ages: OrderedDict[int, None] = OrderedDict()  # oldest first
    hits_V = np.zeros(len(uses.is_decode_V), np.int64)
    first, last = uses.by_first_N.tolist(), uses.by_last_N.tolist()
    for event, (begin, end) in enumerate(pairwise(uses.begin_V1.tolist())):
        hits = [expert for expert in first[begin:end] if expert in ages]
        hits_V[event] = len(hits)
        if end - begin > slots:
            misses = [expert for expert in first[begin:end] if expert not in ages]
            kept = set([*hits, *misses][-slots:])
            ages = OrderedDict.fromkeys(e for e in last[begin:end] if e in kept)
            continue
        for expert in last[begin:end]:
            ages[expert] = None
            ages.move_to_end(expert)
        while len(ages) > slots:
            ages.popitem(last=False)
    return hits_V


def _neighbours(expert_N: Array) -> tuple[Array, Array]:
    """Return the use of the same expert before each use, -1 if none, and after, N if none."""
    order_N = np.argsort(expert_N, kind="stable")
    is_same = np.diff(expert_N[order_N]) == 0
    previous_N = np.full(len(expert_N), -1, np.int32)
    next_N = np.full(len(expert_N), len(expert_N), np.int32)
    previous_N[order_N[1:][is_same]] = order_N[:-1][is_same]
    next_N[order_N[:-1][is_same]] = order_N[1:][is_same]
    return previous_N, next_N


def _chunks(begin_V1: Array) -> Iterator[tuple[int, int]]:
    """Yield ranges of uses: whole events, about as many uses as make a chunk."""
    begin, total = 0, int(begin_V1[-1])
    while begin < total:
        at = int(np.searchsorted(begin_V1, begin + CHUNK_USES, side="right")) - 1
        end = int(begin_V1[at])
        if end <= begin:
            end = int(begin_V1[np.searchsorted(begin_V1, begin, side="right")])
        yield begin, end
        begin = end
