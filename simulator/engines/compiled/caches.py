"""The cache policies: what a touch, an admission and an eviction change, and who is to leave.

Each is the policy of the same name in ``policies/cache/``; that file says what the rule is. All of
them keep experts on shelves (``shelves.py``) and differ in the key and in whether a touch moves an
expert. Touches of one event are told at once, by last occurrence, which comes to the same.
"""

import numpy as np

from moesim.simulator.engines.compiled.jit import jit
from moesim.simulator.engines.compiled.layout import (
    BELADY,
    CLOCK,
    COUNTS_FOR_LIFE,
    EVENTS,
    FIFO,
    IS_PLAIN,
    KEY,
    LAST_USE,
    LCP,
    LFRU,
    LRU,
    OF_LAYER,
    PASSING,
    PLACE,
    POLICY,
    POOL,
    TOUCHED,
    UPCOMING,
    USES,
    ZERO,
    Number,
    Run,
)
from moesim.simulator.engines.compiled.lfru import lowest_score
from moesim.simulator.engines.compiled.priorities import lowest_priority, offer, score
from moesim.simulator.engines.compiled.shelves import drop, first_evictable, next_key, put


@jit
def touch(event: Number, layer: Number, run: Run) -> None:
    """Tell the policy all touches of an event."""
    policy = run.state[POLICY]
    if policy in (FIFO, PASSING):
        return
    if policy == LCP:
        score(event, layer, run)
        return
    pool = run.layers[layer, POOL]
    begins, ends = run.begins_N1[event], run.begins_N1[event + 1]
    is_plain = run.state[IS_PLAIN]
    for at in range(begins, ends):
        expert = np.int64(run.expert_U[at] if is_plain else run.detail_U3[at, TOUCHED])
        if policy == LRU:
            key = ZERO
        elif policy == BELADY:
            next_use = np.int64(run.next_use_U[at])
            run.experts[expert, UPCOMING] = next_use
            key = run.state[EVENTS] - next_use
        else:
            run.experts[expert, USES] += 1
            key = run.experts[expert, USES]
            if policy == LFRU:
                place = at - begins if is_plain else run.detail_U3[at, PLACE]
                run.experts[expert, LAST_USE] = run.state[CLOCK] + place + 1
        if run.experts[expert, KEY] >= 0:
            drop(pool, expert, run)
        put(pool, expert, key, run)
    if is_plain:
        run.state[CLOCK] += ends - begins
    elif ends > begins:
        run.state[CLOCK] += run.detail_U3[ends - 1, PLACE] + 1


@jit
def admit(expert: Number, run: Run) -> None:
    """Tell the policy that an expert has been given room; one just touched is known already."""
    policy = run.state[POLICY]
    if policy == LCP:
        if run.experts[expert, LAST_USE] == 0:
            run.state[CLOCK] += 1
            run.experts[expert, LAST_USE] = run.state[CLOCK]
        return
    if policy == PASSING or run.experts[expert, KEY] >= 0:
        return
    key = ZERO
    if policy == BELADY:
        key = run.state[EVENTS] - run.experts[expert, UPCOMING]
    elif policy not in (LRU, FIFO):
        if not run.state[COUNTS_FOR_LIFE]:
            run.experts[expert, USES] = 1
        key = run.experts[expert, USES]
        if policy == LFRU:
            run.state[CLOCK] += 1
            run.experts[expert, LAST_USE] = run.state[CLOCK]
    put(run.layers[run.experts[expert, OF_LAYER], POOL], expert, key, run)


@jit
def forget(expert: Number, run: Run) -> None:
    """Tell the policy that an expert has left."""
    if run.state[POLICY] == LCP:
        run.scores[len(run.experts) + expert] = np.inf
        return
    if run.experts[expert, KEY] < 0:
        return
    drop(run.layers[run.experts[expert, OF_LAYER], POOL], expert, run)
    if not run.state[COUNTS_FOR_LIFE]:
        run.experts[expert, USES] = 0


@jit
def release(expert: Number, run: Run) -> None:
    """Tell the policy that an expert's copy has ended, or that nothing uses it any more."""
    if run.state[POLICY] == LCP:
        offer(expert, run)


@jit
def victim(pool: Number, run: Run) -> Number:
    """Return the expert of a pool to give up, or -1 if none may leave."""
    if run.state[POLICY] == LFRU:
        return lowest_score(pool, run)
    if run.state[POLICY] == LCP:
        return lowest_priority(pool, run)
    key = next_key(pool, ZERO, run)
    while key >= 0:
        expert = first_evictable(pool, key, run)
        if expert >= 0:
            return expert
        key = next_key(pool, key + 1, run)
    return -1
