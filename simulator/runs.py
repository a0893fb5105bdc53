"""One fully specified experiment: what determines it, and how it is replayed.

``RunSpec`` (``run_spec.py``) is what a user says; ``prepare`` resolves its names and grants what
the policies need; ``Prepared.replay`` carries it out on an engine. What it comes to is told by
``run_result.py``.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any

from moesim.hardware_profiles import HardwareProfile, RuntimeProfile, load_runtime
from moesim.hardware_profiles import load as load_hardware
from moesim.simulator import registry
from moesim.simulator.assembly import assemble
from moesim.simulator.controller import Controller
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.clock import ClockEngine
from moesim.simulator.engines.compiled.engine import replay_compiled
from moesim.simulator.engines.host import Host
from moesim.simulator.engines.simpy import SimpyEngine
from moesim.simulator.errors import CapabilityError
from moesim.simulator.gpus.plan import Dividing, GpuPlan
from moesim.simulator.ledger import check
from moesim.simulator.long_traces import has_long, is_long
from moesim.simulator.memory import MemoryPlan
from moesim.simulator.policies.base import UNLIMITED_BYTES
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.results.rows import (
    SCHEMA_VERSION,
)
from moesim.simulator.results.run_result import RunResult, result_of
from moesim.simulator.results.streamed_times import StreamedTimes
from moesim.simulator.run_spec import GRANTS, RunSpec, check_needs, resolve_shape
from moesim.simulator.serving.setup import Served, serve
from moesim.simulator.serving.workload import ServedWorkload
from moesim.simulator.tiers.plan import TierPlan, plan_tiers
from moesim.simulator.workload.demands import Workload
from moesim.simulator.workload.foresight import RecordedFuture
from moesim.traces import RoutingTrace

ENGINES: Mapping[str, type[Host]] = {"clock": ClockEngine, "simpy": SimpyEngine}
"""The simulators that drive any policies, the default first; their figures are equal, to the ns."""

COMPILED = "compiled"
"""The simulator of built-in policies alone; see ``engines/compiled``."""

ENGINE_NAMES = (*ENGINES, COMPILED)
"""All that a run may name."""


def prepare(spec: RunSpec) -> "Prepared":
    """Resolve every name of a spec.

    Raises:
        MoesimError, ProfileError, TraceError: A name, a file or a budget is wrong, or the trace
            lacks what a policy needs; one line that says which and what would do.
    """
    spec = replace(spec, trace=_hashed(spec.trace))
    machine = load_hardware(spec.hardware)
    runtime = load_runtime(spec.runtime)
    shape, notes = resolve_shape(spec)
    policies = {axis: registry.parse(axis, text) for axis, text in spec.policies.items()}
    check_needs(spec, {str(axis): policy for axis, policy in policies.items()})
    needs = frozenset().union(*(policy.needs for policy in policies.values()))
    costs = CostModel(machine, runtime, shape, shares_dram=spec.shared_dram).with_signals(needs)
    served = None
    divide = Dividing(spec.gpus, spec.placement, spec.profile_trace)
    if spec.serving is None:
        context = int(spec.trace.position_T.max()) + 1
        memory = divide(spec.memory, costs, context)
    else:
        served = serve(
            spec.serving, spec.trace, policies, costs, spec.memory, seed=spec.seed, divide=divide
        )
        notes += served.notes
        memory = served.memory
    tiers, tier_notes = plan_tiers(spec.tiers, machine, memory.host_bytes)
    if tiers is not None:
        check_needs(spec, tiers.policies)
    notes += [*divide.notes, *tier_notes]
    if tiers is not None and divide.spread is not None:
        raise CapabilityError(
            f"--gpus {spec.gpus}: tiers below VRAM are simulated for one GPU alone; leave out "
            "--peer-cache"
        )
    return Prepared(
        spec, machine, runtime, costs, memory, policies, notes, served, tiers, divide.spread
    )


@cache
def _version() -> str:
    return version("moesim")


def _hashed(trace: RoutingTrace) -> RoutingTrace:
    """Return the trace with its content hash, which a run asks for more than once."""
    return trace if trace.known is not None else trace.knowing(trace.content_hash())


@dataclass(slots=True)
class Prepared:
    """A run whose names are resolved; ``replay`` may be called any number of times."""

    spec: RunSpec
    machine: HardwareProfile
    runtime: RuntimeProfile
    costs: CostModel
    memory: MemoryPlan
    policies: Mapping[Axis, PolicySpec]
    notes: list[str]
    served: Served | None = None
    tiers: TierPlan | None = None
    gpus: GpuPlan | None = None

    @property
    def sizes_L(self) -> tuple[int, ...]:
        """Bytes of one expert of each layer."""
        return tuple(layer.expert_bytes for layer in self.costs.shape.layers)

    @property
    def tokens(self) -> int:
        """Tokens that go through the model, if no request is refused."""
        return self.spec.trace.tokens if self.served is None else self.served.tokens

    @property
    def is_long(self) -> bool:
        """Whether it is too long for bounds and, of recorded requests, for every token's time."""
        trace = self.spec.trace
        return is_long(trace) if self.served is None else has_long(trace, self.served.tokens)

    @property
    def is_lossy(self) -> bool:
        """Whether a policy may change the router's choices, and so the text."""
        return any(policy.is_lossy for policy in self.policies.values())

    @property
    def run_id(self) -> str:
        """Hash of everything that determines the run, and of the engine that is to show it."""
        spec = self.spec
        identity = {
            "schema": SCHEMA_VERSION,
            "trace": spec.trace.content_hash(),
            "profile_trace": spec.profile_trace.content_hash() if spec.profile_trace else None,
            "hardware": self._machine_identity(),
            "runtime": self.runtime.model_dump(mode="json"),
            "shape": repr(self.costs.shape),
            "moesim": _version(),
            "policies": {axis: policy.text for axis, policy in sorted(self.policies.items())},
            "code": {axis: policy.code_hash for axis, policy in sorted(self.policies.items())},
            "system": spec.system,
            "expert_budget_bytes": self.memory.expert_bytes,
            "engine": spec.engine,
            "seed": spec.seed,
            "ask_ns": dict(sorted(spec.ask_ns.items())),
        }
        if self.served is not None:
            identity["served"] = self.served.identity
        if self.tiers is not None:
            identity["tiers"] = self.tiers.identity
        if self.gpus is not None:
            identity["gpus"] = self.gpus.identity
        if spec.shared_dram:
            identity["shared_dram"] = True
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _machine_identity(self) -> dict[str, Any]:
        """Return the machine's figures; what only several GPUs use determines no run of one."""
        told = self.machine.model_dump(mode="json")
        if self.gpus is None:
            del told["link"]["shared"], told["link"]["peer_pcie"]
        return told

    @property
    def ask_ns(self) -> dict[str, int]:
        """How long each kind of ask takes: as the run says, else as its policies were measured."""
        measured: dict[str, int] = {}
        for policy in self.policies.values():
            measured |= policy.measured_ask_ns
        return {**measured, **self.spec.ask_ns}

    @property
    def needs(self) -> frozenset[str]:
        """What the run grants its policies, those of the tiers included."""
        needs = frozenset().union(*(policy.needs for policy in self.policies.values()))
        return needs if self.tiers is None else needs | self.tiers.needs

    def workload(self) -> Workload:
        """Return what is served, with the signals that the policies read."""
        needs = self.needs
        signals = sorted(needs - GRANTS - {"gates"})
        if self.served is not None:
            return ServedWorkload(
                self.spec.trace,
                self.served.stream,
                signals=signals,
                gates="gates" in needs,
                keep_formed=not self.is_long,
            )
        return Workload(self.spec.trace, signals=signals, gates="gates" in needs)

    def controller(
        self, *, keep_log: bool = False, future: RecordedFuture | None = None
    ) -> Controller:
        """Return a fresh controller with fresh policies.

        Args:
            keep_log: Whether it keeps every call.
            future: What stands for the demands to come; the trace's where a policy needs them.
        """
        spec = self.spec
        if future is None and "future" in self.needs:
            future = RecordedFuture(Workload(spec.trace).events())
        return assemble(
            self.policies,
            experts=spec.trace.experts,
            top_k=spec.trace.top_k,
            sizes_L=self.sizes_L,
            budget_bytes=self.memory.expert_bytes,
            costs=self.costs,
            window_bytes=self.costs.window_bytes,
            seed=spec.seed,
            profile_trace=spec.profile_trace,
            future=future,
            kv_bytes=UNLIMITED_BYTES if self.served is None else self.memory.kv_bytes,
            tiers=self.tiers,
            gpus=self.gpus,
            keep_log=keep_log,
        )

    def replay(
        self,
        *,
        on_step: Callable[[int], None] | None = None,
        keep_spans: bool = False,
        keep_log: bool = False,
    ) -> RunResult:
        """Carry the run out in virtual time and balance its books.

        Args:
            on_step: Called after every step with the number of tokens processed.
            keep_spans: Whether to keep every job for a timeline.
            keep_log: Whether to keep every fact and command.
        """
        if self.spec.engine == COMPILED:
            kept = [what for what, is_kept in (("spans", keep_spans), ("log", keep_log)) if is_kept]
            controller, timings = replay_compiled(self, on_step, kept)
            check(controller.counts, timings)
            return result_of(self, controller, timings)
        controller = self.controller(keep_log=keep_log)
        streamed = StreamedTimes() if self.is_long and self.served is None else None
        workload = self.workload()
        engine = ENGINES[self.spec.engine](
            controller,
            workload,
            self.costs,
            expert_bytes=controller.residency.part_bytes,
            splits=controller.residency.is_split,
            budget_bytes=self.memory.expert_bytes,
            system=self.spec.system,
            compute=controller.compute,
            ask_ns=self.ask_ns,
            on_step=on_step,
            keep_spans=keep_spans,
            terms=None if self.served is None else self.served.terms,
            on_request=None if streamed is None else streamed.append,
            gpus=self.gpus,
        )
        timings = engine.run()
        timings.streamed = streamed
        controller.close()
        check(controller.counts, timings)
        formed = workload.formed if isinstance(workload, ServedWorkload) else None
        return result_of(self, controller, timings, engine.spans, formed)
