"""The controller's event: judge a demand, plan its copies and runs, in waves if need be.

``layer_event.py`` says what the rules are; the order of everything here is its, since times and
victims depend on it.
"""

import numpy as np

from moesim.simulator.engines.compiled.caches import released
from moesim.simulator.engines.compiled.jit import jit, rare
from moesim.simulator.engines.compiled.layout import (
    ABSENT,
    BYTES_LATE,
    BYTES_USEFUL,
    CAME,
    CLASS,
    COPIES_REPORTED,
    DECIDES_ON_GPU,
    DECODE_DEMANDS,
    DECODE_HITS,
    DEMAND,
    DEMANDED,
    EVERYONE,
    EXPERTS,
    EXPERTS_FIXED_NS,
    FAULT,
    FREE_BYTES,
    HERE,
    HITS,
    IS_ON_DEMAND,
    IS_PLAIN,
    IS_UNUSED,
    KERNEL_AFTER,
    KERNELS,
    KIND,
    LATE,
    LAYER,
    LAYER_NOW,
    LEASED,
    LEASED_BY,
    LEASES,
    LEAVING,
    LOADING,
    MISSES,
    MISSING,
    NS,
    OF_LAYER,
    ON_ITS_WAY,
    ONE,
    RING,
    ROOM,
    RUN,
    RUNS,
    SERVED,
    SERVES,
    SIZE,
    STAGED,
    STAGED_EXPERTS,
    STAGED_ONES,
    TOKENS,
    TOO_SMALL,
    UNUSED,
    WAITING,
    WAVES,
    ZERO,
    Number,
    Run,
)
from moesim.simulator.engines.compiled.transfers import command, copy_in, evict, pool_for, pool_of


@jit
def end_event(run: Run) -> None:
    """Release what the last event used, and the staging room of its layer."""
    for at in range(run.state[LEASED]):
        expert = run.lists[LEASES, at]
        run.experts[expert, LEASED_BY] = -1
    layer = run.state[LAYER_NOW]
    released(layer, run)
    run.state[LEASED] = 0
    at = run.state[STAGED_EXPERTS] - 1
    while at >= 0 and layer >= 0:
        expert = run.lists[STAGED_ONES, at]
        if run.experts[expert, OF_LAYER] == layer:
            if run.experts[expert, LOADING]:
                run.experts[expert, ROOM] = LEAVING
            else:
                evict(expert, run)
        at -= 1


@jit
def judge(event: Number, is_decode: bool, run: Run) -> tuple[Number, Number, Number]:
    """Tell hits from late ones and misses, lease what is here, settle prefetches.

    Returns:
        How many of each; they stand in ``lists``.
    """
    begins, ends = run.begins_N1[event], run.begins_N1[event + 1]
    hits, late, misses = ZERO, ZERO, ZERO
    leases = run.state[LEASED]
    for at in range(begins, ends):
        expert = np.int64(run.expert_U[at])
        if not run.state[IS_PLAIN]:
            run.rest[expert, SERVES] = run.detail_U3[at, TOKENS]
        is_absent = np.int64(run.experts[expert, ROOM] == ABSENT)
        is_late = np.int64(run.experts[expert, LOADING] != 0)
        run.experts[expert, LEASED_BY] = -is_absent
        run.lists[MISSING, misses] = expert
        run.lists[ON_ITS_WAY, late] = expert
        run.lists[HERE, hits] = expert
        run.lists[LEASES, leases] = expert
        misses += is_absent
        late += is_late
        hits += 1 - is_absent - is_late
        leases += 1 - is_absent
    run.state[LEASED] = leases
    if run.state[UNUSED] or late:
        _settle_prefetches(hits, late, run)
    run.state[DEMANDED] += ends - begins
    run.state[HITS] += hits
    run.state[LATE] += late
    run.state[MISSES] += misses
    if is_decode:
        run.state[DECODE_DEMANDS] += ends - begins
        run.state[DECODE_HITS] += hits
    return hits, late, misses


@jit
def _settle_prefetches(hits: Number, late: Number, run: Run) -> None:
    for at in range(hits):
        expert = run.lists[HERE, at]
        if run.experts[expert, IS_UNUSED]:
            run.experts[expert, IS_UNUSED] = 0
            run.state[UNUSED] -= 1
            run.state[BYTES_USEFUL] += run.layers[run.experts[expert, OF_LAYER], SIZE]
    for at in range(late):
        expert = run.lists[ON_ITS_WAY, at]
        if run.experts[expert, ROOM] == LEAVING:
            run.experts[expert, ROOM] = STAGED
        if run.experts[expert, IS_UNUSED]:
            run.experts[expert, IS_UNUSED] = 0
            run.state[UNUSED] -= 1
            run.state[BYTES_LATE] += run.layers[run.experts[expert, OF_LAYER], SIZE]


@jit
def copy_misses(
    misses: Number,
    run: Run,
) -> Number:
    """Hand over the copies of an event's misses; return how many found no room and wait."""
    waiting = ZERO
    for at in range(misses):
        expert = run.lists[MISSING, at]
        if not copy_in(expert, DEMAND, ZERO, run):
            run.lists[WAITING, waiting] = expert
            waiting += 1
    return waiting


@jit
def carry_out(
    event: Number,
    layer: Number,
    counted: tuple[Number, Number, Number],
    waiting: Number,
    run: Run,
) -> None:
    """Hand over the runs that have their room, then wave after wave, then what follows."""
    hits, late, misses = counted
    _run_all(event, layer, hits, late, misses, run)
    if waiting:
        _carry_out_in_waves(event, layer, counted, waiting, run)
    command(LAYER, layer + 1, run)


@rare
def _carry_out_in_waves(
    event: Number, layer: Number, counted: tuple[Number, Number, Number], waiting: Number, run: Run
) -> None:
    """Let experts that wait take the room of members whose run was handed over, wave after wave."""
    while waiting and not run.state[FAULT]:
        run.state[WAVES] += 1
        waiting = _next_wave(waiting, run)
        _run_all(event, layer, ZERO, counted[1], counted[2], run)


@jit
def _run_all(
    event: Number,
    layer: Number,
    hits: Number,
    late: Number,
    misses: Number,
    run: Run,
) -> None:
    """Hand over a run for each expert that has room and has not run: the hits may be one run."""
    if run.state[IS_ON_DEMAND]:
        for at in range(run.begins_N1[event], run.begins_N1[event + 1]):
            _run_one(np.int64(run.expert_U[at]), layer, run)
        return
    if hits:
        class_ = run.layers[layer, CLASS]
        ns = run.state[EXPERTS_FIXED_NS]
        number = run.state[RUNS] + 1
        for at in range(hits):
            expert = run.lists[HERE, at]
            run.experts[expert, LEASED_BY] = number
            ns += run.expert_CT[class_, _tokens(expert, run)]
        _hand_over(ns, ZERO, hits, run)
    for at in range(late):
        _run_one(run.lists[ON_ITS_WAY, at], layer, run)
    for at in range(misses):
        _run_one(run.lists[MISSING, at], layer, run)


@jit
def _run_one(
    expert: Number,
    layer: Number,
    run: Run,
) -> None:
    if run.experts[expert, LEASED_BY] != 0:
        return
    run.experts[expert, LEASED_BY] = run.state[RUNS] + 1
    ns = run.expert_CT[run.layers[layer, CLASS], _tokens(expert, run)]
    ns += run.state[EXPERTS_FIXED_NS]
    after = ZERO
    if run.experts[expert, LOADING]:
        first = run.state[COPIES_REPORTED] + 1
        after = first + ((run.experts[expert, LOADING] - 1 - first) & run.state[RING])
    _hand_over(ns, after, ONE, run)


@jit
def _hand_over(ns: Number, after: Number, experts: Number, run: Run) -> None:
    """Enter a run where the GPU's queue will have it."""
    run.state[RUNS] += 1
    at = _kernel(run.state[RUNS], run) & run.state[RING]
    run.kernels[at, KIND] = EXPERTS
    run.kernels[at, NS] = ns
    run.kernels[at, KERNEL_AFTER] = after
    run.kernels[at, SERVED] = experts
    command(RUN, ONE, run)


@jit
def _kernel(number: Number, run: Run) -> Number:
    """Return the number that a run of this answer will have in the GPU's queue."""
    return run.state[KERNELS] + run.state[DECIDES_ON_GPU] + number


@jit
def _tokens(expert: Number, run: Run) -> Number:
    """Return how many tokens an expert of an event serves."""
    if run.state[IS_PLAIN]:
        return 1
    return run.rest[expert, SERVES]


@jit
def _next_wave(
    waiting: Number,
    run: Run,
) -> Number:
    """Give waiting experts the room of members that were handed over, oldest run first.

    Where prefetches hold all the room they are given up, oldest first.

    Returns:
        How many still wait.
    """
    members = run.state[LEASED]  # those leased from here on are of this wave
    for at in range(waiting):
        expert = run.lists[WAITING, at]
        pool = pool_for(expert, run)
        size = run.layers[run.experts[expert, OF_LAYER], SIZE]
        after = ZERO
        while run.pools[pool, FREE_BYTES] < size:
            member = _oldest_member(pool, members, run)
            if member >= 0:
                after = max(after, _kernel(run.experts[member, LEASED_BY], run))
                run.experts[member, LEASED_BY] = -1
                evict(member, run)
            elif at > 0:
                for left in range(at, waiting):
                    run.lists[WAITING, left - at] = run.lists[WAITING, left]
                return waiting - at
            else:
                oldest = _oldest_prefetch(pool, run)
                if oldest < 0:
                    run.state[FAULT] = TOO_SMALL
                    return ZERO
                evict(oldest, run)
        copy_in(expert, DEMAND, after, run)
    return ZERO


@jit
def _oldest_member(pool: Number, members: Number, run: Run) -> Number:
    """Return the expert of a pool whose run was handed over first; those of one run in turn."""
    oldest, oldest_run = -ONE, ZERO
    for at in range(members):
        expert = run.lists[LEASES, at]
        number = np.int64(run.experts[expert, LEASED_BY])
        if number > 0 and pool_of(expert, run) == pool and (oldest < 0 or number < oldest_run):
            oldest, oldest_run = expert, number
    return oldest


@jit
def _oldest_prefetch(pool: Number, run: Run) -> Number:
    """Return the expert of a pool that is not leased and has had its room for longest, or -1."""
    oldest = -1
    for expert in range(run.state[EVERYONE]):
        if (
            run.experts[expert, ROOM] != ABSENT
            and run.experts[expert, LEASED_BY] < 0
            and pool_of(expert, run) == pool
            and (oldest < 0 or run.rest[expert, CAME] < run.rest[oldest, CAME])
        ):
            oldest = expert
    return oldest
