"""What a replay comes to: its row, its bounds, and what a reader must know of both."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.hardware_profiles.units import format_bytes_per_s
from moesim.simulator.controller import Controller
from moesim.simulator.engines.machine import Span
from moesim.simulator.errors import PolicyError
from moesim.simulator.gpus.results import NO_BOUNDS as NO_BOUNDS_OF_SEVERAL
from moesim.simulator.gpus.results import exchange_ns, gpu_fields
from moesim.simulator.ledger import Counts, Timings
from moesim.simulator.limits.bounds import Actions, Bounds, known_bounds
from moesim.simulator.long_traces import NO_BOUNDS
from moesim.simulator.memory import MemoryPlan
from moesim.simulator.messages import Command, Fact
from moesim.simulator.results.request_times import request_fields
from moesim.simulator.results.rows import (
    SCHEMA_VERSION,
    Row,
    TokenTimes,
    bound_fields,
    count_fields,
    latency_fields,
    ordered,
    token_times,
)
from moesim.simulator.results.streamed_times import streamed_fields
from moesim.simulator.serving.limits import Formed, served_bounds
from moesim.simulator.tiers.results import (
    BOUNDS_WITHOUT_NVME,
    BOUNDS_WITHOUT_PEER,
    least_nvme_bytes,
    tier_fields,
)

if TYPE_CHECKING:
    from moesim.simulator.runs import Prepared

__all__ = ["RunResult", "result_of"]


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


def result_of(
    run: "Prepared",
    controller: Controller,
    timings: Timings,
    spans: list[Span] | None = None,
    formed: list[Formed] | None = None,
) -> RunResult:
    """Return what a replay comes to.

    Args:
        run: The run.
        controller: What decided; its counts balance with the times.
        timings: What was measured.
        spans: Every job, if kept.
        formed: The steps that were formed of requests that arrived, if noted.
    """
    spec, served, counts = run.spec, run.served, controller.counts
    tokens = token_times(timings.requests)
    latencies, time_notes = latency_fields(tokens)
    streamed: Row = {}
    if timings.streamed is not None:
        tokens = TokenTimes([], [], timings.streamed.last_end_ns, timings.streamed.tokens)
        streamed, time_notes = streamed_fields(timings.streamed, timings.span_ns)
    actions = _actions(run, counts)
    limit, bound_notes = _bounds(run, actions, formed)
    means = str(actions) if served is None else f"{actions}, given this batching"
    busy = _busy_ns(run, timings)
    memory, header, largest = run.memory, spec.trace.header, max(run.sizes_L)
    derived = [name for name, signal in header.signals.items() if signal.evidence == "derived"]
    notes = [*run.notes, *controller.notes, *_caveats(run, counts), *time_notes, *bound_notes]
    row: Row = {
        **count_fields(counts, timings),
        **latencies,
        **request_fields(
            timings.requests, timings.server, steps=counts.steps, span_ns=timings.span_ns
        ),
        "requests": len(timings.requests),
        **streamed,
        **tier_fields(run.tiers, counts, timings, _least_nvme_bytes(run, counts)),
        **gpu_fields(run.gpus, timings, controller.residency),
        "schema_version": SCHEMA_VERSION,
        "run_id": run.run_id,
        "trace": spec.trace_name,
        "trace_hash": spec.trace.content_hash(),
        "trace_evidence": header.evidence,
        "model": run.costs.shape.name,
        "hardware": run.machine.name,
        "runtime": run.runtime.name,
        "system": spec.system,
        **{axis: policy.text for axis, policy in run.policies.items()},
        "arrivals": "" if served is None else served.stream.text,
        "stitched": 0 if served is None else served.stream.drawing.stitched,
        "engine": spec.engine,
        "seed": spec.seed,
        "slots": memory.expert_bytes // largest,
        "expert_bytes": largest,
        "expert_budget_bytes": memory.expert_bytes,
        "staging_bytes": controller.residency.staging.capacity_bytes,
        "tokens": timings.server.tokens,
        "loop": _loop(run),
        "derived": "; ".join(sorted(derived)),
        "peak_vram_bytes": memory.used_bytes,
        "vram_dense_bytes": memory.dense_bytes,
        "vram_kv_bytes": memory.kv_bytes,
        "vram_workspace_bytes": memory.workspace_bytes,
        **bound_fields(limit, means, latencies["mean_tpot_ms"]),
        "evidence": run.costs.evidence_for(busy),
        "band": round(run.costs.band_for(busy), 6),
        "notes": "; ".join(notes),
    }
    return RunResult(ordered(row), counts, timings, tokens, limit, memory, spans, controller.log)


def _actions(run: "Prepared", counts: Counts) -> Actions:
    """Return the means that a run's policies had, which its bounds allow.

    Raises:
        PolicyError: A policy used a means that its class does not name.
    """
    does = frozenset().union(*(policy.does for policy in run.policies.values()))
    if counts.cpu_experts and "cpu_experts" not in does:
        name = run.policies["schedule"].cls.__name__
        raise PolicyError(
            f"{name} runs experts on the CPU and does not say so; give the class "
            'does = frozenset({"cpu_experts"})'
        )
    return Actions(
        prefetch="prefetch" in does,
        cpu_experts="cpu_experts" in does,
        initial=counts.bytes_initial > 0,
        lossy=run.is_lossy,
    )


def _bounds(
    run: "Prepared", actions: Actions, formed: list[Formed] | None
) -> tuple[Bounds | None, list[str]]:
    """Return what no policy with the same means can beat, or None, and what to know of it."""
    if run.is_long:
        return None, [NO_BOUNDS]
    if run.gpus is not None:
        return None, [NO_BOUNDS_OF_SEVERAL]
    if run.tiers is not None and run.tiers.peer is not None:
        return None, [BOUNDS_WITHOUT_PEER]
    trace, costs, budget_bytes = run.spec.trace, run.costs, run.memory.expert_bytes
    if run.served is None:
        limit = known_bounds(trace, costs, budget_bytes, actions)
    else:
        assert formed is not None
        rows = run.served.stream.drawing.all_rows()
        room_bytes = budget_bytes + run.served.lent_bytes
        limit = served_bounds(trace, rows, formed, costs, room_bytes, actions)
    return limit, [*limit.notes]


def _least_nvme_bytes(run: "Prepared", counts: Counts) -> int | None:
    """Return what any policy must read from NVMe; None where nobody has worked that out."""
    if run.is_long or run.served is not None or run.is_lossy:
        return None
    return least_nvme_bytes(run.tiers, run.spec.trace, run.sizes_L, counts.bytes_initial)


def _busy_ns(run: "Prepared", timings: Timings) -> dict[str, int]:
    """Return how long each term of the costs was busy; see `Terms`."""
    engines_ns = timings.engines_busy_ns
    busy = {
        "copy": timings.link_busy_ns,
        "dense": timings.dense_busy_ns,
        "experts": timings.experts_busy_ns,
        "head": timings.head_busy_ns,
        "host": timings.host_busy_ns,
        "cpu": timings.cpu_busy_ns,
        "nvme": engines_ns.get("nvme", 0),
        "peer": engines_ns.get("peer", 0),
    }
    busy["copy" if run.machine.link.peer is None else "peer"] += exchange_ns(timings)
    return busy


def _loop(run: "Prepared") -> str:
    """Return whether later routes feel what a lossy system does; nothing if it loses none."""
    if not run.is_lossy:
        return ""
    trace, bound = run.spec.trace, run.spec.trace.header.closed_loop
    if bound is None or run.served is not None:
        return "open"
    budget_bytes, sizes = run.memory.expert_bytes, set(run.sizes_L)
    is_closed = (
        bound.policies == {axis: policy.text for axis, policy in run.policies.items()}
        and bound.slots == budget_bytes // max(sizes)
        and (len(sizes) == 1 or bound.budget_bytes == budget_bytes)
        and bound.seed == run.spec.seed
        and bound.order == trace.order_hash()
    )
    return "closed" if is_closed else "open"


def _caveats(run: "Prepared", counts: Counts) -> list[str]:
    """Return what the model of the machine leaves out and a reader of this run must know."""
    caveats = []
    loop, bound = _loop(run), run.spec.trace.header.closed_loop
    if loop == "open":
        caveats.append(
            "open loop: choices are changed by recorded scores and later routes do not feel it;"
            " accuracy is measured by execution alone"
        )
    if bound is not None and loop != "closed":
        caveats.append(
            f"the routes are those of {bound.system} at {bound.budget_bytes} bytes of experts"
        )
    if counts.cpu_experts and counts.copies and not run.spec.shared_dram:
        caveats.append(
            "CPU experts are charged the DRAM's rate without copies beside them; where both "
            "run they share it"
        )
    if run.spec.shared_dram and (counts.cpu_experts or counts.bytes_nvme):
        together = format_bytes_per_s(run.costs.dram_bytes_per_s)
        caveats.append(
            f"copies, CPU experts and reads from NVMe share a DRAM of {together}; beside copies "
            "the CPU reads at the rate that was seen there"
        )
    if run.tiers is not None and run.tiers.host is not None:
        caveats.append(BOUNDS_WITHOUT_NVME)
    if run.machine.gpus > 1 and run.gpus is None:
        caveats.append(f"one of the machine's {run.machine.gpus} GPUs computes")
    return caveats
