"""The cache policies: what a touch, an admission and an eviction change, and who is to leave.

Each is the policy of the same name in ``policies/cache/``; that file says what the rule is. LRU,
FIFO, LFU and LFRU keep experts on shelves (``shelves.py``) and differ in the key and in whether a
touch moves an expert. Touches of one event are told at once, by last occurrence, which comes to the
same.
"""

import numpy as np

from moesim.simulator.engines.compiled.jit import jit
from moesim.simulator.engines.compiled.layout import (
    BELADY,
    CLOCK,
    COUNTS_FOR_LIFE,
    FIFO,
    IS_PLAIN,
    KEY,
    LCP,
    LFRU,
    LFU,
    LRU,
    OF_LAYER,
    ONE,
    PASSING,
    PLACE,
    POLICY,
    POOL,
    PREFETCH,
    TOUCHED,
    USES,
    ZERO,
    Number,
    Run,
)
from moesim.simulator.engines.compiled.lfru import lowest_score
from moesim.simulator.engines.compiled.marks import next_marked, unmark
from moesim.simulator.engines.compiled.priorities import (
    enter,
    lowest_priority,
    offer,
    offer_leased,
    score,
    withdraw,
)
from moesim.simulator.engines.compiled.shelves import drop, first_evictable, is_empty, put, take


@jit
def touch(event: Number, layer: Number, run: Run) -> None:
    """Tell the policy all touches of an event."""
    policy = run.state[POLICY]
    if policy in (FIFO, PASSING):
        return
    if policy in (LCP, BELADY):
        score(event, layer, run)
        return
    begins, ends = run.begins_N1[event], run.begins_N1[event + 1]
    pool = run.layers[layer, POOL]
    is_plain = run.state[IS_PLAIN]
    if policy == LRU:
        for at in range(begins, ends):
            expert = np.int64(run.expert_U[at] if is_plain else run.detail_U3[at, TOUCHED])
            take(expert, run)
            put(pool, expert, ZERO, run)
        return
    for at in range(begins, ends):
        expert = np.int64(run.expert_U[at] if is_plain else run.detail_U3[at, TOUCHED])
        if policy == LFRU:
            place = at - begins if is_plain else run.detail_U3[at, PLACE]
            run.last_use_X[expert] = run.state[CLOCK] + place + 1
        uses = _uses(expert, run) + 1
        take(expert, run)
        put(pool, expert, uses, run)
    if policy == LFRU and ends > begins:
        run.state[CLOCK] += ends - begins if is_plain else run.detail_U3[ends - 1, PLACE] + 1


@jit
def _uses(expert: Number, run: Run) -> Number:
    """Return how often an expert has been used that stands on a shelf, or did before it left."""
    uses = np.int64(run.experts[expert, KEY])
    if run.state[COUNTS_FOR_LIFE] and uses < 0:
        return run.rest[expert, USES]
    return max(uses, ZERO)


@jit
def admit(expert: Number, cause: Number, run: Run) -> None:
    """Tell the policy that an expert has been given room; one in demand was touched before."""
    policy = run.state[POLICY]
    if policy in (LCP, BELADY):
        enter(expert, cause, run)
    elif policy == FIFO or (cause == PREFETCH and policy != PASSING):
        key = ZERO
        if policy in (LFU, LFRU):
            key = _uses(expert, run) if run.state[COUNTS_FOR_LIFE] else ONE
        if policy == LFRU:
            run.state[CLOCK] += 1
            run.last_use_X[expert] = run.state[CLOCK]
        put(run.layers[run.experts[expert, OF_LAYER], POOL], expert, key, run)


@jit
def forget(expert: Number, run: Run) -> None:
    """Tell the policy that an expert has left."""
    if run.state[POLICY] in (LCP, BELADY):
        withdraw(expert, run)
        return
    if run.state[COUNTS_FOR_LIFE]:
        run.rest[expert, USES] = run.experts[expert, KEY]
    drop(expert, run)


@jit
def copied(expert: Number, run: Run) -> None:
    """Tell the policy that an expert's copy has ended."""
    if run.state[POLICY] in (LCP, BELADY):
        offer(expert, run)


@jit
def released(layer: Number, run: Run) -> None:
    """Tell the policy that nothing uses the leased ones any more, all of one layer."""
    if run.state[POLICY] in (LCP, BELADY) and layer >= 0:
        offer_leased(layer, run)


@jit
def victim(pool: Number, run: Run) -> Number:
    """Return the expert of a pool to give up, or -1 if none may leave."""
    policy = run.state[POLICY]
    if policy == LFRU:
        return lowest_score(pool, run)
    if policy in (LCP, BELADY):
        return lowest_priority(pool, run)
    if policy != LFU:
        return first_evictable(pool, ZERO, run)
    key = next_marked(pool, ZERO, run)
    while key >= 0:
        expert = first_evictable(pool, key, run)
        if expert >= 0:
            return expert
        if is_empty(pool, key, run):
            unmark(pool, key, run)
        key = next_marked(pool, key + 1, run)
    return -1
