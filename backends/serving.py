"""From a user's wishes to an execution, and from that to what is printed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import typer

from moesim.backends.controllers import Deciding, UnknownCosts, splits
from moesim.backends.drivers.cuda.driver import CudaDriver
from moesim.backends.drivers.cuda.gpus_driver import GpusCudaDriver, check_gpus
from moesim.backends.drivers.cuda.graph_driver import GraphDriver
from moesim.backends.drivers.cuda.lent import lender_of
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.backends.drivers.threads_gpus import GpusThreadsDriver
from moesim.backends.execution import Execution, MakeDriver, execute
from moesim.backends.generation import Sampling
from moesim.backends.guests import Guests, expert_room_bytes, guests_of
from moesim.backends.loading import Checkpoint, choose_device
from moesim.backends.means import PEER, PEER_OUT
from moesim.backends.opening import Opened, open_model
from moesim.backends.store import ExpertStore
from moesim.backends.wishes import Wishes
from moesim.hardware_profiles import load as load_hardware
from moesim.hardware_profiles import load_runtime
from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.commands.policies import Choice, choose_policies
from moesim.simulator.costs import CostModel
from moesim.simulator.policies.base import UNLIMITED_BYTES, Costs
from moesim.simulator.progress import progress
from moesim.simulator.results.request_times import request_fields, request_lines
from moesim.simulator.results.rows import latency_fields, token_times, write_text
from moesim.simulator.tiers.plan import TierPlan, lent_by
from moesim.traces import load, write

LENDER = 1
"""The GPU that lends memory to the one that computes, which is 0."""

DRIVERS: Mapping[str, MakeDriver] = {
    "cpu": ThreadsDriver,
    "cuda": GraphDriver,
    "cuda-eager": CudaDriver,
}
DRIVERS_OF_SEVERAL: Mapping[str, MakeDriver] = {
    "cpu": GpusThreadsDriver,
    "cuda-eager": GpusCudaDriver,
}


def serve(wishes: Wishes) -> None:
    """Load, execute, print.

    Raises:
        UnavailableError: The backend's device is not on this machine.
        MoesimError, TraceError: A name, a file or a budget is wrong, or the run failed.
    """
    device = choose_device(wishes.backend.partition("-")[0])
    tiers = _tiers(wishes, device)
    if device.type == "cuda":
        check_gpus(device, wishes.gpus)
    chosen = choose_policies(wishes.system, None, *wishes.axes, wishes.policy_modules)
    routes = None if wishes.routes is None else load(wishes.routes)
    if routes is not None and wishes.max_prompts is not None:
        routes = routes.head(requests=wishes.max_prompts)
    torch.set_num_threads(wishes.threads or max(1, (os.cpu_count() or 1) // 2))
    opened = open_model(wishes.source, device, by_row=splits(chosen.policies))
    model: Any = opened.checkpoint.model
    sampling = Sampling(
        new_tokens=wishes.new_tokens,
        temperature=wishes.temperature,
        seed=wishes.seed,
        ignore_eos=wishes.ignore_eos,
    )
    guests = guests_of(wishes, chosen.policies, opened, routes, sampling)
    deciding = Deciding(
        policies=guests.policies,
        budget_bytes=expert_room_bytes(wishes, opened, guests, sampling),
        kv_bytes=guests.terms.kv.room_bytes if guests.terms.kv else UNLIMITED_BYTES,
        system=chosen.system,
        seed=wishes.seed,
        costs=_costs(wishes, chosen, opened),
        profile_trace=None if wishes.profile_trace is None else load(wishes.profile_trace),
        tiers=tiers,
        gpus=wishes.gpus,
        placement=wishes.placement,
    )
    requests = guests.requests
    total = sum(len(request.prompt) + request.new_tokens(sampling) - 1 for request in requests)
    with progress("generating", total, "tokens") as on_step:
        done = execute(
            model,
            opened.store,
            requests,
            deciding,
            sampling,
            routes=guests.routes,
            horizons=wishes.horizons,
            name=opened.checkpoint.name,
            make_driver=(DRIVERS if wishes.gpus == 1 else DRIVERS_OF_SEVERAL)[wishes.backend],
            arrivals=guests.arrivals,
            terms=guests.terms,
            on_step=on_step,
        )
    if wishes.output is not None:
        write(done.trace, wishes.output)
    _print(wishes, opened.checkpoint, deciding, opened.store, done, guests)


def _tiers(wishes: Wishes, device: torch.device) -> TierPlan | None:
    """Return what another GPU lends.

    Raises:
        UnavailableError: There is none; said before anything is loaded.
    """
    lent = lent_by(wishes.lent)
    if lent is None:
        return None
    if device.type == "cuda":
        lender_of(device, LENDER)
    policy, room_bytes = lent
    return TierPlan(peer=policy, peer_bytes=room_bytes, peer_gpu=LENDER)


def _costs(wishes: Wishes, chosen: Choice, opened: Opened) -> Costs:
    if wishes.hardware is None:
        return UnknownCosts()
    machine, runtime = load_hardware(wishes.hardware), load_runtime(chosen.runtime)
    return CostModel(machine, runtime, opened.costs_of)


def _print(
    wishes: Wishes,
    checkpoint: Checkpoint,
    deciding: Deciding,
    store: ExpertStore,
    done: Execution,
    guests: Guests,
) -> None:
    requests, span_ns = done.measured()
    latencies, _ = latency_fields(token_times(requests))
    counts, timings = done.counts, done.timings
    drawing = None if guests.stream is None else guests.stream.drawing
    figures: dict[str, Any] = {
        "model": checkpoint.name,
        "system": deciding.system,
        **{str(axis): text for axis, text in deciding.policies.items()},
        "backend": wishes.backend,
        "threads": torch.get_num_threads(),
        "arrivals": "" if guests.stream is None else guests.stream.text,
        "stitched": 0 if drawing is None else drawing.stitched,
        "requests": len(requests),
        "expert_budget_bytes": deciding.budget_bytes,
        "expert_bytes_total": store.total_bytes,
        **_lent_fields(deciding, done),
        "gpus": deciding.gpus,
        "placement": deciding.placement if deciding.gpus > 1 else "",
        "bytes_exchanged": sum(gpu.bytes_sent for gpu in timings.by_gpu),
        "host_bytes_for_experts": store.held_bytes,
        **latencies,
        **request_fields(requests, timings.server, steps=counts.steps, span_ns=span_ns),
        "tokens": timings.server.tokens,
        **counts.as_dict(),
        "bytes_total": counts.bytes_total,
        "span_ns": span_ns,
        "decision_ns": timings.decision_ns,
        "longest_gap_ns": timings.longest_gap_ns,
        "link_busy_ns": timings.link_busy_ns,
        "experts_busy_ns": timings.experts_busy_ns,
        "cpu_busy_ns": timings.cpu_busy_ns,
        "notes": "" if drawing is None else "; ".join(drawing.notes),
    }
    texts = (
        None
        if wishes.routes is not None
        else [
            checkpoint.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in done.tokens
        ]
    )
    if wishes.json_out is not None:
        text = json.dumps({**figures, "texts": texts}, indent=2, ensure_ascii=False) + "\n"
        if wishes.json_out == "-":
            typer.echo(text, nl=False)
            return
        write_text(Path(wishes.json_out), text)
    for text in texts or ():
        typer.echo(text)
        typer.echo()
    typer.echo(_summary(figures, deciding, store, done))


def _lent_fields(deciding: Deciding, done: Execution) -> dict[str, Any]:
    tiers, busy_ns = deciding.tiers, done.timings.engines_busy_ns
    return {
        "peer_cache": "" if tiers is None or tiers.peer is None else tiers.peer.text,
        "peer_cache_bytes": 0 if tiers is None else tiers.peer_bytes,
        "peer_busy_ns": busy_ns.get(PEER, 0),
        "peer_out_busy_ns": busy_ns.get(PEER_OUT, 0),
    }


def _summary(
    figures: dict[str, Any], deciding: Deciding, store: ExpertStore, done: Execution
) -> str:
    """Return the figures as lines: latencies, decisions, bytes."""

    def shown(name: str) -> str:
        value = figures[name]
        return "none" if value is None else f"{value:.2f} ms"

    counts = done.counts
    slots = deciding.budget_bytes // max(store.sizes_L)
    experts = store.parts.experts * len(store.sizes_L)
    rate = counts.hits / counts.demands if counts.demands else 0.0
    partial = f"   in part {counts.partial_hits}" if counts.partial_hits else ""
    lines = [
        f"{figures['system']}: {format_bytes(deciding.budget_bytes)} for experts, "
        f"{slots} of {experts}",
        f"TTFT mean {shown('mean_ttft_ms')}   TPOT mean {shown('mean_tpot_ms')}, "
        f"p50 {shown('p50_tpot_ms')}, p99 {shown('p99_tpot_ms')}",
        f"hits {counts.hits} ({rate:.1%})   late {counts.late_hits}{partial}   "
        f"misses {counts.misses}   on the CPU {counts.cpu_experts}",
        *(
            f"{name}: {text}"
            for name, text in (request_lines(figures) if figures["arrivals"] else ())
        ),
        *(
            [
                f"lossy: {counts.rerouted} of the router's choices went to other experts, "
                f"{counts.skipped} to none"
            ]
            if deciding.is_lossy
            else []
        ),
        f"copied {format_bytes(counts.bytes_total)}, "
        f"{format_bytes(counts.bytes_prefetch_wasted)} of it prefetched in vain",
        *(
            [
                f"from the other GPU {format_bytes(counts.bytes_peer)} of it; "
                f"{format_bytes(counts.bytes_demoted)} went there from VRAM"
            ]
            if deciding.tiers is not None
            else []
        ),
    ]
    if done.timings.longest_gap_ns:
        lines.append(f"longest gap of the host's loop {done.timings.longest_gap_ns / 1e6:.2f} ms")
    return "\n".join(lines)
