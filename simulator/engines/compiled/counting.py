"""Hits and misses of a cache policy, without a clock and without costs, as fast as it goes.

As ``engine_counts.py``: what is demanded is there at once, nothing is copied ahead, so that only
residency is left. For hit-rate questions and beside cache simulators, which have no clock either.
"""

from dataclasses import dataclass

from moesim.simulator.engines.compiled import layout
from moesim.simulator.engines.compiled.acceptance import check_policies
from moesim.simulator.engines.compiled.caches import touch
from moesim.simulator.engines.compiled.decide import carry_out, copy_misses, end_event, judge
from moesim.simulator.engines.compiled.jit import entry
from moesim.simulator.engines.compiled.layout import (
    COMMANDS,
    COPIES_REPORTED,
    EVENT,
    FAULT,
    IS_PREFILL,
    KINDS,
    LAYER_NOW,
    LAYERS,
    LOADING,
    MISSING,
    NUMBERED,
    RUNS,
    Run,
)
from moesim.simulator.engines.compiled.opening import opened
from moesim.simulator.engines.compiled.running import check_fault, packed
from moesim.simulator.errors import CapabilityError
from moesim.simulator.policies.prefetch.none import NoPrefetch
from moesim.simulator.runs import Prepared
from moesim.simulator.workload.foresight import RecordedFuture


@dataclass(frozen=True, slots=True)
class Counted:
    """What a replay without a clock counts; see ``ledger.Counts``."""

    demands: int
    hits: int
    misses: int
    decode_demands: int
    decode_hits: int
    evictions: int
    bytes_demand: int


def tables(run: Prepared) -> Run:
    """Return a run without prefetch as tables, which `count_all` serves once.

    Raises:
        CapabilityError: The engine has no such policy, or the run prefetches.
    """
    check_policies(run.policies)
    if run.policies["prefetch"].cls is not NoPrefetch:
        raise CapabilityError(
            f"a replay without a clock has no prefetch {run.policies['prefetch'].text}: "
            "take prefetch none, or an engine with a clock"
        )
    return packed(run, run.controller(future=RecordedFuture(())))


def count(run: Prepared) -> Counted:
    """Return what a run's cache policy hits and misses.

    Raises:
        CapabilityError: See `tables`.
        PolicyError: A pool cannot hold what it must.
    """
    arrays = tables(run)
    count_all(arrays)
    check_fault(arrays)
    state = arrays.state.tolist()
    return Counted(
        state[layout.DEMANDED],
        state[layout.HITS],
        state[layout.MISSES],
        state[layout.DECODE_DEMANDS],
        state[layout.DECODE_HITS],
        state[layout.EVICTIONS],
        state[layout.BYTES_DEMAND],
    )


@entry(allocates=False)
def count_all(arrays: Run) -> None:
    """Serve all steps of a run that has not begun; copies have ended before the next layer."""
    run = opened(arrays)
    layers = run.state[LAYERS]
    for step in range(len(run.steps)):
        run.state[LAYER_NOW] = -1
        is_decode = run.steps[step, IS_PREFILL] == 0
        for layer in range(layers):
            end_event(run)
            run.state[EVENT] += 1
            run.state[LAYER_NOW] = layer
            event = run.state[EVENT]
            counted = judge(event, is_decode, run)
            touch(event, layer, run)
            if counted[2] == 0:
                continue
            waiting = copy_misses(counted[2], run)
            if waiting:
                carry_out(event, layer, counted, waiting, run)
                if run.state[FAULT]:
                    return
            for at in range(counted[2]):
                run.experts[run.lists[MISSING, at], LOADING] = 0
            run.state[COMMANDS] = run.state[KINDS] = run.state[RUNS] = 0
            run.state[COPIES_REPORTED] = run.state[NUMBERED]
        end_event(run)
