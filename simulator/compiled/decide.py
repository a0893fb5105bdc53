"""The controller's part: judge a demand, make room, hand over copies, runs, waves and prefetches.

``controller.py`` and ``transfers.py`` say what the rules are; the order of everything here is
theirs, since times and victims depend on it.
"""

import numpy as np

from moesim.simulator.compiled.caches import admit, forget, victim
from moesim.simulator.compiled.jit import jit, rare
from moesim.simulator.compiled.layout import (
    ABSENT,
    BYTES_DEMAND,
    BYTES_LATE,
    BYTES_USEFUL,
    BYTES_WASTED,
    CACHED,
    CAME,
    CLASS,
    COMMANDS,
    COPIED,
    COPIES_REPORTED,
    COPY,
    DECIDES_ON_GPU,
    DECODE_DEMANDS,
    DECODE_HITS,
    DEMAND,
    DEMANDED,
    EVENT,
    EVICTIONS,
    EXPERT,
    EXPERTS_FIXED_NS,
    FAULT,
    FIRST,
    FREE_BYTES,
    HERE,
    HITS,
    IS_LEAVING,
    IS_ON_DEMAND,
    IS_PLAIN,
    IS_UNUSED,
    IS_WISHED,
    KERNELS,
    LATE,
    LAYER,
    LAYER_NOW,
    LAYERS,
    LEASED,
    LEASED_BY,
    LEASES,
    LEAST_FREE_BYTES,
    LOADING,
    MISSES,
    MISSING,
    NUMBERED,
    OF_LAYER,
    ON_ITS_WAY,
    ONE,
    OP,
    PASSING,
    POLICY,
    POOL,
    PREFETCH,
    QUEUED_BYTES,
    RING,
    ROOM,
    RUN,
    RUNS,
    SECOND,
    SERIAL,
    SERVES,
    SIZE,
    STAGED,
    STAGED_AT,
    STAGED_EXPERTS,
    STAGED_ONES,
    STAGING,
    THIRD,
    TOKENS,
    TOO_SMALL,
    UNUSED,
    WAITING,
    WAVES,
    WIDTH,
    WINDOW_BYTES,
    WISH_FIRST,
    WISH_LAST,
    WISHED,
    WISHES,
    ZERO,
    Number,
    Run,
)


@jit
def command(op: Number, a: Number, b: Number, c: Number, run: Run) -> None:
    """Append a command to the answer."""
    at = run.state[COMMANDS]
    run.commands[at, OP] = op
    run.commands[at, FIRST] = a
    run.commands[at, SECOND] = b
    run.commands[at, THIRD] = c
    run.state[COMMANDS] = at + 1


@jit
def end_event(run: Run) -> None:
    """Release what the last event used, and the staging room of its layer."""
    for at in range(run.state[LEASED]):
        run.experts[run.lists[LEASES, at], LEASED_BY] = -1
    run.state[LEASED] = 0
    layer = run.state[LAYER_NOW]
    at = run.state[STAGED_EXPERTS] - 1
    while at >= 0 and layer >= 0:
        expert = run.lists[STAGED_ONES, at]
        if run.experts[expert, OF_LAYER] == layer:
            if run.experts[expert, LOADING]:
                run.experts[expert, IS_LEAVING] = 1
            else:
                _evict(expert, run)
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
            run.experts[expert, SERVES] = run.detail_U3[at, TOKENS]
        if run.experts[expert, ROOM] == ABSENT:
            run.lists[MISSING, misses] = expert
            misses += 1
            continue
        run.experts[expert, LEASED_BY] = 0
        run.lists[LEASES, leases] = expert
        leases += 1
        if run.experts[expert, LOADING]:
            run.lists[ON_ITS_WAY, late] = expert
            late += 1
        else:
            run.lists[HERE, hits] = expert
            hits += 1
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
        run.experts[expert, IS_LEAVING] = 0
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
        if not _copy_in(expert, DEMAND, ZERO, run):
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
    command(LAYER, layer + 1, ZERO, ZERO, run)


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
        kernel = _next_kernel(run)
        for at in range(hits):
            expert = run.lists[HERE, at]
            run.experts[expert, LEASED_BY] = kernel
            ns += run.expert_CT[class_, _tokens(expert, run)]
        command(RUN, ns, ZERO, hits, run)
        run.state[RUNS] += 1
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
    run.experts[expert, LEASED_BY] = _next_kernel(run)
    ns = run.expert_CT[run.layers[layer, CLASS], _tokens(expert, run)]
    ns += run.state[EXPERTS_FIXED_NS]
    command(RUN, ns, run.experts[expert, LOADING], ONE, run)
    run.state[RUNS] += 1


@jit
def _next_kernel(run: Run) -> Number:
    """Return the number that the next run of this answer will have in the GPU's queue."""
    return run.state[KERNELS] + run.state[DECIDES_ON_GPU] + run.state[RUNS] + 1


@jit
def _tokens(expert: Number, run: Run) -> Number:
    """Return how many tokens an expert of an event serves."""
    if run.state[IS_PLAIN]:
        return 1
    return run.experts[expert, SERVES]


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
        pool = _pool_for(expert, run)
        size = run.layers[run.experts[expert, OF_LAYER], SIZE]
        after = ZERO
        while run.pools[pool, FREE_BYTES] < size:
            member = _oldest_member(pool, members, run)
            if member >= 0:
                after = max(after, run.experts[member, LEASED_BY])
                run.experts[member, LEASED_BY] = -1
                _evict(member, run)
            elif at > 0:
                for left in range(at, waiting):
                    run.lists[WAITING, left - at] = run.lists[WAITING, left]
                return waiting - at
            else:
                oldest = _oldest_prefetch(pool, run)
                if oldest < 0:
                    run.state[FAULT] = TOO_SMALL
                    return ZERO
                run.experts[oldest, IS_LEAVING] = 0
                _evict(oldest, run)
        _copy_in(expert, DEMAND, after, run)
    return ZERO


@jit
def _oldest_member(pool: Number, members: Number, run: Run) -> Number:
    """Return the expert of a pool whose run was handed over first; those of one run in turn."""
    oldest, oldest_run = -1, 0
    for at in range(members):
        expert = run.lists[LEASES, at]
        kernel = run.experts[expert, LEASED_BY]
        if kernel > 0 and _pool_of(expert, run) == pool and (oldest < 0 or kernel < oldest_run):
            oldest, oldest_run = expert, kernel
    return oldest


@jit
def _oldest_prefetch(pool: Number, run: Run) -> Number:
    """Return the expert of a pool that is not leased and has had its room for longest, or -1."""
    oldest = -1
    for expert in range(len(run.experts)):
        if (
            run.experts[expert, ROOM] != ABSENT
            and run.experts[expert, LEASED_BY] < 0
            and _pool_of(expert, run) == pool
            and (oldest < 0 or run.experts[expert, CAME] < run.experts[oldest, CAME])
        ):
            oldest = expert
    return oldest


@jit
def _pool_for(expert: Number, run: Run) -> Number:
    """Return the pool that the policy wants for an expert about to be copied."""
    if run.state[POLICY] == PASSING:
        return run.state[STAGING]
    return run.layers[run.experts[expert, OF_LAYER], POOL]


@jit
def _pool_of(expert: Number, run: Run) -> Number:
    """Return the pool in which an expert has room, or -1."""
    if run.experts[expert, ROOM] == CACHED:
        return run.layers[run.experts[expert, OF_LAYER], POOL]
    return run.state[STAGING] if run.experts[expert, ROOM] == STAGED else -1


@jit
def _copy_in(
    expert: Number,
    cause: Number,
    after: Number,
    run: Run,
) -> bool:
    """Give an expert room, by eviction if need be, and hand its copy over.

    Returns:
        False if nothing that may leave makes enough room; then nothing was done but evictions.
    """
    pool = _pool_for(expert, run)
    staging = run.state[STAGING]
    size = run.layers[run.experts[expert, OF_LAYER], SIZE]
    while run.pools[pool, FREE_BYTES] < size:
        if pool == staging:
            return False
        leaves = victim(pool, run)
        if leaves < 0:
            return False
        _evict(leaves, run)
    run.pools[pool, FREE_BYTES] -= size
    run.pools[pool, LEAST_FREE_BYTES] = min(
        run.pools[pool, LEAST_FREE_BYTES], run.pools[pool, FREE_BYTES]
    )
    run.state[SERIAL] += 1
    run.experts[expert, CAME] = run.state[SERIAL]
    if pool == staging:
        run.experts[expert, ROOM] = STAGED
        run.experts[expert, STAGED_AT] = run.state[STAGED_EXPERTS]
        run.lists[STAGED_ONES, run.state[STAGED_EXPERTS]] = expert
        run.state[STAGED_EXPERTS] += 1
    else:
        run.experts[expert, ROOM] = CACHED
    run.state[NUMBERED] += 1
    run.experts[expert, LOADING] = run.state[NUMBERED]
    run.state[QUEUED_BYTES] += size
    run.state[COPIED] += 1
    if cause == DEMAND:
        run.experts[expert, LEASED_BY] = 0
        run.lists[LEASES, run.state[LEASED]] = expert
        run.state[LEASED] += 1
        run.state[BYTES_DEMAND] += size
    else:
        run.experts[expert, IS_UNUSED] = 1
        run.state[UNUSED] += 1
    admit(expert, run)
    command(COPY, expert, after, ZERO, run)
    return True


@jit
def _evict(expert: Number, run: Run) -> None:
    """Take an expert's room back, be it resident or still loading."""
    pool = _pool_of(expert, run)
    size = run.layers[run.experts[expert, OF_LAYER], SIZE]
    run.experts[expert, LOADING] = 0
    run.pools[pool, FREE_BYTES] += size
    if run.experts[expert, ROOM] == STAGED:
        last = run.state[STAGED_EXPERTS] - 1
        moved, at = run.lists[STAGED_ONES, last], run.experts[expert, STAGED_AT]
        run.lists[STAGED_ONES, at] = moved
        run.experts[moved, STAGED_AT] = at
        run.state[STAGED_EXPERTS] = last
    else:
        run.state[EVICTIONS] += 1
    run.experts[expert, ROOM] = ABSENT
    if run.experts[expert, IS_UNUSED]:
        run.experts[expert, IS_UNUSED] = 0
        run.state[UNUSED] -= 1
        run.state[BYTES_WASTED] += size
    forget(expert, run)


@jit
def copy_ended(run: Run) -> None:
    """Take in that the next copy has ended: its expert is resident, unless it gave up its room."""
    run.state[COPIES_REPORTED] += 1
    number = run.state[COPIES_REPORTED]
    expert = run.copies[number & run.state[RING], EXPERT]
    run.state[QUEUED_BYTES] -= run.layers[run.experts[expert, OF_LAYER], SIZE]
    if run.experts[expert, LOADING] == number:
        run.experts[expert, LOADING] = 0
        if run.experts[expert, IS_LEAVING]:
            run.experts[expert, IS_LEAVING] = 0
            _evict(expert, run)


@jit
def wish(call: Number, run: Run) -> None:
    """Queue what the prefetch policy answered to a call, unless it has room or stands there."""
    width = run.state[WIDTH]
    for at in range(run.wish_begins[call], run.wish_begins[call + 1]):
        expert = np.int64(run.wished_W[at])
        if run.experts[expert, ROOM] == ABSENT and not run.experts[expert, IS_WISHED]:
            layer = run.experts[expert, OF_LAYER]
            last = run.layers[layer, WISH_LAST]
            run.lists[WISHED, layer * width + last % width] = expert
            run.layers[layer, WISH_LAST] = last + 1
            run.experts[expert, IS_WISHED] = 1
            run.state[WISHES] += 1


@jit
def cancel(layer: Number, run: Run) -> None:
    """Forget the wishes for a layer that has been routed."""
    width = run.state[WIDTH]
    for at in range(run.layers[layer, WISH_FIRST], run.layers[layer, WISH_LAST]):
        run.experts[run.lists[WISHED, layer * width + at % width], IS_WISHED] = 0
        run.state[WISHES] -= 1
    run.layers[layer, WISH_FIRST] = run.layers[layer, WISH_LAST] = 0


@jit
def hand_over(run: Run) -> None:
    """Hand over prefetches while the window has room, the nearest layer's first."""
    width = run.state[WIDTH]
    layers = run.state[LAYERS]
    ahead = 1
    while run.state[WISHES] and (
        run.state[QUEUED_BYTES] < run.state[WINDOW_BYTES]
        or run.state[NUMBERED] == run.state[COPIES_REPORTED]
    ):
        layer = (run.state[EVENT] + ahead) % layers
        first = run.layers[layer, WISH_FIRST]
        if first == run.layers[layer, WISH_LAST]:
            ahead += 1
            continue
        expert = run.lists[WISHED, layer * width + first % width]
        if run.experts[expert, ROOM] == ABSENT and not _copy_in(expert, PREFETCH, ZERO, run):
            return
        run.layers[layer, WISH_FIRST] = first + 1
        run.experts[expert, IS_WISHED] = 0
        run.state[WISHES] -= 1
