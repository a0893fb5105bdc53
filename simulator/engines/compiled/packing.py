"""Puts a run into the tables that the loops work on."""

from collections.abc import Mapping
from math import inf, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.control.residency import Residency
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.compiled import layout
from moesim.simulator.engines.compiled.acceptance import CACHES
from moesim.simulator.engines.compiled.layout import Floats, Ints, Run
from moesim.simulator.engines.compiled.lfru import AT_ONCE
from moesim.simulator.engines.compiled.marks import WORD
from moesim.simulator.engines.compiled.priorities import NEVER
from moesim.simulator.engines.compiled.trace_arrays import Futures, futures_of, uses_of
from moesim.simulator.engines.compiled.wishes import Wishes
from moesim.simulator.models.cost_shape import CostLayer
from moesim.simulator.policies.priorities import OMEGA, RHO
from moesim.simulator.policies.schedule.on_demand import OnDemand
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.workload.recorded_steps import steps_of
from moesim.traces import RoutingTrace

# Shapes as in layout.py.

LINE_BYTES = 64
"""Of the processor's cache."""

SPARE = 8
"""What else may be under way."""


def pack(
    trace: RoutingTrace,
    costs: CostModel,
    policies: Mapping[Axis, PolicySpec],
    system: str,
    window_bytes: int,
    residency: Residency,
    initial: tuple[int, ...],
    wishes: Wishes,
) -> Run:
    """Return a run that has not begun, with its initial experts in their places.

    Args:
        trace: What is served.
        costs: How long things take.
        policies: One of each axis, all of them accepted.
        system: Whose decision time to charge.
        window_bytes: Prefetches are handed over while fewer bytes than these are unfinished.
        residency: The pools, empty.
        initial: The experts to place.
        wishes: What the prefetch policy answers.
    """
    policy = CACHES[policies["cache"].cls]
    uses = uses_of(trace)
    futures = futures_of(trace) if policy == layout.BELADY else None
    state = _state(trace, costs, system)
    state[layout.POLICY] = policy
    state[layout.COUNTS_FOR_LIFE] = policies["cache"].options.get("count") == "lifetime"
    state[layout.IS_ON_DEMAND] = policies["schedule"].cls is OnDemand
    state[layout.WINDOW_BYTES] = window_bytes
    state[layout.PREFETCHES] = len(wishes.begins) > 1
    state[layout.STAGING] = len(residency.caches)
    # Under way are at most a layer's demand and what is prefetched: all experts and those whose
    # room was given away. The fewer are kept, the more of them stay in the processor's cache.
    prefetched = trace.layers * trace.experts if state[layout.PREFETCHES] else 0
    state[layout.RING] = (1 << (4 * (prefetched + trace.experts + SPARE)).bit_length()) - 1
    keys, marks = _keys(policy, state)
    jobs = int(state[layout.RING]) + 1
    everyone = trace.layers * trace.experts
    steps, attention_GC = _steps(trace, costs)
    experts = _aligned(everyone + keys, layout.EXPERT_COLUMNS, np.int32)
    experts[:everyone, layout.OF_LAYER] = np.repeat(np.arange(trace.layers), trace.experts)
    experts[:, layout.LEASED_BY] = experts[:, layout.KEY] = -1
    experts[:, layout.YOUNGER] = experts[:, layout.OLDER] = np.arange(len(experts))
    rest = _aligned(everyone, layout.REST_COLUMNS, np.int64)
    run = Run(
        begins_N1=uses.begins_N1,
        expert_U=uses.expert_U,
        detail_U3=uses.detail_U3,
        next_use_U=np.empty(0, np.int32) if futures is None else futures.next_use_U,
        wish_begins=wishes.begins,
        wished_W=wishes.expert_W,
        attention_GC=attention_GC,
        expert_CT=_expert_ns(costs, int(uses.detail_U3[:, layout.TOKENS].max(initial=1))),
        steps=steps,
        layers=_layers(costs, residency),
        experts=experts,
        last_use_X=np.zeros(everyone, np.int64),
        rest=rest,
        pools=np.zeros((len(residency.caches) + 1, layout.POOL_COLUMNS), np.int64),
        marks=np.zeros(marks, np.int64),
        scores=_scores(trace, policies["cache"], policy, state, futures),
        lists=np.zeros((layout.LISTS, max(everyone, 2 * trace.experts) + SPARE), np.int64),
        commands=np.zeros((jobs, layout.COMMAND_COLUMNS), np.int64),
        copies=np.zeros((jobs, layout.COPY_COLUMNS), np.int64),
        kernels=np.zeros((jobs, layout.KERNEL_COLUMNS), np.int64),
        state=state,
    )
    _furnish(run, residency, initial)
    return run


def _state(trace: RoutingTrace, costs: CostModel, system: str) -> Ints:
    """Return the scalars: the trace's measures, the costs, and a run that has not begun."""
    state = np.zeros(layout.STATE, np.int64)
    state[layout.EVENTS] = len(uses_of(trace).begins_N1) - 1
    state[layout.IS_PLAIN] = uses_of(trace).is_plain
    state[layout.LAYERS], state[layout.WIDTH] = trace.layers, trace.experts
    state[layout.EVERYONE] = trace.layers * trace.experts
    base_ns, with_expert_ns, with_command_ns = (
        costs.decision_ns(system, experts, commands)
        for experts, commands in ((0, 0), (1, 0), (0, 1))
    )
    state[layout.EXPERTS_FIXED_NS] = costs.experts_gpu_ns(0, [])
    state[layout.HEAD_NS] = costs.head_ns(1)
    state[layout.LAUNCH_LAYER_NS] = costs.launch_layer_ns
    state[layout.LAUNCH_RUN_NS] = costs.launch_run_ns(0)
    state[layout.LAUNCH_PER_EXPERT_NS] = costs.launch_run_ns(1) - costs.launch_run_ns(0)
    state[layout.LAUNCH_PROMPT_LAYER_NS] = costs.launch_prompt_layer_ns
    state[layout.LAUNCH_PROMPT_RUN_NS] = costs.launch_run_ns(0, is_prompt=True)
    state[layout.LAUNCH_PROMPT_EXPERT_NS] = costs.launch_run_ns(
        1, is_prompt=True
    ) - costs.launch_run_ns(0, is_prompt=True)
    state[layout.ISSUE_NS] = costs.copy_issue_ns(1)
    state[layout.READING_NS] = costs.sync_ns + costs.poll_ns
    state[layout.DECISION_NS] = base_ns
    state[layout.DECISION_PER_EXPERT_NS] = with_expert_ns - base_ns
    state[layout.DECISION_PER_COMMAND_NS] = with_command_ns - base_ns
    state[layout.PAUSE_NS] = costs.pause_threshold_ns
    state[layout.SLOW_DOWN_PPM] = costs.slow_down_ppm
    state[layout.RUN_WHILE_COPYING_NS] = costs.run_while_copying_ns
    state[layout.RUN_AFTER_COPY_NS] = costs.run_after_copy_ns
    state[layout.BLOCKS] = costs.copies_block_host
    state[layout.DECIDES_ON_GPU] = costs.decides_on != "host"
    state[layout.LOOKED_AT] = 1
    state[layout.EVENT] = state[layout.LAYER_NOW] = state[layout.LOOKS_AT] = -1
    return state


def _aligned(rows: int, columns: int, dtype: type[Any]) -> NDArray[Any]:
    """Return a table of zeros that begins where a cache line does."""
    numbers = np.zeros(rows * columns + LINE_BYTES, dtype)
    first = -numbers.ctypes.data % LINE_BYTES // numbers.itemsize
    return numbers[first : first + rows * columns].reshape(rows, columns)


def _classes(costs: CostModel) -> dict[CostLayer, int]:
    """Return the first layer of each kind, in order."""
    first: dict[CostLayer, int] = {}
    for number, layer in enumerate(costs.shape.layers):
        first.setdefault(layer, number)
    return first


def _steps(trace: RoutingTrace, costs: CostModel) -> tuple[Ints, Ints]:
    """Return the table of steps, and attention's time by kind of step and kind of layer."""
    found = steps_of(trace)
    met_S2 = np.stack([np.diff(found.begins_S1), found.context_S], axis=1)
    different_G2, row_S = np.unique(met_S2, axis=0, return_inverse=True)
    classes = _classes(costs).values()
    attention_GC = [
        [costs.attention_ns(layer, tokens, context) for layer in classes]
        for tokens, context in different_G2.tolist()
    ]
    steps = np.zeros((len(met_S2), layout.STEP_COLUMNS), np.int64)
    steps[:, layout.COST_ROW] = row_S.ravel()
    steps[:, layout.GIVES] = found.gives_S
    steps[:, layout.IS_PREFILL] = found.prefills_S
    return steps, np.asarray(attention_GC, np.int64)


def _expert_ns(costs: CostModel, most_tokens: int) -> Ints:
    """Return the time of one expert by kind of layer and tokens, without what each run adds."""
    run_ns = costs.experts_gpu_ns(0, [])
    return np.asarray(
        [
            [costs.experts_gpu_ns(layer, [tokens]) - run_ns for tokens in range(most_tokens + 1)]
            for layer in _classes(costs).values()
        ],
        np.int64,
    )


def _layers(costs: CostModel, residency: Residency) -> Ints:
    classes = list(_classes(costs))
    layers = np.zeros((len(costs.shape.layers), layout.LAYER_COLUMNS), np.int64)
    for number, layer in enumerate(costs.shape.layers):
        size = residency.size_L[number]
        layers[number, layout.SIZE] = size
        layers[number, layout.POOL] = residency.cache_L[number].number
        layers[number, layout.CLASS] = classes.index(layer)
        layers[number, layout.COPY_NS] = costs.copy_ns(size)
        layers[number, layout.COPY_AFTER_PAUSE_NS] = costs.copy_ns(
            size, idle_ns=costs.pause_threshold_ns + 1
        )
        layers[number, layout.COPY_AFTER_IDLE_NS] = costs.copy_ns(size, idle_ns=1)
    return layers


def _keys(policy: int, state: Ints) -> tuple[int, int]:
    """Return how many shelves and words of marks there are, having entered those of a pool."""
    keys = 1
    if policy in (layout.LFU, layout.LFRU):
        keys = int(state[layout.EVENTS]) // int(state[layout.LAYERS]) + 2
        keys = -(-keys // AT_ONCE) * AT_ONCE
    words, marks, level = keys, 0, layout.LEVEL
    while words > 1 or level == layout.LEVEL:
        words = -(-words // WORD)
        state[level], state[level + 1] = marks, words
        marks += words
        level += 2
    pools = int(state[layout.STAGING])
    state[layout.LEVELS] = (level - layout.LEVEL) // 2
    state[layout.KEYS], state[layout.MARKS_OF_POOL] = keys, marks
    return pools * keys, pools * marks


def _scores(
    trace: RoutingTrace, cache: PolicySpec, policy: int, state: Ints, futures: Futures | None
) -> Floats:
    """Return the scores of a run that has not begun, as ``lfru.py`` and ``priorities.py`` say."""
    everyone = trace.layers * trace.experts
    parts: tuple[object, ...] = ()
    if policy == layout.LFRU:
        keys, pools = int(state[layout.KEYS]), int(state[layout.STAGING])
        parts = (np.full(pools * keys, inf), 1 / np.maximum(np.arange(keys), 1))
    elif policy in (layout.LCP, layout.BELADY):
        rho, omega = cache.options.get("rho", RHO), cache.options.get("omega", OMEGA)
        youth = [-log(rho) / omega / trace.top_k]
        of_uses = [-inf, *map(log, range(1, trace.tokens + 1))]
        scores_X = np.full(everyone, -inf)
        if futures is not None:
            scores_X = -futures.first_use_X.astype(np.float64)
            scores_X[futures.first_use_X == state[layout.EVENTS]] = NEVER
        parts = (scores_X, np.full(everyone + trace.layers, inf), youth, of_uses)
    flat = np.concatenate([np.asarray(part, np.float64) for part in (*parts, [])])
    scores = _aligned(len(flat), 1, np.float64).ravel()
    scores[:] = flat
    return scores


def _furnish(run: Run, residency: Residency, initial: tuple[int, ...]) -> None:
    """Enter the pools' room and what lies in it before time zero, of which no policy is told."""
    pools = (*residency.caches, residency.staging)
    run.pools[:, layout.FREE_BYTES] = [pool.free_bytes for pool in pools]
    for at, expert in enumerate(initial):
        layer = run.experts[expert, layout.OF_LAYER]
        run.experts[expert, layout.ROOM] = layout.CACHED
        run.rest[expert, layout.CAME] = at - len(initial)
        size = run.layers[layer, layout.SIZE]
        run.pools[run.layers[layer, layout.POOL], layout.FREE_BYTES] -= size
        run.state[layout.BYTES_INITIAL] += size
    run.pools[:, layout.LEAST_FREE_BYTES] = run.pools[:, layout.FREE_BYTES]
