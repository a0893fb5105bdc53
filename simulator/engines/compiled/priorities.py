"""LCP and Belady: who has the lowest score, where a score changes when its expert is used alone.

``policies/cache/lcp.py`` says what LCP's priority is; Belady's is how soon an expert is used again,
and among those that never are, who was so first. ``scores`` has the score of each expert; the same
once more where it may leave, infinity where not; a number at or below the least of these in each
layer; and for LCP what youth counts, and what each number of uses does.
"""

import numpy as np

from moesim.simulator.engines.compiled.jit import jit
from moesim.simulator.engines.compiled.layout import (
    BELADY,
    CHOICES,
    CLOCK,
    EVENTS,
    EVERYONE,
    IS_PLAIN,
    LAYERS,
    LEASED,
    LEASES,
    OF_LAYER,
    ONE,
    POLICY,
    PREFETCH,
    SERVES,
    STAGING,
    TOUCHED,
    USES,
    WIDTH,
    ZERO,
    Number,
    Run,
)
from moesim.simulator.engines.compiled.shelves import may_leave
from moesim.simulator.engines.compiled.tables import lesser

_ONE_MET = np.int64(1 << 40)
"""More than any place: a sum of places and these tells how many there were."""

NEVER = np.float64(-(1 << 50))
"""Below every event."""


@jit
def score(event: Number, layer: Number, run: Run) -> None:
    """Give the experts of an event, all leased, their scores; LCP's of a layer all fade alike."""
    everyone = run.state[EVERYONE]
    youth = 2 * everyone + run.state[LAYERS]
    young = run.layers[layer, CHOICES] * run.scores[youth]
    begins, ends = run.begins_N1[event], run.begins_N1[event + 1]
    for at in range(begins, ends):
        expert, tokens = np.int64(run.expert_U[at]), 1
        if not run.state[IS_PLAIN]:
            expert = np.int64(run.detail_U3[at, TOUCHED])
            tokens = run.rest[expert, SERVES]
        come_last(expert, run)
        run.scores[everyone + expert] = np.inf
        if run.state[POLICY] == BELADY:
            run.scores[expert] = -np.float64(run.next_use_U[at])
            if run.next_use_U[at] == run.state[EVENTS]:
                run.scores[expert] = NEVER + run.state[CLOCK]
        else:
            run.rest[expert, USES] += tokens
            run.layers[layer, CHOICES] += tokens
            run.scores[expert] = run.scores[youth + 1 + run.rest[expert, USES]] + young


@jit
def enter(expert: Number, cause: Number, run: Run) -> None:
    """Enter an expert that has been given room."""
    if run.state[POLICY] == BELADY:
        if cause == PREFETCH:
            come_last(expert, run)
            if run.scores[expert] < -run.state[EVENTS]:
                run.scores[expert] = NEVER + run.state[CLOCK]
    elif run.last_use_X[expert] == 0:
        come_last(expert, run)


@jit
def come_last(expert: Number, run: Run) -> None:
    """Put an expert behind all of equal score."""
    run.state[CLOCK] += 1
    run.last_use_X[expert] = run.state[CLOCK]


@jit
def offer(expert: Number, run: Run) -> None:
    """Let an expert leave whose copy has ended, if nothing uses it."""
    if may_leave(expert, run) and run.last_use_X[expert] > 0:
        everyone = run.state[EVERYONE]
        run.scores[everyone + expert] = run.scores[expert]
        bound = 2 * everyone + run.experts[expert, OF_LAYER]
        run.scores[bound] = lesser(run.scores[bound], run.scores[expert])


@jit
def offer_leased(layer: Number, run: Run) -> None:
    """Let those leave that an event used, all of one layer, unless their copies have not ended."""
    everyone = run.state[EVERYONE]
    bound = run.scores[2 * everyone + layer]
    for at in range(run.state[LEASED]):
        expert = run.lists[LEASES, at]
        if may_leave(expert, run):
            run.scores[everyone + expert] = run.scores[expert]
            bound = lesser(bound, run.scores[expert])
    run.scores[2 * everyone + layer] = bound


@jit
def withdraw(expert: Number, run: Run) -> None:
    """Let an expert that has left be found no more."""
    run.scores[run.state[EVERYONE] + expert] = np.inf


@jit
def lowest_priority(pool: Number, run: Run) -> Number:
    """Return who of a pool may leave and has the lowest score; ties go to the least recent.

    Scores of different layers are never equal.
    """
    everyone, width = run.state[EVERYONE], run.state[WIDTH]
    bounds = 2 * everyone
    layer = pool
    while True:
        if run.state[STAGING] == 1:
            bound, found = _lowest(bounds, bounds + run.state[LAYERS], run)
            if bound == np.inf:
                return -ONE
            layer = found % _ONE_MET - bounds
        first = everyone + layer * width
        lowest, found = _lowest(first, first + width, run)
        if run.state[STAGING] > 1 or lowest == run.scores[bounds + layer]:
            break
        run.scores[bounds + layer] = lowest
    if lowest == np.inf:
        return -ONE
    if found < 2 * _ONE_MET:
        return found % _ONE_MET - everyone
    return _least_recent(first, first + width, lowest, run)


@jit
def _lowest(first: Number, after: Number, run: Run) -> tuple[Number, Number]:
    """Return the lowest of some scores, and the sum of where it is, with `_ONE_MET` for each.

    Two loops without branches: the processor looks at several scores at a time.
    """
    lowest, found = np.inf, ZERO
    for at in range(first, after):
        lowest = lesser(lowest, run.scores[at])
    for at in range(first, after):
        found += (_ONE_MET + at) if run.scores[at] == lowest else ZERO
    return lowest, found


@jit
def _least_recent(first: Number, after: Number, lowest: Number, run: Run) -> Number:
    chosen = -ONE
    for at in range(first, after):
        if run.scores[at] == lowest:
            expert = np.int64(at) - run.state[EVERYONE]
            if chosen < 0 or run.last_use_X[expert] < run.last_use_X[chosen]:
                chosen = expert
    return chosen
