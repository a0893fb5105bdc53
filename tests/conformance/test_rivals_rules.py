"""ProMoE, AdapMoE, HybriMoE and HOBBIT as bundles, each decision rule on a trace made by hand.

Every trace here has two or three layers of four experts; expert 5 is the second layer's expert 1.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moesim.simulator import systems
from moesim.simulator.controller import Controller
from moesim.simulator.messages import Copy, LayerRouted, Run, StepBegan
from moesim.simulator.terms import Cause
from moesim.simulator.testing import counted, engine, logged, small_run, trace_of
from moesim.traces import RoutingTrace, SignalSpec

EXPERTS = 4
EXPERT_BYTES = 1_000_000
"""Of an expert of the small runs."""
LAYER_ROUTED = SignalSpec(tap="made by hand", known_at="layer_routed", producer="router")
Token = Sequence[Sequence[int]]


def decoded(*tokens: Token, **signals: Any) -> RoutingTrace:
    """Return a trace of decode steps, each token's experts by layer, with signals."""
    trace = trace_of([([], tokens)], experts=EXPERTS)
    specs = dict.fromkeys(signals, LAYER_ROUTED)
    arrays = {name: np.asarray(values) for name, values in signals.items()}
    header = trace.header.model_copy(update={"signals": specs})
    return replace(trace, header=header, signals=arrays)


def bundle(name: str) -> dict[str, str]:
    """Return a system's policies."""
    system = systems.load(name)
    return {"cache": system.cache, "prefetch": system.prefetch, "schedule": system.schedule}


def served(name: str, trace: RoutingTrace, **options: Any) -> Controller:
    """Return the controller of a system that has served a trace without a clock."""
    return counted(small_run(trace, **bundle(name), **options))


def copied(controller: Controller, cause: Cause) -> list[int]:
    """Return the experts that were copied for a cause, in order."""
    return [c.expert for c in logged(controller) if isinstance(c, Copy) and c.cause is cause]


def by_event(controller: Controller, kind: type, cause: Cause | None = None) -> dict[int, Any]:
    """Return the experts of copies or runs by the layer event that handed them over."""
    found: dict[int, list[Any]] = {}
    event = -1
    for facts, _, commands in controller.log or ():
        event += sum(isinstance(fact, LayerRouted) for fact in facts)
        for command in commands:
            if isinstance(command, kind) and cause in (None, getattr(command, "cause", None)):
                experts = getattr(command, "experts", None) or (command.expert,)
                found.setdefault(event, []).extend(experts)
    return found


def ahead(*rows: Sequence[Sequence[int]]) -> list[list[list[list[int]]]]:
    """Return a look-ahead of two layers: for each token and layer, the best of each horizon."""
    return [[[list(best), list(best)] for best in row] for row in rows]


# ProMoE: learned, preemptive, residents first. Chunks are named as a departure.

FOLLOWS = decoded(*[[[0], [1]], [[2], [3]]] * 4)
"""What it learns from: 1 follows 0, and 3 follows 2."""


def test_promoe_fetches_what_it_has_learnt_follows() -> None:
    """After expert 0 comes 5 (1 of layer 1), after 2 comes 7; from layer 1 it knows as well."""
    trace = decoded([[0], [1]], [[2], [3]])
    controller = served("promoe", trace, slots=8, profile_trace=FOLLOWS)
    assert by_event(controller, Copy, Cause.PREFETCH)[0] == [5]
    assert by_event(controller, Copy, Cause.PREFETCH)[2] == [7]
    assert copied(controller, Cause.DEMAND) == [0]  # 2 was foretold by the token before


def test_promoe_drops_what_is_queued_once_the_router_has_chosen() -> None:
    """Two experts are foretold and one may be under way: the other, not chosen, is never copied."""
    learnt = decoded(*[[[0, 1], [2, 3]]] * 3)
    trace = decoded([[0, 1], [0, 1]])
    run = small_run(
        trace, **bundle("promoe"), slots=8, profile_trace=learnt, window_bytes=EXPERT_BYTES
    )
    controller = run.controller(keep_log=True)
    engine(run, controller, name="clock").run()
    fetched = copied(controller, Cause.PREFETCH)
    assert fetched[:1] == [6]
    assert 7 not in fetched
    assert copied(controller, Cause.DEMAND) == [0, 1, 4, 5]


def test_promoe_runs_residents_then_what_is_on_its_way_then_misses() -> None:
    """Of layer 1 expert 4 is resident, 6 was foretold and is under way, 5 is absent."""
    learnt = decoded(*[[[0, 1, 2], [0, 2, 3]]] * 3)
    trace = decoded([[0, 1, 2], [0, 3, 2]], [[0, 1, 2], [1, 2, 0]])
    run = small_run(trace, **bundle("promoe"), slots=6, profile_trace=learnt)
    controller = run.controller(keep_log=True)
    engine(run, controller, name="clock").run()
    judged = [
        command.experts
        for facts, _, commands in controller.log or ()
        if any(isinstance(fact, LayerRouted) and fact.layer == 1 for fact in facts)
        for command in commands
        if isinstance(command, Run)
    ]
    assert len(judged[0]) >= 1
    assert judged[-1] == (5,)  # absent, so last


# AdapMoE: quotas by dynamic programming, the first missing expert ahead.


def test_adapmoe_gives_slots_where_they_save_misses() -> None:
    """Layer 0 turns among all four experts, layer 1 keeps to one: 4 and 1 of five slots."""
    profile = decoded(
        *[[[turn % 4], [1]] for turn in range(24)], look_in_TLHM=[[[[0], [0]]] * 2] * 24
    )
    trace = decoded([[0], [1]], look_in_TLHM=[[[[0], [0]]] * 2])
    controller = served("adapmoe", trace, slots=5, profile_trace=profile)
    assert [pool.capacity_bytes // EXPERT_BYTES for pool in controller.residency.caches] == [4, 1]


def test_adapmoe_fetches_the_first_missing_alone() -> None:
    """Layer 1 is promised 4, 5 and 6: 4 is there already, 5 comes and 6 does not."""
    look = ahead([[0, 1, 2], [0, 1, 2]], [[0, 1, 2], [3, 2, 1]])
    profile = decoded([[0, 1, 2], [0, 1, 2]], look_in_TLHM=ahead([[0, 1, 2], [0, 1, 2]]))
    trace = decoded([[0, 1, 2], [0, 3, 2]], [[0, 1, 2], [0, 1, 2]], look_in_TLHM=look)
    controller = served("adapmoe", trace, slots=8, profile_trace=profile)
    fetched = by_event(controller, Copy, Cause.PREFETCH)
    assert fetched[0] == [4]
    assert fetched[2] == [5]


# HybriMoE: running scores, two pointers.


def probs(**named: float) -> list[float]:
    """Return a layer's router probabilities by expert, e0=..., others 0."""
    return [named.get(f"e{expert}", 0.0) for expert in range(EXPERTS)]


def test_hybrimoe_evicts_the_least_running_score() -> None:
    """Two slots a layer: 0 was given 0.9 lately and 1 but 0.1, so that 2 takes 1's place."""
    other = probs(e0=1.0)
    rows = [[probs(e0=0.9, e1=0.1), other], [probs(e0=0.2, e2=0.8), other]]
    trace = decoded([[0, 1], [0, 1]], [[2, 0], [0, 1]], router_probs_TLE=rows)
    run = {**bundle("hybrimoe"), "schedule": "resident_first", "prefetch": "none"}
    controller = counted(small_run(trace, **run, slots=4))
    assert not controller.residency.has_room(1)
    assert controller.residency.has_room(0)
    assert controller.residency.has_room(2)


def test_hybrimoe_fetches_the_best_of_the_next_layer() -> None:
    """In the second token expert 6 has most of layer 1's score and is fetched, if it is away."""
    rows = [[probs(e0=1.0), probs(e2=0.7, e1=0.3)]] * 2
    trace = decoded([[0], [1]], [[0], [1]], router_probs_TLE=rows)
    controller = served("hybrimoe", trace, slots=8, machine={"cpu_bytes_per_s": 5 * 10**9})
    assert by_event(controller, Copy, Cause.PREFETCH)[2] == [6]


def test_hybrimoe_shares_misses_between_link_and_cpu() -> None:
    """A copy takes half of the CPU's time: of three misses the CPU takes one, the link two."""
    rows = [[probs(e0=0.5, e1=0.3, e2=0.2)] * 2]
    trace = decoded([[0, 1, 2], [0, 1, 2]], router_probs_TLE=rows)
    controller = served("hybrimoe", trace, slots=8, machine={"cpu_bytes_per_s": 5 * 10**9})
    on_cpu = [
        r.experts for r in logged(controller) if isinstance(r, Run) and r.device.kind == "cpu"
    ]
    assert [len(experts) for experts in on_cpu] == [1, 1]
    assert len(copied(controller, Cause.DEMAND)) == 4


# HOBBIT: stacked gates, a weighted score.


def stacked(*rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Any]:
    """Return a look-ahead: for each token and layer the best of the next and the one after."""
    return [[[list(near), list(far)] for near, far in row] for row in rows]


def test_hobbit_looks_a_layer_further_where_the_next_lacks_nothing() -> None:
    """First 4 is absent and comes; in the next token it is there, so that 9 of layer 2 comes."""
    look = stacked(
        [([0], [1]), ([2], [0]), ([0], [0])],
        [([0], [1]), ([1], [0]), ([0], [0])],
    )
    trace = decoded([[0], [0], [2]], [[0], [0], [1]], look_in_TLHM=look)
    fetched = by_event(served("hobbit", trace, slots=12), Copy, Cause.PREFETCH)
    assert fetched[0] == [4]
    assert fetched[3] == [9]


def test_hobbit_gives_up_the_seldom_and_old_and_far() -> None:
    """Of two slots 0 was used twice and 1 once: 1 leaves for 2."""
    look = stacked(*[[([0], [0])]] * 4)
    trace = decoded([[0]], [[1]], [[0]], [[2]], look_in_TLHM=look)
    run = {**bundle("hobbit"), "prefetch": "none"}
    controller = counted(small_run(trace, **run, slots=2))
    held = [expert for expert in range(4) if controller.residency.has_room(expert)]
    assert held == [0, 2]


def test_hobbit_keeps_what_the_next_gate_promises() -> None:
    """As above, but the gate promises 1 for the next token: 0 leaves, used more often or not."""
    look = stacked(*[[([0], [0])]] * 3, [([1], [0])])
    trace = decoded([[0]], [[1]], [[0]], [[2]], look_in_TLHM=look)
    run = {**bundle("hobbit"), "prefetch": "none"}
    controller = counted(small_run(trace, **run, slots=2))
    held = [expert for expert in range(4) if controller.residency.has_room(expert)]
    assert held == [1, 2]


@pytest.mark.parametrize("name", ["promoe", "adapmoe", "hybrimoe", "hobbit"])
def test_each_of_them_serves_steps(name: str) -> None:
    """On a trace that gives all it reads, a bundle serves every step."""
    look = stacked(*[[([0], [0])] * 2] * 3)
    trace = decoded(
        *[[[0], [1]]] * 3, look_in_TLHM=look, router_probs_TLE=[[probs(e0=1.0)] * 2] * 3
    )
    controller = served(name, trace, slots=4, profile_trace=trace)
    begun = [f for facts, _, _ in controller.log or () for f in facts if isinstance(f, StepBegan)]
    assert len(begun) == controller.counts.steps == 3
