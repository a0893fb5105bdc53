"""From a user's wishes to an execution, and from that to what is printed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import typer

from moesim.backends.budget import expert_budget_bytes, kv_bytes_per_token
from moesim.backends.controllers import Deciding, UnknownCosts
from moesim.backends.drivers.cuda.driver import CudaDriver
from moesim.backends.drivers.cuda.graph_driver import GraphDriver
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.backends.execution import Execution, MakeDriver, execute
from moesim.backends.experts import RESIDENT
from moesim.backends.forcing import requests_of
from moesim.backends.generation import Request, Sampling
from moesim.backends.loading import Checkpoint, choose_device, load_checkpoint
from moesim.backends.models import Model
from moesim.backends.prompts import read_prompts
from moesim.backends.served import parameter_bytes
from moesim.backends.store import ExpertStore
from moesim.backends.wishes import Wishes
from moesim.hardware_profiles import load as load_hardware
from moesim.hardware_profiles import load_runtime
from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.commands.policies import Choice, choose_policies
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import OutOfMemoryError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.models.cost_shape import CostShape
from moesim.simulator.policies.base import Costs
from moesim.simulator.progress import progress
from moesim.simulator.results import latency_fields, token_times, write_text
from moesim.traces import RoutingTrace, load, write

DRIVERS: Mapping[str, MakeDriver] = {
    "cpu": ThreadsDriver,
    "cuda": CudaDriver,
    "cuda-graphs": GraphDriver,
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
    checkpoint = load_checkpoint(wishes.model, torch.device("cpu"), runs_on=device)
    requests = _requests(wishes, checkpoint, routes)
    sampling = Sampling(
        new_tokens=wishes.new_tokens,
        temperature=wishes.temperature,
        seed=wishes.seed,
        ignore_eos=wishes.ignore_eos,
    )
    deciding, store = _decide(wishes, chosen, checkpoint, requests, sampling)
    _move(checkpoint.model, device)
    total = sum(len(request.prompt) + request.new_tokens(sampling) - 1 for request in requests)
    with progress("generating", total, "tokens") as on_step:
        done = execute(
            checkpoint.model,
            store,
            requests,
            deciding,
            sampling,
            routes=routes,
            horizons=wishes.horizons,
            name=checkpoint.name,
            make_driver=DRIVERS[wishes.backend],
            on_step=on_step,
        )
    if wishes.output is not None:
        write(done.trace, wishes.output)
    _print(wishes, checkpoint, deciding, store, done)


def _move(model: Model, device: torch.device) -> None:
    """Bring what is not an expert to the device.

    Raises:
        OutOfMemoryError: It does not fit.
    """
    try:
        model.to(device)
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(
            f"{format_bytes(parameter_bytes(model))} of weights beside the experts do not fit into"
            f" the memory of {device}; take a smaller model or another GPU"
        ) from None


def _requests(wishes: Wishes, checkpoint: Checkpoint, routes: RoutingTrace | None) -> list[Request]:
    if routes is not None:
        return requests_of(routes, checkpoint.model.config.get_text_config().vocab_size)
    assert wishes.prompts is not None
    texts = read_prompts(wishes.prompts, wishes.max_prompts)
    return [
        Request(prompt=checkpoint.tokenizer(text.text).input_ids, task=text.task) for text in texts
    ]


def _decide(
    wishes: Wishes,
    chosen: Choice,
    checkpoint: Checkpoint,
    requests: list[Request],
    sampling: Sampling,
) -> tuple[Deciding, ExpertStore]:
    """Take the experts off the model and say what they get and who decides."""
    model: Any = checkpoint.model
    model.set_experts_implementation(RESIDENT)
    kv_per_token = kv_bytes_per_token(model)
    store = ExpertStore.take_from(model, pin=wishes.backend != "cpu")
    longest = max(len(request.prompt) + request.new_tokens(sampling) for request in requests)
    dense = parameter_bytes(model)
    budget = expert_budget_bytes(
        MemorySpec(*wishes.memory), store, dense_bytes=dense, kv_bytes=kv_per_token * longest
    )
    deciding = Deciding(
        policies=chosen.policies,
        budget_bytes=budget,
        system=chosen.system,
        seed=wishes.seed,
        costs=_costs(wishes, chosen, store, dense),
        profile_trace=None if wishes.profile_trace is None else load(wishes.profile_trace),
    )
    return deciding, store


def _costs(wishes: Wishes, chosen: Choice, store: ExpertStore, dense_bytes: int) -> Costs:
    if wishes.hardware is None:
        return UnknownCosts()
    layers = len(store.sizes_L)
    shape = CostShape.from_bytes(
        store.sizes_L,
        [dense_bytes // layers] * layers,
        experts=store.parts.experts,
        top_k=store.parts.top_k,
        bits_per_weight=8 * store.layouts[0].matrices[0].dtype.itemsize,
    )
    return CostModel(load_hardware(wishes.hardware), load_runtime(chosen.runtime), shape)


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
        "expert_budget_bytes": deciding.budget_bytes,
        "expert_bytes_total": store.total_bytes,
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
    lines = [
        f"{figures['system']}: {format_bytes(deciding.budget_bytes)} for experts, "
        f"{slots} of {experts}",
        f"TTFT mean {shown('mean_ttft_ms')}   TPOT mean {shown('mean_tpot_ms')}, "
        f"p50 {shown('p50_tpot_ms')}, p99 {shown('p99_tpot_ms')}",
        f"hits {counts.hits} ({rate:.1%})   late {counts.late_hits}   misses {counts.misses}"
        f"   on the CPU {counts.cpu_experts}",
        f"copied {format_bytes(counts.bytes_total)}, "
        f"{format_bytes(counts.bytes_prefetch_wasted)} of it prefetched in vain",
    ]
    if done.timings.longest_gap_ns:
        lines.append(f"longest gap of the host's loop {done.timings.longest_gap_ns / 1e6:.2f} ms")
    return "\n".join(lines)
