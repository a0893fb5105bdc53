"""One fully specified experiment: what determines it, and how it is replayed.

``RunSpec`` (``run_spec.py``) is what a user says; ``prepare`` resolves its names and grants what
the policies need; ``Prepared.replay`` carries it out on an engine.
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
from moesim.simulator.bounds import Actions, Bounds, known_bounds
from moesim.simulator.controller import Controller
from moesim.simulator.costs import CostModel
from moesim.simulator.demands import Workload
from moesim.simulator.engine_clock import ClockEngine
from moesim.simulator.engine_compiled import replay_compiled
from moesim.simulator.engine_simpy import SimpyEngine
from moesim.simulator.errors import CapabilityError, PolicyError
from moesim.simulator.foresight import RecordedFuture
from moesim.simulator.gpus.plan import Dividing, GpuPlan
from moesim.simulator.gpus.results import NO_BOUNDS as NO_BOUNDS_OF_SEVERAL
from moesim.simulator.gpus.results import exchange_ns, gpu_fields
from moesim.simulator.host import Host
from moesim.simulator.ledger import Counts, Timings, check
from moesim.simulator.long_traces import NO_BOUNDS, has_long, is_long
from moesim.simulator.machine import Span
from moesim.simulator.memory import MemoryPlan
from moesim.simulator.messages import Command, Fact
from moesim.simulator.policies.base import UNLIMITED_BYTES
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.request_times import request_fields
from moesim.simulator.results import (
    SCHEMA_VERSION,
    Row,
    TokenTimes,
    bound_fields,
    count_fields,
    latency_fields,
    ordered,
    token_times,
)
from moesim.simulator.run_spec import GRANTS, RunSpec, check_needs, resolve_shape
from moesim.simulator.serving.limits import Formed, served_bounds
from moesim.simulator.serving.setup import Served, serve
from moesim.simulator.serving.workload import ServedWorkload
from moesim.simulator.streamed_times import StreamedTimes, streamed_fields
from moesim.simulator.tiers.plan import TierPlan, plan_tiers
from moesim.simulator.tiers.results import (
    BOUNDS_WITHOUT_NVME,
    BOUNDS_WITHOUT_PEER,
    least_nvme_bytes,
    tier_fields,
)
from moesim.traces import RoutingTrace

ENGINES: Mapping[str, type[Host]] = {"clock": ClockEngine, "simpy": SimpyEngine}
"""The simulators that drive any policies, the default first; their figures are equal, to the ns."""

COMPILED = "compiled"
"""The simulator of built-in policies alone; see ``engine_compiled.py``."""

ENGINE_NAMES = (*ENGINES, COMPILED)
"""All that a run may name."""


@dataclass(slots=True)
class RunResult:
    """What a run gave: the row, and what plots and timelines are made from.

    ``bounds`` are those of the steps that were served: of recorded requests one after another, or
    as they were formed of requests that arrived; None for a long run.
    """

    row: Row
    counts: Counts
    timings: Timings
    tokens: TokenTimes
    bounds: Bounds | None
    memory: MemoryPlan
    spans: list[Span] | None
    log: list[tuple[list[Fact], int, list[Command]]] | None


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
    costs = CostModel(machine, runtime, shape).with_signals(needs)
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
    notes += tier_notes
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
            return self._result(controller, timings, None)
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
        return self._result(controller, timings, engine.spans, formed)

    def actions(self, counts: Counts) -> Actions:
        """Return the means that a run's policies had, which its bounds allow."""
        does = frozenset().union(*(policy.does for policy in self.policies.values()))
        if counts.cpu_experts and "cpu_experts" not in does:
            name = self.policies["schedule"].cls.__name__
            raise PolicyError(
                f"{name} runs experts on the CPU and does not say so; give the class "
                'does = frozenset({"cpu_experts"})'
            )
        return Actions(
            prefetch="prefetch" in does,
            cpu_experts="cpu_experts" in does,
            initial=counts.bytes_initial > 0,
            lossy=self.is_lossy,
        )

    @property
    def is_lossy(self) -> bool:
        """Whether a policy may change the router's choices, and so the text."""
        return any(policy.is_lossy for policy in self.policies.values())

    def _loop(self) -> str:
        """Return whether later routes feel what a lossy system does; nothing if it loses none."""
        if not self.is_lossy:
            return ""
        trace, bound = self.spec.trace, self.spec.trace.header.closed_loop
        if bound is None or self.served is not None:
            return "open"
        budget_bytes, sizes = self.memory.expert_bytes, set(self.sizes_L)
        is_closed = (
            bound.policies == {axis: policy.text for axis, policy in self.policies.items()}
            and bound.slots == budget_bytes // max(sizes)
            and (len(sizes) == 1 or bound.budget_bytes == budget_bytes)
            and bound.seed == self.spec.seed
            and bound.order == trace.order_hash()
        )
        return "closed" if is_closed else "open"

    def _caveats(self, counts: Counts) -> list[str]:
        """Return what the model of the machine leaves out and a reader of this run must know."""
        caveats = []
        loop, bound = self._loop(), self.spec.trace.header.closed_loop
        if loop == "open":
            caveats.append(
                "open loop: choices are changed by recorded scores and later routes do not feel it;"
                " accuracy is measured by execution alone"
            )
        if bound is not None and loop != "closed":
            caveats.append(
                f"the routes are those of {bound.system} at {bound.budget_bytes} bytes of experts"
            )
        if counts.cpu_experts and counts.copies:
            caveats.append(
                "CPU experts are charged the DRAM's rate without copies beside them; where both "
                "run they share it"
            )
        if self.tiers is not None and self.tiers.host is not None:
            caveats.append(BOUNDS_WITHOUT_NVME)
        if self.machine.gpus > 1 and self.gpus is None:
            caveats.append(f"one of the machine's {self.machine.gpus} GPUs computes")
        return caveats

    def _result(
        self,
        controller: Controller,
        timings: Timings,
        spans: list[Span] | None,
        formed: list[Formed] | None = None,
    ) -> RunResult:
        spec, memory, shape, counts = self.spec, self.memory, self.costs.shape, controller.counts
        tokens = token_times(timings.requests)
        latencies, notes = latency_fields(tokens)
        streamed: Row = {}
        if timings.streamed is not None:
            tokens = TokenTimes([], [], timings.streamed.last_end_ns, timings.streamed.tokens)
            streamed, notes = streamed_fields(timings.streamed, timings.span_ns)
        actions = self.actions(counts)
        limit = None
        nvme_bytes = None
        if self.is_long:
            notes.append(NO_BOUNDS)
        elif self.gpus is not None:
            notes.append(NO_BOUNDS_OF_SEVERAL)
        elif self.tiers is not None and self.tiers.peer is not None:
            notes.append(BOUNDS_WITHOUT_PEER)
        elif self.served is None:
            limit = known_bounds(spec.trace, self.costs, memory.expert_bytes, actions)
        elif formed is not None:
            limit = served_bounds(
                spec.trace,
                self.served.stream.drawing.all_rows(),
                formed,
                self.costs,
                memory.expert_bytes + self.served.lent_bytes,
                actions,
            )
        if not self.is_long and self.served is None and not self.is_lossy:
            nvme_bytes = least_nvme_bytes(
                self.tiers, spec.trace, self.sizes_L, counts.bytes_initial
            )
        means = str(actions) if self.served is None else f"{actions}, given this batching"
        bound: Row = bound_fields(limit, means, latencies["mean_tpot_ms"])
        busy = {
            "copy": timings.link_busy_ns,
            "dense": timings.dense_busy_ns,
            "experts": timings.experts_busy_ns,
            "head": timings.head_busy_ns,
            "host": timings.host_busy_ns,
            "cpu": timings.cpu_busy_ns,
            "nvme": timings.engines_busy_ns.get("nvme", 0),
            "peer": timings.engines_busy_ns.get("peer", 0),
        }
        busy["copy" if self.machine.link.peer is None else "peer"] += exchange_ns(timings)
        derived = [
            s for s, signal in spec.trace.header.signals.items() if signal.evidence == "derived"
        ]
        largest = max(self.sizes_L)
        row: Row = {
            **count_fields(counts, timings),
            **latencies,
            **request_fields(
                timings.requests, timings.server, steps=counts.steps, span_ns=timings.span_ns
            ),
            "requests": len(timings.requests),
            **streamed,
            **tier_fields(self.tiers, counts, timings, nvme_bytes),
            **gpu_fields(self.gpus, timings, controller.residency),
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "trace": spec.trace_name,
            "trace_hash": spec.trace.content_hash(),
            "trace_evidence": spec.trace.header.evidence,
            "model": shape.name,
            "hardware": self.machine.name,
            "runtime": self.runtime.name,
            "system": spec.system,
            **{axis: policy.text for axis, policy in self.policies.items()},
            "arrivals": "" if self.served is None else self.served.stream.text,
            "stitched": 0 if self.served is None else self.served.stream.drawing.stitched,
            "engine": spec.engine,
            "seed": spec.seed,
            "slots": memory.expert_bytes // largest,
            "expert_bytes": largest,
            "expert_budget_bytes": memory.expert_bytes,
            "staging_bytes": controller.residency.staging.capacity_bytes,
            "tokens": timings.server.tokens,
            "loop": self._loop(),
            "derived": "; ".join(sorted(derived)),
            "peak_vram_bytes": memory.used_bytes,
            "vram_dense_bytes": memory.dense_bytes,
            "vram_kv_bytes": memory.kv_bytes,
            "vram_workspace_bytes": memory.workspace_bytes,
            **bound,
            "evidence": self.costs.evidence_for(busy),
            "band": round(self.costs.band_for(busy), 6),
            "notes": "; ".join(
                [
                    *self.notes,
                    *controller.notes,
                    *self._caveats(counts),
                    *notes,
                    *(limit.notes if limit else ()),
                ]
            ),
        }
        return RunResult(
            ordered(row), counts, timings, tokens, limit, memory, spans, controller.log
        )
