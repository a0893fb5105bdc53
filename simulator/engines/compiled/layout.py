"""What the compiled loops read and write: a few tables of numbers, and names for their columns.

Few tables, since numba compiles every function that is passed a table for each of its numbers.
Numbers are int64 unless said otherwise. Experts are numbered as everywhere; -1 is none. Copies and
kernels are numbered from 1 in the order in which they are handed over: both queues are FIFOs, so
that "wait for these copies" is "wait for the last of them".
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# N events, one for each MoE layer of each step; U uses, one for each distinct expert of each event;
# S steps; L MoE layers; X = L * E experts of the model; P pools of the cache; K keys of shelves;
# C classes of layers of equal cost; G different lengths of step; T tokens; W wishes; J jobs kept.

Ints = NDArray[np.int64]
Shorts = NDArray[np.int32]
Floats = NDArray[np.float64]
Number = Any
"""An int64, taken from a table or computed; numba gives it its type."""

LRU, FIFO, LFU, LFRU, BELADY, LCP, PASSING = range(7)
"""Cache policies. PASSING keeps what lay there before the run and stages everything else."""

ABSENT, CACHED, STAGED, LEAVING = range(4)
"""Where an expert has room; LEAVING is staged until its copy has ended."""

# What functions are passed are typed numbers: numba compiles them anew for every plain one.
COPY, RUN, LAYER, FORM = (np.int64(number) for number in range(4))
"""Commands."""

DENSE, EXPERTS, HEAD, DECIDE = (np.int64(number) for number in range(4))
"""Kinds of kernels."""

DEMAND, PREFETCH = (np.int64(number) for number in range(2))
"""Why an expert is copied."""

ZERO, ONE = np.int64(0), np.int64(1)

TOO_SMALL, STUCK = range(1, 3)
"""Faults: a pool that cannot hold what it must; a host that waits for nothing."""

FOREVER = np.int64(1 << 62)


class Run(NamedTuple):
    """One run: the trace (read, shared among runs), the costs (read), and all that changes.

    The experts of an event stand in ``expert_U`` by first occurrence. ``detail_U3`` has their
    tokens, and the experts again by last occurrence with their place among the event's touches.
    Where every step has one token these are all one and ``detail_U3`` is empty.
    """

    begins_N1: Ints
    expert_U: Shorts
    detail_U3: Shorts
    next_use_U: Shorts  # the next event of an expert, by last occurrence; N if there is none
    wish_begins: Ints  # of each call: at the beginning of a step, then after each layer
    wished_W: Shorts
    attention_GC: Ints
    expert_CT: Ints
    steps: Ints
    layers: Ints
    experts: Shorts  # and after them the shelves on which they stand, pool by pool; ``shelves.py``
    last_use_X: Ints  # BELADY, LFRU, LCP: clock of the last use
    rest: Ints
    pools: Ints  # those of the cache, then the staging room
    marks: Ints
    scores: Floats  # LCP's and LFRU's; see ``priorities.py`` and ``lfru.py``
    lists: Ints
    commands: Ints
    copies: Ints
    kernels: Ints
    state: Ints


TOKENS, TOUCHED, PLACE, DETAIL_COLUMNS = range(4)
"""Columns of ``detail_U3``."""

COST_ROW, GIVES, IS_PREFILL, BEGAN, ENDED, STEP_COLUMNS = range(6)
"""Columns of ``steps``: what is read, then when it began and ended, which is written."""

(
    SIZE,
    POOL,
    CLASS,
    COPY_NS,
    COPY_AFTER_IDLE_NS,
    COPY_AFTER_PAUSE_NS,
    WISH_FIRST,  # of the ring of wishes for this layer
    WISH_LAST,
    CHOICES,  # LCP: of tokens so far
    LAYER_COLUMNS,
) = range(10)
"""Columns of ``layers``."""

(
    ROOM,
    LOADING,  # the place of the copy that brings it in ``copies``, from 1 on, or 0
    LEASED_BY,  # the run of this event that uses it, 0 until that is handed over, -1 if none
    IS_UNUSED,  # prefetched and not demanded
    YOUNGER,  # its neighbours on its shelf
    OLDER,
    KEY,  # LFU, LFRU: its shelf's, -1 if it stands on none; BELADY: the next event that demands it
    OF_LAYER,
    EXPERT_COLUMNS,
) = range(9)
"""Columns of ``experts``: half a cache line, since most accesses are to one not in the cache."""

(
    USES,
    SERVES,  # tokens of the present event
    CAME,  # with prefetch: when it was given its room
    STAGED_AT,
    IS_WISHED,
    REST_COLUMNS,
) = range(6)
"""Columns of ``rest``: what fewer accesses look at."""

FREE_BYTES, LEAST_FREE_BYTES, OLDEST_USE, HIGHEST_KEY, POOL_COLUMNS = range(5)
"""Columns of ``pools``; LFRU's are OLDEST_USE, at or before every last use, and HIGHEST_KEY."""

LEASES, STAGED_ONES, WISHED, HERE, ON_ITS_WAY, MISSING, WAITING, LISTS = range(8)
"""Rows of ``lists``: experts leased, staged, wished for (a ring of E for each layer); then scratch
of one event: hits, late ones, misses, and misses that wait for room."""

OP, COUNT, COMMAND_COLUMNS = range(3)
"""Columns of ``commands``: so many of a kind, one after another; of a layer its number. Copies and
runs stand where they are kept when they have been handed over."""

EXPERT, ISSUED, AFTER, BEGINS, ENDS, COPY_COLUMNS = range(6)
"""Columns of ``copies``."""

KIND, KERNEL_ISSUED, KERNEL_AFTER, NS, KERNEL_ENDS, SERVED, KERNEL_COLUMNS = range(7)
"""Columns of ``kernels``; SERVED is a run's number of experts."""

LEVELS_AT_MOST = 8

(
    # what was chosen
    POLICY,
    COUNTS_FOR_LIFE,
    IS_ON_DEMAND,
    WINDOW_BYTES,
    PREFETCHES,
    IS_PLAIN,
    EVENTS,
    LAYERS,
    WIDTH,  # experts of a layer
    EVERYONE,  # experts of the model
    STAGING,  # the pool's number
    RING,  # jobs kept less one, a power of two less one
    KEYS,
    MARKS_OF_POOL,
    LEVELS,
    # what things cost
    EXPERTS_FIXED_NS,
    HEAD_NS,
    LAUNCH_LAYER_NS,
    LAUNCH_RUN_NS,
    LAUNCH_PER_EXPERT_NS,
    LAUNCH_PROMPT_LAYER_NS,
    LAUNCH_PROMPT_EXPERT_NS,
    LAUNCH_PROMPT_RUN_NS,
    ISSUE_NS,
    READING_NS,
    DECISION_NS,
    DECISION_PER_EXPERT_NS,
    DECISION_PER_COMMAND_NS,
    PAUSE_NS,
    SLOW_DOWN_PPM,
    RUN_WHILE_COPYING_NS,
    RUN_AFTER_COPY_NS,
    BLOCKS,
    DECIDES_ON_GPU,
    # where the run stands
    NOW,
    FREE,  # when the host has issued all that it was told to
    LAUNCHED,  # the attention or head launched last
    COMMANDS,  # of this answer, and how many kinds one after another
    KINDS,
    NUMBERED,  # copies given a number
    RUNS,  # runs of this answer
    COPIES,  # submitted; then those whose times are certain, and those reported ended
    COPIES_CERTAIN,
    COPIES_REPORTED,
    LINK_FREE,
    LOOKED_AT,  # the first copy that may yet slow a kernel down
    KERNELS,
    KERNELS_SETTLED,
    GPU_FREE,
    LOOKS_AT,  # when the kernel in turn begins, if that is a question; else -1
    QUEUED_BYTES,
    LEASED,
    STAGED_EXPERTS,
    WISHES,
    EVENT,
    LAYER_NOW,
    CLOCK,  # touches so far
    UNUSED,
    FAULT,
    # what is measured and counted
    SLOW_DOWN,
    HOST_BUSY,
    LINK_BUSY,
    LINK_BYTES,
    DECIDING,
    STEPS,
    OUTPUT_TOKENS,
    DEMANDED,
    HITS,
    LATE,
    MISSES,
    DECODE_DEMANDS,
    DECODE_HITS,
    EVICTIONS,
    WAVES,
    BYTES_INITIAL,
    BYTES_DEMAND,
    BYTES_USEFUL,
    BYTES_LATE,
    BYTES_WASTED,
    GPU_BUSY,  # of each kind of kernel, from here on
) = range(80)
"""Places in ``state``."""

LEVEL = GPU_BUSY + 4
"""Of the marks: where each level begins and its words, by turns, from this place on."""

STATE = LEVEL + 2 * LEVELS_AT_MOST
