"""Experts in the order in which they leave: by key, and among equal keys the longest there first.

A *shelf* holds the experts of one pool and one key, a small whole number: the number of uses for
LFU and LFRU, always 0 for all others. It is a ring linked through ``experts``, in which the shelf
has a row of its own after those of the experts, so that no end of it is a case. An expert that
stands nowhere is a ring by itself. Where there are several keys, marks tell which shelves may hold
anything: a shelf is marked by who is put there, and no more once it was found empty.
"""

import numpy as np

from moesim.simulator.engines.compiled.jit import jit
from moesim.simulator.engines.compiled.layout import (
    CACHED,
    EVERYONE,
    HIGHEST_KEY,
    KEY,
    KEYS,
    LEASED_BY,
    LFRU,
    LOADING,
    OLDER,
    POLICY,
    ROOM,
    YOUNGER,
    Number,
    Run,
)
from moesim.simulator.engines.compiled.marks import mark


@jit
def put(pool: Number, expert: Number, key: Number, run: Run) -> None:
    """Put an expert that stands nowhere at the young end of a shelf."""
    shelf = run.state[EVERYONE] + pool * run.state[KEYS] + key
    last = np.int64(run.experts[shelf, OLDER])
    run.experts[expert, OLDER] = last
    run.experts[expert, YOUNGER] = shelf
    run.experts[last, YOUNGER] = expert
    run.experts[shelf, OLDER] = expert
    if run.state[KEYS] == 1:
        return
    run.experts[expert, KEY] = key
    mark(pool, key, run)
    if run.state[POLICY] == LFRU and last == shelf:
        run.scores[shelf - run.state[EVERYONE]] = np.float64(run.last_use_X[expert])
        run.pools[pool, HIGHEST_KEY] = max(run.pools[pool, HIGHEST_KEY], key)


@jit
def take(expert: Number, run: Run) -> None:
    """Take an expert off its shelf, if it stands on one; it is put somewhere at once."""
    older = np.int64(run.experts[expert, OLDER])
    younger = np.int64(run.experts[expert, YOUNGER])
    run.experts[younger, OLDER] = older
    run.experts[older, YOUNGER] = younger
    if run.state[POLICY] == LFRU and older >= run.state[EVERYONE]:
        shelf = older - run.state[EVERYONE]
        run.scores[shelf] = np.inf
        if younger != older:
            run.scores[shelf] = np.float64(run.last_use_X[younger])


@jit
def drop(expert: Number, run: Run) -> None:
    """Take an expert off its shelf, if it stands on one, for good."""
    take(expert, run)
    run.experts[expert, OLDER] = run.experts[expert, YOUNGER] = expert
    if run.state[KEYS] > 1:
        run.experts[expert, KEY] = -1


@jit
def is_empty(pool: Number, key: Number, run: Run) -> bool:
    """Return whether nobody stands on a shelf."""
    shelf = run.state[EVERYONE] + pool * run.state[KEYS] + key
    return bool(run.experts[shelf, YOUNGER] == shelf)


@jit
def first_evictable(pool: Number, key: Number, run: Run) -> Number:
    """Return the oldest of a shelf that may leave, or -1."""
    everyone = run.state[EVERYONE]
    expert = np.int64(run.experts[everyone + pool * run.state[KEYS] + key, YOUNGER])
    while expert < everyone:
        if may_leave(expert, run):
            return expert
        expert = np.int64(run.experts[expert, YOUNGER])
    return -1


@jit
def may_leave(expert: Number, run: Run) -> bool:
    """Return whether an expert has been copied to the cache and nothing uses it."""
    return bool(
        run.experts[expert, LEASED_BY] < 0
        and run.experts[expert, LOADING] == 0
        and run.experts[expert, ROOM] == CACHED
    )
