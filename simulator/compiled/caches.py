"""The cache policies: what a touch, an admission and an eviction change, and who is to leave.

Each is the policy of the same name in ``policies/cache/``; that file says what the rule is. All of
them keep experts on shelves (``shelves.py``) and differ in the key and in whether a touch moves an
expert. Touches of one event are told at once, by last occurrence, which comes to the same.
"""

import numpy as np

from moesim.simulator.compiled.jit import jit
from moesim.simulator.compiled.layout import (
    BELADY,
    CACHED,
    CHOICES,
    CLOCK,
    COUNTS_FOR_LIFE,
    EVENTS,
    FIFO,
    IS_PLAIN,
    KEY,
    KEYS,
    LAST_USE,
    LCP,
    LEASED_BY,
    LFRU,
    LOADING,
    LRU,
    NOBODY_AT,
    OF_LAYER,
    OLDEST,
    OLDEST_AT,
    OLDEST_USE,
    ONE,
    PASSING,
    PLACE,
    POLICY,
    POOL,
    ROOM,
    SERVES,
    TOUCHED,
    UPCOMING,
    USES,
    WIDTH,
    YOUNGER,
    ZERO,
    Number,
    Run,
)
from moesim.simulator.compiled.shelves import drop, next_key, put


@jit
def touch(event: Number, layer: Number, run: Run) -> None:
    """Tell the policy all touches of an event."""
    policy = run.state[POLICY]
    if policy in (FIFO, PASSING):
        return
    if policy == LCP:
        _score(event, layer, run)
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
        run.scores[len(run.experts) + expert] = run.scores[expert]
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
def victim(pool: Number, run: Run) -> Number:
    """Return the expert of a pool to give up, or -1 if none may leave."""
    if run.state[POLICY] == LFRU:
        return _lowest_score(pool, run)
    if run.state[POLICY] == LCP:
        return _lowest_priority(pool, run)
    key = next_key(pool, ZERO, run)
    while key >= 0:
        expert = _first_evictable(pool, key, run)
        if expert >= 0:
            return expert
        key = next_key(pool, key + 1, run)
    return -1


@jit
def _first_evictable(pool: Number, key: Number, run: Run) -> Number:
    expert = run.shelves_PK[pool * run.state[KEYS] + key, OLDEST]
    while expert >= 0:
        if _may_leave(expert, run):
            return expert
        expert = run.experts[expert, YOUNGER]
    return -1


@jit
def _may_leave(expert: Number, run: Run) -> bool:
    return bool(
        run.experts[expert, LEASED_BY] < 0
        and run.experts[expert, LOADING] == 0
        and run.experts[expert, ROOM] == CACHED
    )


@jit
def _score(event: Number, layer: Number, run: Run) -> None:
    """Give the experts of an event their priorities, in a layer where all fade alike.

    ``scores`` has the priority of each expert; the same once more where it has room in the cache,
    infinity where not; what youth counts; and what each number of uses does.
    """
    everyone = len(run.experts)
    young = run.layers[layer, CHOICES] * run.scores[2 * everyone]
    begins, ends = run.begins_N1[event], run.begins_N1[event + 1]
    for at in range(begins, ends):
        expert, tokens = np.int64(run.expert_U[at]), 1
        if not run.state[IS_PLAIN]:
            expert = np.int64(run.detail_U3[at, TOUCHED])
            tokens = run.experts[expert, SERVES]
        run.experts[expert, USES] += tokens
        run.layers[layer, CHOICES] += tokens
        run.state[CLOCK] += 1
        run.experts[expert, LAST_USE] = run.state[CLOCK]
        uses = run.experts[expert, USES]
        run.scores[expert] = run.scores[2 * everyone + 1 + uses] + young
        if run.experts[expert, ROOM] == CACHED:
            run.scores[everyone + expert] = run.scores[expert]


@jit
def _lowest_priority(pool: Number, run: Run) -> Number:
    """Return the lowest priority of a layer; ties go to the least recent."""
    everyone, width = len(run.experts), run.state[WIDTH]
    lowest, lowest_at, chosen = np.inf, ZERO, -ONE
    for expert in range(pool * width, (pool + 1) * width):
        score = run.scores[everyone + expert]
        if score > lowest or score == np.inf:
            continue
        at = run.experts[expert, LAST_USE]
        if (score < lowest or at < lowest_at) and _may_leave(expert, run):
            lowest, lowest_at, chosen = score, at, np.int64(expert)
    return chosen


@jit
def _lowest_score(pool: Number, run: Run) -> Number:
    """Return the lowest uses for the time since the last one; ties go to the least recent.

    Among equal uses the oldest is the lowest. From few uses to many, until even the greatest age
    could not make up for the uses.
    """
    now = run.state[CLOCK] + 1
    base = pool * run.state[KEYS]
    # A score is uses over age; two are compared as products, which are exact.
    lowest_uses, lowest_age, chosen = ONE, ZERO, -ONE
    greatest_age = now - run.pools[pool, OLDEST_USE]
    oldest = now - 1
    key = next_key(pool, ZERO, run)
    while key >= 0:
        if key * lowest_age > lowest_uses * greatest_age:
            return chosen
        oldest_at = run.shelves_PK[base + key, OLDEST_AT]
        oldest = min(oldest, oldest_at)
        if key * lowest_age <= lowest_uses * (now - oldest_at):
            expert = _first_evictable(pool, key, run)
            if expert >= 0:
                age = now - run.experts[expert, LAST_USE]
                here, lowest = key * lowest_age, lowest_uses * age
                if here < lowest or (here == lowest and age > lowest_age):
                    lowest_uses, lowest_age, chosen = key, age, expert
        key += 1
        if key == run.state[KEYS]:
            key = -ONE
        elif run.shelves_PK[base + key, OLDEST_AT] == NOBODY_AT:
            key = next_key(pool, key, run)
    run.pools[pool, OLDEST_USE] = oldest
    return chosen
