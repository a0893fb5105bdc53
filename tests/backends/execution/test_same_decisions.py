"""An execution decides as a replay does, and its fact log proves who decided."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch", reason="executions run a real model")

from moesim.backends.controllers import LOOK_IN
from moesim.backends.forcing import requests_of
from moesim.backends.generation import Request, Sampling
from moesim.backends.recorder import Origin, record
from moesim.backends.testing import first_difference
from moesim.simulator import systems
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.counts import count
from moesim.simulator.engines.simpy import SimpyEngine
from moesim.simulator.errors import CapabilityError
from moesim.simulator.workload.demands import Workload
from moesim.simulator.workload.foresight import RecordedFuture

TIMING_FREE = {
    "lru": "lru none resident_first",
    "lfu": "lfu none resident_first",
    **{name: name for name in ("mixtral-offloading", "moe-infinity-oss", "on-demand")},
}
SLOTS = 9


def policies_of(name: str) -> Any:
    """Return a system's policies, or those of a plain spec."""
    text = TIMING_FREE[name]
    if " " in text:
        return text
    bundle = systems.load(text)
    return {"cache": bundle.cache, "prefetch": bundle.prefetch, "schedule": bundle.schedule}


def fresh(it: Any, deciding: Any, **options: Any) -> Any:
    """Return another controller of the same kind."""
    parts = it.store.parts
    return deciding.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=it.store.sizes_L, **options
    )


def commands(log: Any) -> list[Any]:
    """Return every command in order."""
    return [command for _, _, answer in log for command in answer]


def replayed_by_simpy(it: Any, deciding: Any, trace: Any) -> list[Any]:
    """Return the commands of a replay in virtual time."""
    size = it.store.sizes_L[0]
    controller = fresh(it, deciding, keep_log=True)
    SimpyEngine(
        controller,
        Workload(trace),
        CostModel.for_tests(
            layers=trace.layers, experts=trace.experts, top_k=trace.top_k, expert_bytes=size
        ),
        expert_bytes=lambda _expert, _part: size,
        budget_bytes=deciding.budget_bytes,
    ).run()
    return commands(controller.log)


def counted(it: Any, deciding: Any, trace: Any) -> list[Any]:
    """Return the commands of a replay without a clock."""
    controller = fresh(it, deciding, keep_log=True)
    count(controller, Workload(trace), budget_bytes=deciding.budget_bytes)
    return commands(controller.log)


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe"])
@pytest.mark.parametrize("name", TIMING_FREE)
def test_replay_and_execution_decide_alike(
    offloaded: Callable[[str], Any], family: str, name: str
) -> None:
    """A timing-free system gives the same commands to threads, to SimPy and to the counter."""
    it = offloaded(family)
    deciding = it.deciding(policies_of(name), SLOTS)
    assert deciding.timing_free

    done = it.run(deciding)

    executed = commands(done.log)
    assert len(executed) > 100
    assert replayed_by_simpy(it, deciding, done.trace) == executed
    assert counted(it, deciding, done.trace) == executed


def test_a_wrong_route_changes_the_decisions(offloaded: Callable[[str], Any]) -> None:
    """The comparison can fail: one other expert in the trace gives other commands."""
    it = offloaded("Mixtral")
    deciding = it.deciding("lru none resident_first", SLOTS)
    done = it.run(deciding)

    expert_TLK = done.trace.expert_TLK
    used = set(expert_TLK[-1, -1].tolist())
    expert_TLK[-1, -1, 0] = next(e for e in range(done.trace.experts) if e not in used)

    assert counted(it, deciding, done.trace) != commands(done.log)


@pytest.mark.parametrize(
    "policies",
    [
        "lru none resident_first",
        "lfu next_gate:horizon=2 resident_first",
        "lru transition_table:fit=online cpu_on_miss",
        "transient none on_demand",
    ],
)
def test_a_fresh_controller_answers_the_fact_log_alike(
    offloaded: Callable[[str], Any], policies: str
) -> None:
    """Fed the facts of an execution, a fresh controller gives the commands that were obeyed."""
    it = offloaded("Qwen3Moe")
    deciding = it.deciding(policies, SLOTS)

    done = it.run(deciding)

    assert first_difference(done.log, fresh(it, deciding)) is None
    other = it.deciding(policies, SLOTS + 1)
    with pytest.raises(Exception, match="bytes for experts"):
        first_difference(done.log, fresh(it, other))


def test_the_log_of_another_system_differs(offloaded: Callable[[str], Any]) -> None:
    """A log is told apart by the first command that another policy answers otherwise."""
    it = offloaded("Qwen3Moe")
    done = it.run(it.deciding("lru none resident_first", SLOTS))

    other = fresh(it, it.deciding("lru none on_demand", SLOTS))

    difference = first_difference(done.log, other)
    assert difference is not None
    assert difference.startswith("call ")


def test_forced_routes_grant_the_future(offloaded: Callable[[str], Any]) -> None:
    """Belady runs a real model on forced routes, decides as in replay, and misses no more."""
    it = offloaded("Olmoe")
    recorded = it.run(it.deciding("lru none resident_first", SLOTS))
    trace = recorded.trace
    deciding = it.deciding("belady none resident_first", SLOTS)

    done = it.run(deciding, routes=trace, requests=requests_of(trace, 300))

    future = RecordedFuture(Workload(trace).events())
    controller = fresh(it, deciding, keep_log=True, future=future)
    count(controller, Workload(trace), budget_bytes=deciding.budget_bytes)
    assert commands(controller.log) == commands(done.log)
    assert done.counts.misses < recorded.counts.misses
    assert (done.trace.expert_TLK == trace.expert_TLK).all()


def test_a_live_model_has_no_future(offloaded: Callable[[str], Any]) -> None:
    """A policy that needs the future is refused by name unless routes are forced."""
    it = offloaded("Olmoe")
    with pytest.raises(CapabilityError, match=r"belady sees the future.*--routes"):
        it.run(it.deciding("belady none resident_first", SLOTS))


def test_forced_routes_of_another_topology_are_refused(offloaded: Callable[[str], Any]) -> None:
    """A trace of other experts per token is refused with both topologies in one line."""
    trace = (
        offloaded("Mixtral")
        .run(offloaded("Mixtral").deciding("lru none resident_first", SLOTS))
        .trace
    )
    it = offloaded("Olmoe")
    with pytest.raises(CapabilityError, match=r"x 8 experts top-2, the model has 3 x 8 top-3"):
        it.run(
            it.deciding("lru none resident_first", SLOTS),
            routes=trace,
            requests=requests_of(trace, 300),
        )


def test_the_trace_keeps_what_gates_foretold(offloaded: Callable[[str], Any]) -> None:
    """What a policy was told of the next layers is in the trace, for a replay to read."""
    it = offloaded("Qwen3Moe")

    trace = it.run(it.deciding("lru next_gate:horizon=2 resident_first", SLOTS)).trace

    look_TLHM = trace.signals[LOOK_IN]
    assert look_TLHM.shape == (trace.tokens, trace.layers, 2, 6)
    assert ((look_TLHM >= 0) & (look_TLHM < trace.experts)).all()


def test_look_ahead_is_the_recorders(
    make_model: Callable[[str], Any], offloaded: Callable[[str], Any]
) -> None:
    """The gates asked while a layer runs say what the recorder's signal says."""
    it = offloaded("DeepseekV3")
    trace = it.run(it.deciding("lru next_gate:horizon=1 resident_first", SLOTS)).trace
    recorded = record(
        make_model("DeepseekV3"),
        [Request(prompt=prompt) for prompt in it.prompts],
        Sampling(new_tokens=6, ignore_eos=True),
        Origin(model="tiny"),
        signals=("look_in",),
        horizons=2,
    )

    assert (recorded.expert_TLK == trace.expert_TLK).all()
    assert (recorded.signals[LOOK_IN] == trace.signals[LOOK_IN]).all()
