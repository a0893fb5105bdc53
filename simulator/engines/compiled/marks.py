"""Which numbers are marked: a tree of bits for each pool, so that the next one is a few steps away.

Each word of 64 bits says which of the words below it are not 0, up to a single word, however many
numbers there are.
"""

from moesim.simulator.engines.compiled.jit import jit
from moesim.simulator.engines.compiled.layout import LEVEL, LEVELS, MARKS_OF_POOL, Number, Run
from moesim.simulator.engines.compiled.tables import lowest_bit

WORD_BITS = 6
WORD = 1 << WORD_BITS
_LAST = WORD - 1


@jit
def mark(pool: Number, number: Number, run: Run) -> None:
    """Mark a number of a pool."""
    base = pool * run.state[MARKS_OF_POOL]
    at = number
    for level in range(run.state[LEVELS]):
        word = base + run.state[LEVEL + 2 * level] + (at >> WORD_BITS)
        before = run.marks[word]
        run.marks[word] = before | (1 << (at & _LAST))
        if before != 0:
            return
        at >>= WORD_BITS


@jit
def unmark(pool: Number, number: Number, run: Run) -> None:
    """Take the mark of a number away."""
    base = pool * run.state[MARKS_OF_POOL]
    at = number
    for level in range(run.state[LEVELS]):
        word = base + run.state[LEVEL + 2 * level] + (at >> WORD_BITS)
        after = run.marks[word] & ~(1 << (at & _LAST))
        run.marks[word] = after
        if after != 0:
            return
        at >>= WORD_BITS


@jit
def next_marked(pool: Number, number: Number, run: Run) -> Number:
    """Return the lowest number of a pool, from this one on, that is marked; -1 if there is none."""
    base = pool * run.state[MARKS_OF_POOL]
    at = number
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
