"""LFRU: who has the fewest uses for the time since the last one.

On each shelf, that is among equal uses, the oldest is the lowest. So ``scores`` has when the oldest
of each shelf was used, infinity where there is none, and after those one over each number of uses:
the greatest product of an age and that is found several at a time. It is right to 1 in 10^15; if
others come within 1 in 10^12 they are compared as products of whole numbers, which are exact; if
who is found may not leave, so are all.
"""

import numpy as np

from moesim.simulator.engines.compiled.jit import jit, rare
from moesim.simulator.engines.compiled.layout import (
    CLOCK,
    EVERYONE,
    HIGHEST_KEY,
    KEYS,
    OLDEST_USE,
    ONE,
    STAGING,
    YOUNGER,
    ZERO,
    Number,
    Run,
)
from moesim.simulator.engines.compiled.marks import next_marked
from moesim.simulator.engines.compiled.shelves import first_evictable, may_leave
from moesim.simulator.engines.compiled.tables import lesser

AT_ONCE = 64
_NEAR = 1 - 1e-12
_ONE_MET = np.int64(1 << 40)
"""More than any place: a sum of places and these tells how many there were."""


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
    begins, greatest, oldest = base, 0.0, np.inf
    greatest_age = now - run.pools[pool, OLDEST_USE]
    # From few uses to many, until even the greatest age could not make up for the uses.
    while begins < after and greatest * _NEAR * (begins - base) <= greatest_age:
        least, oldest_here = _least(begins, now, one_over, run)
        greatest, oldest = max(greatest, -least), min(oldest, oldest_here)
        begins += AT_ONCE
    if begins >= after and oldest < np.inf:
        run.pools[pool, OLDEST_USE] = np.int64(oldest)
    found = ZERO
    for first in range(base, begins, AT_ONCE):
        found += _near(first, now, one_over, -greatest * _NEAR, run)
    if found < 2 * _ONE_MET:
        expert = np.int64(run.experts[run.state[EVERYONE] + found % _ONE_MET, YOUNGER])
    else:
        expert = _nearest(pool, begins, one_over, -greatest * _NEAR, run)
    return expert if may_leave(expert, run) else _compared(pool, run)


@jit
def _nearest(pool: Number, after: Number, one_over: Number, bound: Number, run: Run) -> Number:
    """Return whose score is lowest among the oldest of shelves as low as a bound."""
    base, now = pool * run.state[KEYS], run.state[CLOCK] + 1
    lowest_uses, lowest_age, chosen = ONE, ZERO, -ONE
    for at in range(base, after):
        if (run.scores[at] - now) * run.scores[at + one_over] <= bound:
            expert = np.int64(run.experts[run.state[EVERYONE] + at, YOUNGER])
            age = now - run.last_use_X[expert]
            if _is_lower(at - base, age, lowest_uses, lowest_age):
                lowest_uses, lowest_age, chosen = at - base, age, expert
    return chosen


@jit
def _is_lower(uses: Number, age: Number, lowest_uses: Number, lowest_age: Number) -> bool:
    here, lowest = uses * lowest_age, lowest_uses * age
    return bool(here < lowest or (here == lowest and age > lowest_age))


@jit
def _least(begins: Number, now: Number, one_over: Number, run: Run) -> tuple[Number, Number]:
    """Return the least of minus age over uses among some shelves, and the earliest last use."""
    least, oldest = np.inf, np.inf
    for place in range(AT_ONCE):
        at = begins + place
        least = lesser(least, (run.scores[at] - now) * run.scores[at + one_over])
        oldest = lesser(oldest, run.scores[at])
    return least, oldest


@jit
def _near(begins: Number, now: Number, one_over: Number, bound: Number, run: Run) -> Number:
    """Return the sum of the places of shelves as low as a bound, with `_ONE_MET` for each."""
    found = ZERO
    for place in range(AT_ONCE):
        at = begins + place
        is_near = (run.scores[at] - now) * run.scores[at + one_over] <= bound
        found += (_ONE_MET + at) if is_near else ZERO
    return found


@rare
def _compared(pool: Number, run: Run) -> Number:
    now = run.state[CLOCK] + 1
    lowest_uses, lowest_age, chosen = ONE, ZERO, -ONE
    key = next_marked(pool, ZERO, run)
    while key >= 0:
        expert = first_evictable(pool, key, run)
        if expert >= 0:
            age = now - run.last_use_X[expert]
            if _is_lower(key, age, lowest_uses, lowest_age):
                lowest_uses, lowest_age, chosen = key, age, expert
        key += 1
        key = next_marked(pool, key, run)
    return chosen
