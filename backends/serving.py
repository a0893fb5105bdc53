"""From a user's wishes to an execution, and from that to what is printed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import typer

from moesim.backends.batches import arrivals_for, batched
from moesim.backends.controllers import Deciding, UnknownCosts, splits
from moesim.backends.drivers.cuda.driver import CudaDriver
from moesim.backends.drivers.cuda.graph_driver import GraphDriver
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.backends.execution import Execution, MakeDriver, execute
from moesim.backends.forcing import requests_of
from moesim.backends.generation import Request, Sampling
from moesim.backends.loading import Checkpoint, choose_device
from moesim.backends.opening import Opened, open_model
from moesim.backends.prompts import read_prompts
from moesim.backends.store import ExpertStore
from moesim.backends.wishes import Wishes
from moesim.hardware_profiles import load as load_hardware
from moesim.hardware_profiles import load_runtime
from moesim.hardware_profiles.units import format_bytes
from moesim.simulator import registry
from moesim.simulator.commands.policies import Choice, choose_policies
from moesim.simulator.costs import CostModel
from moesim.simulator.memory import MemorySpec
from moesim.simulator.policies.base import Costs
from moesim.simulator.progress import progress
from moesim.simulator.results import latency_fields, token_times, write_text
from moesim.simulator.serving.setup import batching_of
from moesim.traces import RoutingTrace, load, write

DRIVERS: Mapping[str, MakeDriver] = {
    "cpu": ThreadsDriver,
    "cuda": GraphDriver,
    "cuda-eager": CudaDriver,
}


def serve(wishes: Wishes) -> None:
    """Load, execute, print.

    Raises:
        NotAvailableError: The backend's device is not on this machine.
        MoesimError, TraceError: A name, a file or a budget is wrong, or the run failed.
    """
    device = choose_device(wishes.backend.partition("-")[0])
    chosen = choose_policies(wishes.system, None, *wishes.axes, wishes.policy_modules)
    routes = None if wishes.routes is None else load(wishes.routes)
    if routes is not None and wishes.max_prompts is not None:
        routes = routes.head(requests=wishes.max_prompts)
    torch.set_num_threads(wishes.threads or max(1, (os.cpu_count() or 1) // 2))
    opened = open_model(wishes.source, device, by_row=splits(chosen.policies))
    model: Any = opened.checkpoint.model
    requests = _requests(wishes, opened.checkpoint, routes)
    sampling = Sampling(
        new_tokens=wishes.new_tokens,
        temperature=wishes.temperature,
        seed=wishes.seed,
        ignore_eos=wishes.ignore_eos,
    )
    longest = max(len(request.prompt) + request.new_tokens(sampling) for request in requests)
    policies = batched(chosen.policies, wishes.batch, wishes.chunk)
    batching = batching_of(registry.parse("schedule", policies["schedule"]))
    deciding = Deciding(
        policies=policies,
        budget_bytes=opened.budget_bytes(MemorySpec(*wishes.memory), longest, *batching),
        system=chosen.system,
        seed=wishes.seed,
        costs=_costs(wishes, chosen, opened),
        profile_trace=None if wishes.profile_trace is None else load(wishes.profile_trace),
    )
    total = sum(len(request.prompt) + request.new_tokens(sampling) - 1 for request in requests)
    with progress("generating", total, "tokens") as on_step:
        done = execute(
            model,
            opened.store,
            requests,
            deciding,
            sampling,
            routes=routes,
            horizons=wishes.horizons,
            name=opened.checkpoint.name,
            make_driver=DRIVERS[wishes.backend],
            arrivals=arrivals_for(policies, len(requests)),
            on_step=on_step,
        )
    if wishes.output is not None:
        write(done.trace, wishes.output)
    _print(wishes, opened.checkpoint, deciding, opened.store, done)


def _requests(wishes: Wishes, checkpoint: Checkpoint, routes: RoutingTrace | None) -> list[Request]:
    if routes is not None:
        return requests_of(routes, checkpoint.model.config.get_text_config().vocab_size)
    assert wishes.prompts is not None
    texts = read_prompts(wishes.prompts, wishes.max_prompts)
    return [
        Request(prompt=checkpoint.tokenizer(text.text).input_ids, task=text.task) for text in texts
    ]


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
) -> None:
    latencies, _ = latency_fields(token_times(done.timings.requests))
    counts, timings = done.counts, done.timings
    figures: dict[str, Any] = {
        "model": checkpoint.name,
        "system": deciding.system,
        **{str(axis): text for axis, text in deciding.policies.items()},
        "backend": wishes.backend,
        "threads": torch.get_num_threads(),
        "requests": len(done.tokens),
        "expert_budget_bytes": deciding.budget_bytes,
        "expert_bytes_total": store.total_bytes,
        "host_bytes_for_experts": store.held_bytes,
        **latencies,
        **counts.as_dict(),
        "bytes_total": counts.bytes_total,
        "span_ns": timings.span_ns,
        "decision_ns": timings.decision_ns,
        "longest_gap_ns": timings.longest_gap_ns,
        "link_busy_ns": timings.link_busy_ns,
        "experts_busy_ns": timings.experts_busy_ns,
        "cpu_busy_ns": timings.cpu_busy_ns,
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
            [
                f"lossy: {counts.rerouted} of the router's choices went to other experts, "
                f"{counts.skipped} to none"
            ]
            if deciding.is_lossy
            else []
        ),
        f"copied {format_bytes(counts.bytes_total)}, "
        f"{format_bytes(counts.bytes_prefetch_wasted)} of it prefetched in vain",
    ]
    if done.timings.longest_gap_ns:
        lines.append(f"longest gap of the host's loop {done.timings.longest_gap_ns / 1e6:.2f} ms")
    return "\n".join(lines)
