"""LCP: who has the lowest priority; ``policies/cache/lcp.py`` says what that is.

``scores`` has the priority of each expert; the same once more where it may leave, infinity where
not; what youth counts; and what each number of uses does.
"""

import numpy as np

from moesim.simulator.engines.compiled.jit import jit
from moesim.simulator.engines.compiled.layout import (
    CHOICES,
    CLOCK,
    IS_PLAIN,
    LAST_USE,
    ONE,
    SERVES,
    TOUCHED,
    USES,
    WIDTH,
    ZERO,
    Number,
    Run,
)
from moesim.simulator.engines.compiled.shelves import may_leave
from moesim.simulator.engines.compiled.tables import lesser


@jit
def score(event: Number, layer: Number, run: Run) -> None:
    """Give the experts of an event, all leased, their priorities; in a layer all fade alike."""
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
        run.scores[expert] = run.scores[2 * everyone + 1 + run.experts[expert, USES]] + young
        run.scores[everyone + expert] = np.inf


@jit
def offer(expert: Number, run: Run) -> None:
    """Let an expert leave whose copy has ended, or that is no longer used, if that is all."""
    if may_leave(expert, run) and run.experts[expert, LAST_USE] > 0:
        run.scores[len(run.experts) + expert] = run.scores[expert]


@jit
def lowest_priority(pool: Number, run: Run) -> Number:
    """Return who of a layer may leave and has the lowest priority; ties go to the least recent."""
    everyone, width = len(run.experts), run.state[WIDTH]
    first = everyone + pool * width
    lowest, met, place = _lowest(first, first + width, run)
    if lowest == np.inf:
        return -ONE
    if met > 1:
        place, least_at = -ONE, ZERO
        for at in range(first, first + width):
            if run.scores[at] == lowest:
                last_use = run.experts[at - everyone, LAST_USE]
                if place < 0 or last_use < least_at:
                    place, least_at = np.int64(at), last_use
    return place - everyone


@jit
def _lowest(first: Number, after: Number, run: Run) -> tuple[Number, Number, Number]:
    """Return the lowest of some scores, how many it is, and the sum of their places.

    Two loops without branches: the processor looks at several scores at a time.
    """
    lowest = np.inf
    for at in range(first, after):
        lowest = lesser(lowest, run.scores[at])
    met, place = ZERO, ZERO
    for at in range(first, after):
        is_it = run.scores[at] == lowest
        met += ONE if is_it else ZERO
        place += at if is_it else ZERO
    return lowest, met, place
