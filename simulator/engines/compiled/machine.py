"""The modelled machine: a GPU, one link to it, and the host that hands over and waits.

``machine.py``, ``hands.py`` and ``host.py`` of the simulator say why it is done so; here it is
written for one link and no CPU experts. A copy may wait for a kernel only where waves run.
"""

from moesim.simulator.engines.compiled.jit import jit
from moesim.simulator.engines.compiled.layout import (
    AFTER,
    BEGINS,
    BLOCKS,
    CLASS,
    COMMANDS,
    COPIES,
    COPIES_CERTAIN,
    COPIES_REPORTED,
    COPY,
    COPY_AFTER_IDLE_NS,
    COPY_AFTER_PAUSE_NS,
    COPY_NS,
    COST_ROW,
    COUNT,
    DECIDE,
    DECIDES_ON_GPU,
    DECIDING,
    DECISION_NS,
    DECISION_PER_COMMAND_NS,
    DECISION_PER_EXPERT_NS,
    DENSE,
    ENDS,
    EXPERT,
    EXPERTS,
    FAULT,
    FOREVER,
    FREE,
    GPU_BUSY,
    GPU_FREE,
    HEAD,
    HEAD_NS,
    HOST_BUSY,
    IS_PREFILL,
    ISSUE_NS,
    ISSUED,
    KERNEL_AFTER,
    KERNEL_ENDS,
    KERNEL_ISSUED,
    KERNELS,
    KERNELS_SETTLED,
    KIND,
    KINDS,
    LAUNCH_LAYER_NS,
    LAUNCH_PER_EXPERT_NS,
    LAUNCH_PROMPT_EXPERT_NS,
    LAUNCH_PROMPT_LAYER_NS,
    LAUNCH_PROMPT_RUN_NS,
    LAUNCH_RUN_NS,
    LAUNCHED,
    LAYER,
    LAYERS,
    LINK_BUSY,
    LINK_BYTES,
    LINK_FREE,
    LOOKED_AT,
    LOOKS_AT,
    NOW,
    NS,
    OF_LAYER,
    OP,
    PAUSE_NS,
    RING,
    RUN,
    RUN_AFTER_COPY_NS,
    RUN_WHILE_COPYING_NS,
    RUNS,
    SERVED,
    SIZE,
    SLOW_DOWN,
    SLOW_DOWN_PPM,
    STUCK,
    ZERO,
    Number,
    Run,
)

_WHOLE_PPM = 1_000_000


@jit
def obey(
    experts: Number,
    step: Number,
    run: Run,
) -> None:
    """Let the decision take its time, then issue each command of the answer."""
    commands = run.state[COMMANDS]
    decision_ns = (
        run.state[DECISION_NS]
        + experts * run.state[DECISION_PER_EXPERT_NS]
        + commands * run.state[DECISION_PER_COMMAND_NS]
    )
    run.state[DECIDING] += decision_ns
    run.state[FREE] = run.state[NOW]
    if run.state[DECIDES_ON_GPU]:
        _submit_kernel(DECIDE, decision_ns, ZERO, run)
    else:
        run.state[FREE] += decision_ns
    for at in range(run.state[KINDS]):
        command, count = run.commands[at, OP], run.commands[at, COUNT]
        if command == RUN:
            _launch_runs(count, step, run)
        elif command == COPY:
            _issue_copies(count, run)
        elif command == LAYER:
            launch(count, step, run)
    run.state[COMMANDS] = 0
    run.state[KINDS] = 0
    run.state[RUNS] = 0
    catch_up(run)


@jit
def _launch_runs(count: Number, step: Number, run: Run) -> None:
    """Launch the runs handed over next; where they stand is entered already."""
    of_run, each = LAUNCH_RUN_NS, LAUNCH_PER_EXPERT_NS
    if run.steps[step, IS_PREFILL]:
        of_run, each = LAUNCH_PROMPT_RUN_NS, LAUNCH_PROMPT_EXPERT_NS
    for _ in range(count):
        run.state[KERNELS] += 1
        at = run.state[KERNELS] & run.state[RING]
        run.state[FREE] += run.state[of_run] + run.kernels[at, SERVED] * run.state[each]
        run.kernels[at, KERNEL_ISSUED] = run.state[FREE]


@jit
def _issue_copies(count: Number, run: Run) -> None:
    """Issue the copies handed over next; where they stand is entered already."""
    for _ in range(count):
        run.state[COPIES] += 1
        at = run.state[COPIES] & run.state[RING]
        run.state[FREE] += run.state[ISSUE_NS]
        run.copies[at, ISSUED] = run.state[FREE]
        if run.state[BLOCKS]:
            _settle_copies(run)
            catch_up(run)
            number = run.state[COPIES]
            if run.state[COPIES_CERTAIN] < number:
                settle(FOREVER, ZERO, number, run)
            run.state[NOW] = max(run.state[NOW], run.copies[at, ENDS])
            run.state[FREE] = run.state[NOW]
    _settle_copies(run)


@jit
def launch(
    layer: Number,
    step: Number,
    run: Run,
) -> None:
    """Launch attention and router of a layer, or past the last layer what makes the token."""
    if run.steps[step, IS_PREFILL]:
        run.state[FREE] += run.state[LAUNCH_PROMPT_LAYER_NS]
    else:
        run.state[FREE] += run.state[LAUNCH_LAYER_NS]
    if layer < run.state[LAYERS]:
        ns = run.attention_GC[run.steps[step, COST_ROW], run.layers[layer, CLASS]]
        _submit_kernel(DENSE, ns, ZERO, run)
    else:
        _submit_kernel(HEAD, run.state[HEAD_NS], ZERO, run)
    run.state[LAUNCHED] = run.state[KERNELS]


@jit
def catch_up(run: Run) -> None:
    """Let the time pass that deciding and issuing took."""
    run.state[HOST_BUSY] += run.state[FREE] - run.state[NOW]
    run.state[NOW] = run.state[FREE]


@jit
def settle(
    nothing_before: Number,
    until_kernel: Number,
    until_copy: Number,
    run: Run,
) -> None:
    """Begin the kernels in turn as far as that is certain, or until what is asked for is."""
    ring = run.state[RING]
    slow_down_ppm, more_ns = run.state[SLOW_DOWN_PPM], run.state[RUN_WHILE_COPYING_NS]
    run.state[LOOKS_AT] = -1
    while run.state[KERNELS_SETTLED] < run.state[KERNELS]:
        if until_kernel and run.state[KERNELS_SETTLED] >= until_kernel:
            return
        if until_copy and run.state[COPIES_CERTAIN] >= until_copy:
            return
        at = (run.state[KERNELS_SETTLED] + 1) & ring
        begins = max(run.kernels[at, KERNEL_ISSUED], run.state[GPU_FREE])
        after = run.kernels[at, KERNEL_AFTER]
        if after > run.state[COPIES_CERTAIN]:
            return
        if after:
            begins = max(begins, run.copies[after & ring, ENDS] + run.state[RUN_AFTER_COPY_NS])
        ns = run.kernels[at, NS]
        if max(slow_down_ppm, more_ns):
            slowed = _is_slowed(begins, ring, run)
            if slowed:
                alone_ns = ns
                ns = _slowed(
                    ns, slow_down_ppm, more_ns if run.kernels[at, KIND] == EXPERTS else ZERO
                )
                run.state[SLOW_DOWN] += ns - alone_ns
            elif begins > nothing_before and begins >= run.state[LINK_FREE]:
                run.state[LOOKS_AT] = begins
                return
        run.state[KERNELS_SETTLED] += 1
        run.kernels[at, KERNEL_ENDS] = run.state[GPU_FREE] = begins + ns
        run.state[GPU_BUSY + run.kernels[at, KIND]] += ns
        if run.state[COPIES_CERTAIN] < run.state[COPIES]:
            _settle_copies(run)


@jit
def _is_slowed(begins: Number, ring: Number, run: Run) -> bool:
    """Return whether a copy known of runs as a kernel begins; kernels are asked about in turn."""
    first = run.state[LOOKED_AT]
    while first <= run.state[COPIES_CERTAIN] and run.copies[first & ring, ENDS] <= begins:
        first += 1
    run.state[LOOKED_AT] = first
    is_known = first <= run.state[COPIES_CERTAIN]
    return bool(is_known and run.copies[first & ring, BEGINS] <= begins)


@jit
def _slowed(ns: Number, ppm: Number, more_ns: Number) -> Number:
    extra, rest = ns * ppm // _WHOLE_PPM, ns * ppm % _WHOLE_PPM
    above_half = 2 * rest - _WHOLE_PPM
    if above_half > 0 or (above_half == 0 and extra % 2 == 1):
        return ns + extra + 1 + more_ns
    return ns + extra + more_ns


@jit
def _submit_kernel(kind: Number, ns: Number, after: Number, run: Run) -> None:
    run.state[KERNELS] += 1
    at = run.state[KERNELS] & run.state[RING]
    run.kernels[at, KIND] = kind
    run.kernels[at, NS] = ns
    run.kernels[at, KERNEL_ISSUED] = run.state[FREE]
    run.kernels[at, KERNEL_AFTER] = after


@jit
def _settle_copies(run: Run) -> None:
    """Begin the copies in turn as far as that is certain."""
    ring = run.state[RING]
    while run.state[COPIES_CERTAIN] < run.state[COPIES]:
        at = (run.state[COPIES_CERTAIN] + 1) & ring
        after = run.copies[at, AFTER]
        if after > run.state[KERNELS_SETTLED]:
            return
        free = run.state[LINK_FREE]
        begins = max(run.copies[at, ISSUED], free)
        if after:
            begins = max(begins, run.kernels[after & ring, KERNEL_ENDS])
        layer = run.experts[run.copies[at, EXPERT], OF_LAYER]
        idle = begins - free
        took = COPY_NS if idle == 0 else COPY_AFTER_IDLE_NS
        ns = run.layers[layer, COPY_AFTER_PAUSE_NS if idle > run.state[PAUSE_NS] else took]
        run.state[COPIES_CERTAIN] += 1
        run.copies[at, BEGINS] = begins
        run.copies[at, ENDS] = run.state[LINK_FREE] = begins + ns
        run.state[LINK_BUSY] += ns
        run.state[LINK_BYTES] += run.layers[layer, SIZE]


@jit
def next_look(run: Run) -> Number:
    """Return when the host, which waits for the kernel launched last, has something to look at.

    That is the kernel's end, the next copy's, or the moment at which something becomes certain.
    """
    ring = run.state[RING]
    at = FOREVER
    if run.state[COPIES_REPORTED] < run.state[COPIES_CERTAIN]:
        at = run.copies[(run.state[COPIES_REPORTED] + 1) & ring, ENDS]
    if run.state[LOOKS_AT] > run.state[NOW]:
        at = min(at, run.state[LOOKS_AT])
    if run.state[LAUNCHED] <= run.state[KERNELS_SETTLED]:
        at = min(at, run.kernels[run.state[LAUNCHED] & ring, KERNEL_ENDS])
    if at == FOREVER:
        run.state[FAULT] = STUCK
    return at
