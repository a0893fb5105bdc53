"""Quick figures of a machine that runs the threads driver, in half a minute.

The better of two executions with every expert resident tells what the host, the dense part and the
experts take; that of LRU at a quarter of them tells what copies take where they are used, what
kernels lose beside them and, as the one unknown that is fitted, what a run costs to hand from
thread to thread.
All figures are called estimated. Claims are made on other requests, systems and budgets.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import numpy as np

from moesim.backends.controllers import Deciding
from moesim.hardware_profiles import HardwareProfile, RuntimeProfile
from moesim.simulator.commands.policies import DEFAULTS as LRU
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.simpy import SimpyEngine
from moesim.simulator.messages import Copy, Run
from moesim.simulator.models.cost_shape import CostShape
from moesim.simulator.results.rows import token_times
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace
from moesim.validation.exposure import lost_ns
from moesim.validation.machine import Executed
from moesim.validation.quick_files import Figures, profiles, trees

SECOND_NS = 10**9
FIT_STEPS = 12
LARGEST_RUN_NS = 2_000_000

Serve = Callable[[Deciding, RoutingTrace], Executed]


def measure(
    serve: Serve, shape: CostShape, trace: RoutingTrace, cores: int
) -> tuple[HardwareProfile, RuntimeProfile, dict[str, dict[str, Any]]]:
    """Return profiles of this machine, and the trees that their files hold.

    Args:
        serve: Executes a trace under somebody's decisions.
        shape: Of the model.
        trace: What is fitted on; no claim may be made on it.
        cores: Of the host, for the profile.
    """
    sizes_L = [layer.expert_bytes for layer in shape.layers]
    everything = Deciding(policies=LRU, budget_bytes=shape.expert_bytes_total)
    quarter_bytes = shape.expert_bytes_total // 4 // max(sizes_L) * max(sizes_L)
    quarter = Deciding(policies=LRU, budget_bytes=quarter_bytes)
    warm = _warmed(serve(everything, trace), serve(everything, trace))
    moving = _warmed(serve(quarter, trace), serve(quarter, trace))
    base = _figures(warm, moving, shape, trace)
    wanted_ns = _mean_gap_ns(moving)

    def gap_ns(handing_ns: int) -> float:
        costs = CostModel(*profiles(trees(_handing(base, handing_ns), cores)), shape)
        return _replayed_gap_ns(quarter, trace, costs)

    low, high = 0, LARGEST_RUN_NS
    for _ in range(FIT_STEPS):
        middle = (low + high) // 2
        if gap_ns(middle) < wanted_ns:
            low = middle
        else:
            high = middle
    found = trees(_handing(base, low), cores)
    return *profiles(found), found


def _warmed(one: Executed, other: Executed) -> Executed:
    """Return the faster of two executions: the one that less came between."""
    return min(one, other, key=_mean_gap_ns)


def _mean_gap_ns(done: Executed) -> float:
    return fmean(token_times(done.timings.requests).gaps_ns)


def _figures(warm: Executed, moving: Executed, shape: CostShape, trace: RoutingTrace) -> Figures:
    layers, size = len(shape.layers), shape.layers[0].expert_bytes
    single = [
        (len(run.experts), ns) for run, ns in _runs(moving) + _runs(warm) if set(run.tokens) == {1}
    ]
    by_size = {n: median(ns for m, ns in single if m == n) for n in {m for m, _ in single}}
    slope, intercept = (
        np.polyfit(list(by_size), list(by_size.values()), 1)
        if len(by_size) > 1
        else (next(iter(by_size.values())) / next(iter(by_size)), 0.0)
    )
    expert_ns = max(1.0, float(slope))
    run_ns = max(0, round(float(intercept)))
    many = [(run.tokens, ns) for run, ns in _runs(warm) if set(run.tokens) != {1}]
    flop_ns = _flop_ns(many, expert_ns, run_ns, shape.layers[0].expert_flops_per_token)
    copies = [end - begin for _, label, begin, end in moving.spans or () if isinstance(label, Copy)]
    experts_ns = sum(ns for run, ns in _runs(moving))
    slow_down = lost_ns(moving.spans or []) / max(1, experts_ns)
    calls = len(warm.log)
    decision_ns = round(warm.timings.decision_ns / calls)
    gaps_ns = token_times(warm.timings.requests).gaps_ns
    first_ns = token_times(warm.timings.requests).first_ns
    decode_ns = median(gaps_ns) / layers - decision_ns - run_ns - shape.top_k * expert_ns
    prompts = [int(trace.is_prefill_T[begin:end].sum()) for begin, end in _rows(trace)]
    in_prefill_ns = sum(ns for _, ns in many)
    prefill_ns = (sum(first_ns) - in_prefill_ns) / layers / len(first_ns) - decision_ns
    dense = shape.layers[0]

    def floor_ns(tokens: float) -> float:
        return max(
            dense.dense_bytes * expert_ns / size, tokens * dense.dense_flops_per_token * flop_ns
        )

    rise = floor_ns(fmean(prompts)) - floor_ns(1)
    multiple = min(100.0, max(1.0, (prefill_ns - decode_ns) / rise if rise > 0 else 1.0))
    return Figures(
        expert_bytes_per_s=round(size * SECOND_NS / expert_ns),
        flop_per_s=round(SECOND_NS / flop_ns),
        run_ns=run_ns,
        copy_bytes_per_s=round(size * SECOND_NS / median(copies)),
        slow_down_ppm=min(10**6, max(0, round(slow_down * 1e6))),
        dense_fixed_ns=max(0, round(decode_ns - multiple * floor_ns(1))),
        dense_multiple=round(multiple, 4),
        decision_ns=decision_ns,
    )


def _runs(done: Executed) -> list[tuple[Run, int]]:
    spans = done.spans or []
    return [(label, end - begin) for _, label, begin, end in spans if isinstance(label, Run)]


def _rows(trace: RoutingTrace) -> list[tuple[int, int]]:
    starts = trace.row_starts().tolist()
    return list(pairwise(starts))


def _flop_ns(
    many: list[tuple[tuple[int, ...], int]], expert_ns: float, run_ns: int, flops: int
) -> float:
    """Return the time of one FLOP with which the prompts' runs take what they took, in all."""
    wanted = sum(ns - run_ns for _, ns in many)
    low, high = expert_ns / flops / 1e4, expert_ns / flops
    for _ in range(40):
        middle = (low + high) / 2
        took = sum(max(expert_ns, n * flops * middle) for tokens, _ in many for n in tokens)
        low, high = (middle, high) if took < wanted else (low, middle)
    return low


def _handing(base: Figures, handing_ns: int) -> Figures:
    """Return the figures if handing a run to its thread takes this long; a layer has one anyway."""
    return replace(
        base,
        run_ns=base.run_ns + handing_ns,
        dense_fixed_ns=max(0, base.dense_fixed_ns - handing_ns),
    )


def _replayed_gap_ns(deciding: Deciding, trace: RoutingTrace, costs: CostModel) -> float:
    sizes_L = tuple(layer.expert_bytes for layer in costs.shape.layers)
    controller = deciding.controller(experts=trace.experts, top_k=trace.top_k, sizes_L=sizes_L)
    timings = SimpyEngine(
        controller,
        Workload(trace),
        costs,
        expert_bytes=lambda expert, _part: sizes_L[expert // trace.experts],
        budget_bytes=deciding.budget_bytes,
    ).run()
    return fmean(token_times(timings.requests).gaps_ns)
