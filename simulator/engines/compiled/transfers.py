"""Who comes in and who leaves for it: copies, rooms, victims, wishes.

``transfers.py`` and ``prefetch_queue.py`` of the controller say what the rules are; the order of
everything here is theirs, since times and victims depend on it.
"""

import numpy as np

from moesim.simulator.engines.compiled.caches import admit, copied, forget, victim
from moesim.simulator.engines.compiled.jit import jit
from moesim.simulator.engines.compiled.layout import (
    ABSENT,
    AFTER,
    BYTES_DEMAND,
    BYTES_WASTED,
    CACHED,
    CAME,
    COMMANDS,
    COPIES_REPORTED,
    COPY,
    COUNT,
    DEMAND,
    EVENT,
    EVICTIONS,
    EXPERT,
    FREE_BYTES,
    IS_UNUSED,
    IS_WISHED,
    KINDS,
    LAYERS,
    LEASED,
    LEASED_BY,
    LEASES,
    LEAST_FREE_BYTES,
    LEAVING,
    LOADING,
    NUMBERED,
    OF_LAYER,
    ONE,
    OP,
    PASSING,
    POLICY,
    POOL,
    PREFETCH,
    PREFETCHES,
    QUEUED_BYTES,
    RING,
    ROOM,
    RUN,
    SIZE,
    STAGED,
    STAGED_AT,
    STAGED_EXPERTS,
    STAGED_ONES,
    STAGING,
    UNUSED,
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
def command(op: Number, count: Number, run: Run) -> None:
    """Append a command to the answer: one more of those before it, or the first of its kind."""
    run.state[COMMANDS] += 1
    at = run.state[KINDS]
    if op in (COPY, RUN) and at > 0 and run.commands[at - 1, OP] == op:
        run.commands[at - 1, COUNT] += 1
        return
    run.commands[at, OP] = op
    run.commands[at, COUNT] = count
    run.state[KINDS] = at + 1


@jit
def pool_for(expert: Number, run: Run) -> Number:
    """Return the pool that the policy wants for an expert about to be copied."""
    if run.state[POLICY] == PASSING:
        return run.state[STAGING]
    return run.layers[run.experts[expert, OF_LAYER], POOL]


@jit
def pool_of(expert: Number, run: Run) -> Number:
    """Return the pool in which an expert has room, or -1."""
    if run.experts[expert, ROOM] == CACHED:
        return run.layers[run.experts[expert, OF_LAYER], POOL]
    return run.state[STAGING] if run.experts[expert, ROOM] != ABSENT else -1


@jit
def copy_in(
    expert: Number,
    cause: Number,
    after: Number,
    run: Run,
) -> bool:
    """Give an expert room, by eviction if need be, and hand its copy over.

    Returns:
        False if nothing that may leave makes enough room; then nothing was done but evictions.
    """
    pool = pool_for(expert, run)
    staging = run.state[STAGING]
    size = run.layers[run.experts[expert, OF_LAYER], SIZE]
    while run.pools[pool, FREE_BYTES] < size:
        if pool == staging:
            return False
        leaves = victim(pool, run)
        if leaves < 0:
            return False
        evict(leaves, run)
    run.pools[pool, FREE_BYTES] -= size
    run.pools[pool, LEAST_FREE_BYTES] = min(
        run.pools[pool, LEAST_FREE_BYTES], run.pools[pool, FREE_BYTES]
    )
    if pool == staging:
        run.experts[expert, ROOM] = STAGED
        run.rest[expert, STAGED_AT] = run.state[STAGED_EXPERTS]
        run.lists[STAGED_ONES, run.state[STAGED_EXPERTS]] = expert
        run.state[STAGED_EXPERTS] += 1
    else:
        run.experts[expert, ROOM] = CACHED
    run.state[NUMBERED] += 1
    at = run.state[NUMBERED] & run.state[RING]
    run.copies[at, EXPERT] = expert
    run.copies[at, AFTER] = after
    run.experts[expert, LOADING] = at + 1
    if run.state[PREFETCHES]:
        run.state[QUEUED_BYTES] += size
        run.rest[expert, CAME] = run.state[NUMBERED]
    if cause == DEMAND:
        run.experts[expert, LEASED_BY] = 0
        run.lists[LEASES, run.state[LEASED]] = expert
        run.state[LEASED] += 1
        run.state[BYTES_DEMAND] += size
    else:
        run.experts[expert, IS_UNUSED] = 1
        run.state[UNUSED] += 1
    admit(expert, cause, run)
    command(COPY, ONE, run)
    return True


@jit
def evict(expert: Number, run: Run) -> None:
    """Take an expert's room back, be it resident or still loading."""
    pool = pool_of(expert, run)
    size = run.layers[run.experts[expert, OF_LAYER], SIZE]
    run.experts[expert, LOADING] = 0
    run.pools[pool, FREE_BYTES] += size
    if run.experts[expert, ROOM] != CACHED:
        last = run.state[STAGED_EXPERTS] - 1
        moved, at = run.lists[STAGED_ONES, last], run.rest[expert, STAGED_AT]
        run.lists[STAGED_ONES, at] = moved
        run.rest[moved, STAGED_AT] = at
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
    at = run.state[COPIES_REPORTED] & run.state[RING]
    expert = run.copies[at, EXPERT]
    if run.state[PREFETCHES]:
        run.state[QUEUED_BYTES] -= run.layers[run.experts[expert, OF_LAYER], SIZE]
    if run.experts[expert, LOADING] == at + 1:
        run.experts[expert, LOADING] = 0
        if run.experts[expert, ROOM] == LEAVING:
            evict(expert, run)
        else:
            copied(expert, run)


@jit
def wish(call: Number, run: Run) -> None:
    """Queue what the prefetch policy answered to a call, unless it has room or stands there."""
    width = run.state[WIDTH]
    for at in range(run.wish_begins[call], run.wish_begins[call + 1]):
        expert = np.int64(run.wished_W[at])
        if run.experts[expert, ROOM] == ABSENT and not run.rest[expert, IS_WISHED]:
            layer = run.experts[expert, OF_LAYER]
            last = run.layers[layer, WISH_LAST]
            run.lists[WISHED, layer * width + last % width] = expert
            run.layers[layer, WISH_LAST] = last + 1
            run.rest[expert, IS_WISHED] = 1
            run.state[WISHES] += 1


@jit
def cancel(layer: Number, run: Run) -> None:
    """Forget the wishes for a layer that has been routed."""
    width = run.state[WIDTH]
    for at in range(run.layers[layer, WISH_FIRST], run.layers[layer, WISH_LAST]):
        run.rest[run.lists[WISHED, layer * width + at % width], IS_WISHED] = 0
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
        if run.experts[expert, ROOM] == ABSENT and not copy_in(expert, PREFETCH, ZERO, run):
            return
        run.layers[layer, WISH_FIRST] = first + 1
        run.rest[expert, IS_WISHED] = 0
        run.state[WISHES] -= 1
