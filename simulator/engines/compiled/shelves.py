"""Experts in the order in which they leave: by key, and among equal keys the longest there first.

A *shelf* holds the experts of one pool and one key, a small whole number: the number of uses for
LFU, how far the next use lies before the end of the run for Belady, always 0 for LRU and FIFO. It
is a list linked through arrays. *Marks* tell which shelves hold anything: a tree whose words of 64
bits each say which words below are not 0, so that the next shelf in use is found in a few steps
however many there are.
"""

import numpy as np

from moesim.simulator.engines.compiled.jit import jit
from moesim.simulator.engines.compiled.layout import (
    CACHED,
    HIGHEST_KEY,
    KEY,
    KEYS,
    LAST_USE,
    LEASED_BY,
    LEVEL,
    LEVELS,
    LFRU,
    LOADING,
    MARKS_OF_POOL,
    OLDER,
    OLDEST,
    POLICY,
    ROOM,
    YOUNGER,
    YOUNGEST,
    Number,
    Run,
)
from moesim.simulator.engines.compiled.tables import lowest_bit

WORD_BITS = 6
WORD = 1 << WORD_BITS
_LAST = WORD - 1


@jit
def put(pool: Number, expert: Number, key: Number, run: Run) -> None:
    """Put an expert that stands nowhere at the young end of a shelf."""
    at = pool * run.state[KEYS] + key
    last = run.shelves_PK[at, YOUNGEST]
    run.experts[expert, OLDER] = last
    run.experts[expert, YOUNGER] = -1
    run.shelves_PK[at, YOUNGEST] = expert
    run.experts[expert, KEY] = key
    if last >= 0:
        run.experts[last, YOUNGER] = expert
        return
    run.shelves_PK[at, OLDEST] = expert
    if run.state[POLICY] == LFRU:
        run.scores[at] = np.float64(run.experts[expert, LAST_USE])
        run.pools[pool, HIGHEST_KEY] = max(run.pools[pool, HIGHEST_KEY], key)
    if run.state[KEYS] > 1:
        _mark(pool, key, run)


@jit
def drop(pool: Number, expert: Number, run: Run) -> None:
    """Take an expert off its shelf."""
    key = run.experts[expert, KEY]
    at = pool * run.state[KEYS] + key
    older, younger = run.experts[expert, OLDER], run.experts[expert, YOUNGER]
    run.experts[expert, KEY] = -1
    if younger >= 0:
        run.experts[younger, OLDER] = older
    else:
        run.shelves_PK[at, YOUNGEST] = older
    if older >= 0:
        run.experts[older, YOUNGER] = younger
        return
    run.shelves_PK[at, OLDEST] = younger
    if younger >= 0:
        if run.state[POLICY] == LFRU:
            run.scores[at] = np.float64(run.experts[younger, LAST_USE])
        return
    if run.state[POLICY] == LFRU:
        run.scores[at] = np.inf
    if run.state[KEYS] > 1:
        _unmark(pool, key, run)


@jit
def next_key(pool: Number, key: Number, run: Run) -> Number:
    """Return the lowest key, from this one on, whose shelf holds anything; -1 if there is none."""
    if run.state[KEYS] == 1:
        return 0 if key == 0 and run.shelves_PK[pool, OLDEST] >= 0 else -1
    base = pool * run.state[MARKS_OF_POOL]
    at = key
    levels = run.state[LEVELS]
    for level in range(levels):
        word = at >> WORD_BITS
        if word < run.state[LEVEL + 2 * level + 1]:
            marks = run.marks[base + run.state[LEVEL + 2 * level] + word] >> (at & _LAST)
            if marks != 0:
                at += lowest_bit(marks)
                for below in range(level - 1, -1, -1):
                    marks = run.marks[base + run.state[LEVEL + 2 * below] + at]
                    at = (at << WORD_BITS) + lowest_bit(marks)
                return at
        at = word + 1
    return -1


@jit
def _mark(pool: Number, key: Number, run: Run) -> None:
    base = pool * run.state[MARKS_OF_POOL]
    at = key
    for level in range(run.state[LEVELS]):
        word = base + run.state[LEVEL + 2 * level] + (at >> WORD_BITS)
        before = run.marks[word]
        run.marks[word] = before | (1 << (at & _LAST))
        if before != 0:
            return
        at >>= WORD_BITS


@jit
def _unmark(pool: Number, key: Number, run: Run) -> None:
    base = pool * run.state[MARKS_OF_POOL]
    at = key
    for level in range(run.state[LEVELS]):
        word = base + run.state[LEVEL + 2 * level] + (at >> WORD_BITS)
        after = run.marks[word] & ~(1 << (at & _LAST))
        run.marks[word] = after
        if after != 0:
            return
        at >>= WORD_BITS


@jit
def first_evictable(pool: Number, key: Number, run: Run) -> Number:
    """Return the oldest of a shelf that may leave, or -1."""
    expert = run.shelves_PK[pool * run.state[KEYS] + key, OLDEST]
    while expert >= 0:
        if may_leave(expert, run):
            return expert
        expert = run.experts[expert, YOUNGER]
    return -1


@jit
def may_leave(expert: Number, run: Run) -> bool:
    """Return whether an expert has been copied to the cache and nothing uses it."""
    return bool(
        run.experts[expert, LEASED_BY] < 0
        and run.experts[expert, LOADING] == 0
        and run.experts[expert, ROOM] == CACHED
    )
