"""What a user says of a run, and what follows from it before anything is replayed.

Whose costs are charged, and whether the trace gives what the policies need.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moesim.hardware_profiles import load as load_hardware
from moesim.hardware_profiles import load_runtime
from moesim.simulator import models
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import CapabilityError, InputError
from moesim.simulator.gpus.placement import PLACEMENTS
from moesim.simulator.memory import MemorySpec
from moesim.simulator.models.cost_shape import CostShape
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.serving.spec import Serving
from moesim.simulator.tiers.plan import TierSpec
from moesim.traces import RoutingTrace

GRANTS = frozenset({"future", "profile", "transitions"})
"""What a run can grant beside the signals of its trace."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What determines a run, as the user says it.

    Attributes:
        trace: What was routed; ``trace_name`` is what results call it.
        hardware: Name or file of a hardware profile.
        runtime: Name or file of a runtime profile.
        policies: A spec for each axis (see ``registry``).
        system: The bundle that they come from, or ``custom``.
        memory: Room for experts.
        model: Shape whose costs are charged: a name, a YAML or a ``config.json``; None finds the
            trace's own.
        weights_format: Format of the experts; None is the model's usual one.
        cost_of: Replay the trace at the cost of another model's shape, which results say.
        profile_trace: Another recording of the same model, for offline-profiled policies.
        engine: Which simulator runs.
        seed: Of the policies' random streams.
        ask_ns: How long each kind of ask takes.
        serving: Who arrives and on which terms; None serves one recorded request after another.
        tiers: Where experts lie that are not in VRAM.
        gpus: How many GPUs of the host serve.
        placement: How experts or layers are spread over them; see ``gpus/placement``.
        shared_dram: Whether copies, CPU experts and reads from NVMe share the host's DRAM.
    """

    trace: RoutingTrace
    trace_name: str
    hardware: str
    policies: Mapping[Axis, str]
    runtime: str = "moesim-graph"
    system: str = "custom"
    memory: MemorySpec = field(default_factory=MemorySpec)
    model: str | None = None
    weights_format: str | None = None
    cost_of: str | None = None
    profile_trace: RoutingTrace | None = None
    engine: str = "clock"
    seed: int = 0
    ask_ns: Mapping[str, int] = field(default_factory=dict)
    serving: Serving | None = None
    tiers: TierSpec = field(default_factory=TierSpec)
    gpus: int = 1
    placement: str = PLACEMENTS[0]
    shared_dram: bool = False


def costs_of(spec: RunSpec) -> CostModel:
    """Return what things cost in a run, for questions that need no replay.

    Raises:
        MoesimError, ProfileError: Machine, runtime or model is not known.
    """
    shape, _ = resolve_shape(spec)
    return CostModel(load_hardware(spec.hardware), load_runtime(spec.runtime), shape)


def resolve_shape(spec: RunSpec) -> tuple[CostShape, list[str]]:
    """Return whose costs are charged, and what a reader of the result must know of it.

    Raises:
        InputError: The trace's model is unknown and the trace carries no byte counts.
    """
    trace = spec.trace
    header = trace.header
    if spec.cost_of is not None and spec.model is not None:
        raise InputError(f"give --model {spec.model} or --cost-of {spec.cost_of}, not both")
    named = spec.cost_of or spec.model
    if named is not None:
        shape = _load_model(named)
        costs = shape.cost_shape(spec.weights_format)
        if (len(costs.layers), costs.experts) == (trace.layers, trace.experts):
            lowered = trace.top_k < shape.top_k
            note = (
                [f"top-{trace.top_k} where {shape.name} has top-{shape.top_k}"] if lowered else []
            )
            if spec.cost_of is not None:
                note.append(f"routing of {header.model} at the cost of {shape.name}")
            return costs, note
        if spec.cost_of is None:
            raise InputError(
                f"{spec.trace_name}: {trace.layers} MoE layers x {trace.experts} experts are not "
                f"{shape.name}'s {len(costs.layers)} x {costs.experts}; use --cost-of {named} to "
                "charge its costs all the same"
            )
        costs = costs.for_trace(trace.layers, trace.experts, trace.top_k)
        return costs, [
            f"routing of {header.model} ({trace.layers} x {trace.experts} top-{trace.top_k}) at "
            f"the cost of {shape.name}'s experts, one of its layers for each of the trace's"
        ]
    found = models.match(header.model, trace.layers, trace.experts, trace.top_k)
    if found is not None:
        costs = models.load(found.name).cost_shape(spec.weights_format)
        if spec.weights_format is None and header.expert_bytes and header.dense_bytes:
            costs = costs.with_bytes(header.expert_bytes, header.dense_bytes)
        return costs, [found.note] if found.note else []
    if header.expert_bytes is not None and header.dense_bytes is not None:
        if spec.weights_format is not None:
            raise InputError(
                f"--format {spec.weights_format}: {spec.trace_name} gives bytes, not a shape; "
                "name the model with --model"
            )
        costs = CostShape.from_bytes(
            header.expert_bytes,
            header.dense_bytes,
            experts=trace.experts,
            top_k=trace.top_k,
            name=header.model,
        )
        return costs, ["costs guessed from the trace's byte counts: no head, no KV cache"]
    raise InputError(
        f"{spec.trace_name}: no shape is known for model '{header.model}' with {trace.layers} MoE "
        f"layers x {trace.experts} experts; give --model NAME or its config.json, or --cost-of "
        f"NAME (there are: {', '.join(models.names())})"
    )


def _load_model(name: str) -> models.ModelShape:
    path = Path(name)
    return models.from_hf_config(path) if path.suffix == ".json" else models.load(name)


def check_needs(spec: RunSpec, policies: Mapping[str, PolicySpec]) -> None:
    """Refuse what the run cannot grant its policies.

    Raises:
        CapabilityError: A profile trace, a signal or the future is wanted and not to be had.
    """
    trace = spec.trace
    for axis, policy in policies.items():
        for need in sorted(policy.needs):
            if need == "future" and spec.serving is not None:
                raise CapabilityError(
                    f"{axis} policy {policy.text} sees the future, but in which order requests "
                    "that arrive are served is not known beforehand; replay without --arrivals"
                )
            if need in ("profile", "transitions"):
                if spec.profile_trace is None:
                    raise CapabilityError(
                        f"{axis} policy {policy.text} is profiled on another trace of the model; "
                        "give it with --profile-trace TRACE"
                    )
                theirs = (spec.profile_trace.layers, spec.profile_trace.experts)
                if theirs != (trace.layers, trace.experts):
                    raise CapabilityError(
                        f"the profile trace has {theirs[0]} layers x {theirs[1]} experts, "
                        f"{spec.trace_name} has {trace.layers} x {trace.experts}"
                    )
            elif need not in GRANTS and need not in trace.header.signals:
                there = ", ".join(trace.header.signals) or "none"
                raise CapabilityError(
                    f"{axis} policy {policy.text} reads the signal '{need}', which "
                    f"{spec.trace_name} does not have (its signals: {there}); record it with "
                    "moesim record"
                )
