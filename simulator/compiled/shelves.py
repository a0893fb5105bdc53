"""Experts in the order in which they leave: by key, and among equal keys the longest there first.

A *shelf* holds the experts of one pool and one key, a small whole number: the number of uses for
LFU, how far the next use lies before the end of the run for Belady, always 0 for LRU and FIFO. It
is a list linked through arrays. *Marks* tell which shelves hold anything: a tree whose words of 32
bits each say which words below are not 0, so that the next shelf in use is found in a few steps
however many there are.
"""

import numpy as np

from moesim.simulator.compiled.jit import jit
from moesim.simulator.compiled.layout import (
    KEY,
    KEYS,
    LAST_USE,
    LEVEL,
    LEVELS,
    MARKS_OF_POOL,
    NOBODY_AT,
    OLDER,
    OLDEST,
    OLDEST_AT,
    YOUNGER,
    YOUNGEST,
    Number,
    Run,
)

WORD_BITS = 5
WORD = 1 << WORD_BITS
_LAST = WORD - 1
_DE_BRUIJN = 0x077CB531
_HASH = WORD - WORD_BITS
_MASK = (1 << WORD) - 1
_LOWEST = np.zeros(WORD, np.int64)
for _bit in range(WORD):
    _LOWEST[((_DE_BRUIJN << _bit) & _MASK) >> _HASH] = _bit


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
    run.shelves_PK[at, OLDEST_AT] = run.experts[expert, LAST_USE]
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
        run.shelves_PK[at, OLDEST_AT] = run.experts[younger, LAST_USE]
        return
    run.shelves_PK[at, OLDEST_AT] = NOBODY_AT
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
                at += _lowest_bit(marks)
                for below in range(level - 1, -1, -1):
                    marks = run.marks[base + run.state[LEVEL + 2 * below] + at]
                    at = (at << WORD_BITS) + _lowest_bit(marks)
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
def _lowest_bit(marks: Number) -> Number:
    return _LOWEST[(((marks & -marks) * _DE_BRUIJN) & _MASK) >> _HASH]
