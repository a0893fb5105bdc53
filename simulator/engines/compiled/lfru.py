"""LFRU: who has the fewest uses for the time since the last one.

On each shelf, that is among equal uses, the oldest is the lowest. So ``scores`` has when the oldest
of each shelf was used, infinity where there is none, and after those one over each number of uses:
the greatest product of an age and that is found several at a time. It is right to 1 in 10^15; if
another comes within 1 in 10^12, or the one found may not leave, scores are compared as products of
whole numbers, which are exact.
"""

import numpy as np

from moesim.simulator.engines.compiled.jit import jit
from moesim.simulator.engines.compiled.layout import (
    CLOCK,
    HIGHEST_KEY,
    KEYS,
    LAST_USE,
    OLDEST,
    OLDEST_USE,
    ONE,
    STAGING,
    ZERO,
    Number,
    Run,
)
from moesim.simulator.engines.compiled.shelves import first_evictable, may_leave, next_key
from moesim.simulator.engines.compiled.tables import lesser

_AT_ONCE = 64
_NEAR = 1 - 1e-12


@jit
def lowest_score(pool: Number, run: Run) -> Number:
    """Return who of a pool may leave and has the lowest score; ties go to the least recent."""
    keys = run.state[KEYS]
    base = pool * keys
    if run.scores[base] < np.inf:  # one that was never used
        return _compared(pool, run)
    one_over = run.state[STAGING] * keys - base  # from a shelf to one over its uses
    now = np.float64(run.state[CLOCK] + 1)
    after = base + run.pools[pool, HIGHEST_KEY] + 1
    begins, greatest, oldest = base + 1, 0.0, np.inf
    greatest_age = now - run.pools[pool, OLDEST_USE]
    # From few uses to many, until even the greatest age could not make up for the uses.
    while begins < after and greatest * _NEAR * (begins - base) <= greatest_age:
        ends = min(begins + _AT_ONCE, after)
        least, oldest_here = _least(begins, ends, now, one_over, run)
        greatest, oldest = max(greatest, -least), min(oldest, oldest_here)
        begins = ends
    if begins == after and oldest < np.inf:
        run.pools[pool, OLDEST_USE] = np.int64(oldest)
    met, shelf = _near(base + 1, begins, now, one_over, -greatest * _NEAR, run)
    if met == 1:
        expert = run.shelves_PK[shelf, OLDEST]
        if may_leave(expert, run):
            return expert
    return _compared(pool, run)


@jit
def _least(
    begins: Number, ends: Number, now: Number, one_over: Number, run: Run
) -> tuple[Number, Number]:
    """Return the least of minus age over uses among some shelves, and the earliest last use."""
    least, oldest = np.inf, np.inf
    for at in range(begins, ends):
        least = lesser(least, (run.scores[at] - now) * run.scores[at + one_over])
        oldest = lesser(oldest, run.scores[at])
    return least, oldest


@jit
def _near(
    begins: Number, ends: Number, now: Number, one_over: Number, bound: Number, run: Run
) -> tuple[Number, Number]:
    """Return how many shelves are as low as a bound, and the sum of their places."""
    met, place = ZERO, ZERO
    for at in range(begins, ends):
        is_near = (run.scores[at] - now) * run.scores[at + one_over] <= bound
        met += ONE if is_near else ZERO
        place += at if is_near else ZERO
    return met, place


@jit
def _compared(pool: Number, run: Run) -> Number:
    now = run.state[CLOCK] + 1
    lowest_uses, lowest_age, chosen = ONE, ZERO, -ONE
    key = next_key(pool, ZERO, run)
    while key >= 0:
        expert = first_evictable(pool, key, run)
        if expert >= 0:
            age = now - run.experts[expert, LAST_USE]
            here, lowest = key * lowest_age, lowest_uses * age
            if here < lowest or (here == lowest and age > lowest_age):
                lowest_uses, lowest_age, chosen = key, age, expert
        key += 1
        key = next_key(pool, key, run) if key < run.state[KEYS] else -ONE
    return chosen
