"""Small runs, set up in one call: a trace, three policies, a budget in slots, round costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from moesim.hardware_profiles.round_numbers import round_machine, round_runtime
from moesim.simulator import registry
from moesim.simulator.controller import Controller
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.counts import count
from moesim.simulator.engines.host import Host
from moesim.simulator.errors import InputError
from moesim.simulator.gpus.placement import COUNTED, PLACEMENTS
from moesim.simulator.gpus.plan import Dividing
from moesim.simulator.memory import MemoryPlan, MemorySpec
from moesim.simulator.messages import Command, Copy, LayerDone, Reroute, Run
from moesim.simulator.models.cost_shape import CostShape
from moesim.simulator.policies.base import Policy
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import ENGINES, Prepared
from moesim.simulator.serving.setup import serve
from moesim.simulator.serving.spec import Serving
from moesim.simulator.testing.adversary import AdversarialDriver, Choose
from moesim.simulator.testing.tiny import tiny_trace
from moesim.simulator.testing.witness import Witness
from moesim.simulator.tiers.plan import TierPlan
from moesim.traces import RoutingTrace

EXPERT_BYTES = 1_000_000
DENSE_BYTES = 500_000
HEAD_BYTES = 1_000_000

AnyPolicy = str | type[Policy] | PolicySpec
"""A spec as on the command line, a class with its default options, or a spec that was parsed."""


def as_spec(axis: Axis, policy: AnyPolicy) -> PolicySpec:
    """Return the spec of a policy however it is named; a guard's class guards the axis's plainest.

    Raises:
        InputError: The class is of another axis, or no such policy.
    """
    if isinstance(policy, PolicySpec):
        return policy
    if isinstance(policy, str):
        return registry.parse(axis, policy)
    if not issubclass(policy, registry.AXES[axis]):
        raise InputError(f"{policy.__name__} is no {axis} policy: it does not derive from its base")
    plainest = {"cache": "lru", "prefetch": "none", "schedule": "resident_first"}
    inner = registry.parse(axis, plainest[axis]) if registry.guards(policy) else None
    return PolicySpec(axis, policy.__name__, policy, {}, inner)


def small_run(
    trace: RoutingTrace,
    *,
    cache: AnyPolicy = "lru",
    prefetch: AnyPolicy = "none",
    schedule: AnyPolicy = "resident_first",
    slots: int | None = None,
    budget_bytes: int | None = None,
    expert_bytes_L: Sequence[int] | None = None,
    machine: Mapping[str, Any] | None = None,
    runtime: Mapping[str, Any] | None = None,
    window_bytes: int | None = None,
    profile_trace: RoutingTrace | None = None,
    ask_ns: Mapping[str, int] | None = None,
    seed: int = 0,
    serving: Serving | None = None,
    kv: str | None = None,
    kv_bytes_per_token: int = 0,
    tiers: TierPlan | None = None,
    gpus: int = 1,
    placement: str = PLACEMENTS[0],
    shared_dram: bool = False,
) -> Prepared:
    """Return a run that is ready to be driven: ``controller()`` and ``workload()`` are fresh ones.

    Args:
        trace: What is served.
        cache: The three policies, each as `AnyPolicy`.
        prefetch: See ``cache``.
        schedule: See ``cache``.
        slots: Room for experts, in the largest expert's size; by default for all of them.
        budget_bytes: The same in bytes, instead.
        expert_bytes_L: Bytes of one expert of each layer; a megabyte by default.
        machine: Options of `round_machine`.
        runtime: Options of `round_runtime`.
        window_bytes: Prefetches handed over at a time.
        profile_trace: What offline-profiled policies read; another tiny trace by default.
        ask_ns: How long each kind of ask takes.
        seed: Of the policies' random streams, and of arrivals.
        serving: Who arrives; one recorded request after another by default.
        kv: Room for their KV caches.
        kv_bytes_per_token: What a position of context takes of it in each layer.
        tiers: Where experts lie that are not in VRAM; in RAM by default.
        gpus: GPUs that serve; the room is shared out over them.
        placement: How experts are spread over them.
        shared_dram: Whether copies, CPU experts and reads from NVMe share the host's DRAM.
    """
    sizes_L = list(expert_bytes_L or [EXPERT_BYTES] * trace.layers)
    shape = CostShape.from_bytes(
        sizes_L,
        [DENSE_BYTES] * trace.layers,
        experts=trace.experts,
        top_k=trace.top_k,
        name="round",
        head_bytes=HEAD_BYTES,
    )
    layers = [replace(layer, kv_bytes_per_token=kv_bytes_per_token) for layer in shape.layers]
    shape = replace(shape, layers=tuple(layers))
    costs = CostModel(
        round_machine(**(machine or {})),
        round_runtime(**(runtime or {})),
        shape,
        shares_dram=shared_dram,
    )
    if window_bytes is not None:
        costs.window_bytes = window_bytes
    if budget_bytes is None:
        room = trace.layers * trace.experts if slots is None else slots
        budget_bytes = room * max(sizes_L)
    chosen: dict[Axis, AnyPolicy] = {"cache": cache, "prefetch": prefetch, "schedule": schedule}
    policies = {axis: as_spec(axis, policy) for axis, policy in chosen.items()}
    needs = frozenset().union(*(policy.needs for policy in policies.values()))
    needs |= frozenset() if tiers is None else tiers.needs
    if profile_trace is None and (needs & {"profile", "transitions"} or placement in COUNTED):
        profile_trace = tiny_trace(
            layers=trace.layers, experts=trace.experts, top_k=trace.top_k, seed=seed + 1
        )
    spec = RunSpec(
        trace=trace,
        trace_name="small",
        hardware="round",
        runtime="round",
        policies={axis: policy.text for axis, policy in policies.items()},
        profile_trace=profile_trace,
        seed=seed,
        ask_ns=ask_ns or {},
        serving=serving,
        gpus=gpus,
        placement=placement,
        shared_dram=shared_dram,
    )
    given = MemorySpec(expert_budget=f"{budget_bytes}B", kv=kv)
    divide = Dividing(gpus, placement, profile_trace)
    served = None
    if serving is not None:
        served = serve(serving, trace, policies, costs, given, seed=seed, divide=divide)
        memory = served.memory
    elif gpus > 1:
        memory = divide(given, costs, 1)
    else:
        memory = MemoryPlan(
            total_bytes=shape.resident_bytes + costs.workspace_bytes + budget_bytes,
            dense_bytes=shape.resident_bytes,
            kv_bytes=0,
            workspace_bytes=costs.workspace_bytes,
            expert_bytes=budget_bytes,
        )
    return Prepared(
        spec,
        costs.profile,
        costs.runtime,
        costs,
        memory,
        policies,
        [],
        served,
        tiers,
        divide.spread,
    )


def adversarial(
    run: Prepared, choose: Choose, *, controller: Controller | None = None
) -> AdversarialDriver:
    """Return a driver for the run that ends things as it likes; ``run()`` it."""
    controller = controller or run.controller()
    return AdversarialDriver(
        controller,
        run.workload(),
        budget_bytes=run.memory.expert_bytes,
        choose=choose,
        compute=controller.compute,
        declared=run.needs,
    )


def engine(
    run: Prepared,
    controller: Controller | Witness,
    *,
    name: str = "simpy",
    keep_spans: bool = True,
) -> Host:
    """Return an engine for the run under a controller, the reference unless named; ``run()`` it."""
    return ENGINES[name](
        controller,
        run.workload(),
        run.costs,
        expert_bytes=controller.residency.part_bytes,
        splits=controller.residency.is_split,
        budget_bytes=run.memory.expert_bytes,
        compute=controller.compute,
        ask_ns=run.ask_ns,
        keep_spans=keep_spans,
        terms=None if run.served is None else run.served.terms,
        gpus=run.gpus,
    )


def counted(run: Prepared) -> Controller:
    """Return a controller that has served the run without a clock; it has kept its log."""
    controller = run.controller(keep_log=True)
    count(controller, run.workload(), budget_bytes=run.memory.expert_bytes)
    return controller


def decisions(commands: Iterable[Command]) -> list[tuple[object, ...]]:
    """Return what was decided, in order: copies, runs, changed choices, layers done, unnumbered."""
    decided: list[tuple[object, ...]] = []
    for command in commands:
        match command:
            case Copy():
                decided.append(("copy", command.expert, command.dst, command.cause))
            case Run():
                decided.append(("run", command.experts, command.tokens, command.device))
            case Reroute():
                decided.append(("reroute", command.layer, command.changes))
            case LayerDone():
                decided.append(("done", command.layer))
            case _:
                pass
    return decided


def logged(controller: Controller) -> list[Command]:
    """Return all commands of a controller that keeps its log."""
    assert controller.log is not None, "build the controller with keep_log=True"
    return [command for _, _, commands in controller.log for command in commands]
