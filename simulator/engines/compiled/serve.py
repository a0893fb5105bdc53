"""The loop: one step after another, one layer after another, as the host program of ``host.py``."""

from moesim.simulator.engines.compiled.caches import touch
from moesim.simulator.engines.compiled.decide import carry_out, copy_misses, end_event, judge
from moesim.simulator.engines.compiled.jit import entry, jit
from moesim.simulator.engines.compiled.layout import (
    BEGAN,
    COPIES,
    COPIES_CERTAIN,
    COPIES_REPORTED,
    ENDED,
    ENDS,
    EVENT,
    FAULT,
    FOREVER,
    FORM,
    FREE,
    GIVES,
    GPU_FREE,
    HOST_BUSY,
    IS_PREFILL,
    KERNEL_ENDS,
    KERNELS_SETTLED,
    LAUNCHED,
    LAYER_NOW,
    LAYERS,
    LINK_FREE,
    NOW,
    OUTPUT_TOKENS,
    PREFETCHES,
    READING_NS,
    RING,
    STEPS,
    WISHES,
    ZERO,
    Number,
    Run,
)
from moesim.simulator.engines.compiled.machine import catch_up, launch, next_look, obey, settle
from moesim.simulator.engines.compiled.opening import opened
from moesim.simulator.engines.compiled.transfers import cancel, command, copy_ended, hand_over, wish

_ASK, _BEGIN = -2, -1
"""Turns that are not of a layer."""


@jit
def _answer(experts: Number, step: Number, run: Run) -> None:
    """End a call of the controller: prefetches go last, then the host obeys."""
    if run.state[WISHES]:
        hand_over(run)
    obey(experts, step, run)


@jit
def _poll(run: Run) -> bool:
    """Report the copies that have ended, and return whether there were any."""
    ring = run.state[RING]
    if run.state[COPIES_CERTAIN] < run.state[COPIES]:
        now = max(run.state[NOW], run.state[FREE])
        settle(now, ZERO, ZERO, run)
    before = run.state[COPIES_REPORTED]
    while (
        run.state[COPIES_REPORTED] < run.state[COPIES_CERTAIN]
        and run.copies[(run.state[COPIES_REPORTED] + 1) & ring, ENDS] <= run.state[NOW]
    ):
        copy_ended(run)
    return bool(run.state[COPIES_REPORTED] > before)


@jit
def _await_kernel(step: Number, run: Run) -> None:
    """Wait for the kernel launched last, polling while a prefetch waits, and read it."""
    ring = run.state[RING]
    kernel = run.state[LAUNCHED]
    while run.state[WISHES]:
        if _poll(run):
            _answer(ZERO, step, run)
            continue
        now = max(run.state[NOW], run.state[FREE])
        settle(now, ZERO, ZERO, run)
        if (
            run.state[KERNELS_SETTLED] >= kernel
            and run.kernels[kernel & ring, KERNEL_ENDS] <= run.state[NOW]
        ):
            break
        at = next_look(run)
        if run.state[FAULT]:
            return
        run.state[NOW] = at
    settle(FOREVER, kernel, ZERO, run)
    reading_ns = run.state[READING_NS]
    run.state[HOST_BUSY] += reading_ns
    run.state[NOW] = max(run.state[NOW], run.kernels[kernel & ring, KERNEL_ENDS]) + reading_ns


@jit
def _route(step: Number, layer: Number, run: Run) -> Number:
    """Tell the controller that a layer was routed; return how many experts it demands."""
    end_event(run)
    run.state[EVENT] += 1
    run.state[LAYER_NOW] = layer
    event = run.state[EVENT]
    counted = judge(event, run.steps[step, IS_PREFILL] == 0, run)
    if run.state[WISHES]:
        cancel(layer, run)
    touch(event, layer, run)
    waiting = copy_misses(counted[2], run)
    carry_out(event, layer, counted, waiting, run)
    return run.begins_N1[event + 1] - run.begins_N1[event]


@jit
def _begin(step: Number, run: Run) -> None:
    run.steps[step, BEGAN] = run.state[NOW]
    run.state[LAYER_NOW] = -1
    run.state[STEPS] += 1


@jit
def _end(step: Number, run: Run) -> None:
    run.steps[step, ENDED] = run.state[NOW]
    end_event(run)
    run.state[OUTPUT_TOKENS] += run.steps[step, GIVES]
    command(FORM, ZERO, run)


@entry(allocates=False)
def serve(first: int, last: int, arrays: Run) -> None:
    """Serve steps [first, last) of a run that has served those before, one part after another.

    The calls of the controller are turns of one loop, so that what they share is compiled once:
    one for each layer of a step, before them its beginning, after them its end, and before all
    of the run one that asks for the first step.
    """
    run = opened(arrays)
    layers = run.state[LAYERS]
    for step in range(first, last):
        for turn in range(_ASK if step == 0 else _BEGIN, layers + 1):
            experts = ZERO
            if turn == _ASK:
                command(FORM, ZERO, run)
            elif turn == _BEGIN:
                _begin(step, run)
            else:
                _await_kernel(step, run)
                _poll(run)
                if turn < layers:
                    experts = _route(step, turn, run)
                else:
                    _end(step, run)
            if run.state[PREFETCHES] and _BEGIN <= turn < layers:
                wish(step * (layers + 1) + 1 + turn, run)
            _answer(experts, step, run)
            if turn == _BEGIN:
                run.state[FREE] = run.state[NOW]
                launch(ZERO, step, run)
                catch_up(run)
            if run.state[FAULT]:
                return
    if last == len(run.steps):
        settle(FOREVER, ZERO, ZERO, run)
        run.state[NOW] = max(run.state[NOW], run.state[GPU_FREE], run.state[LINK_FREE])
