"""``moesim simulate``: replay a trace on a modelled machine and print what came of it."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from moesim.simulator.commands.options import (
    Arrivals,
    AskTimes,
    Batching,
    Cache,
    Chunk,
    CostOf,
    CsvOut,
    Dark,
    Engine,
    ExpertBudget,
    Gpus,
    Hardware,
    HostCache,
    HostEmpty,
    HostExclusive,
    JsonOut,
    Kv,
    KvReserve,
    Mapping,
    MaxBatch,
    MaxWaiting,
    Model,
    PeerCache,
    PeerPolicy,
    Placement,
    Plot,
    PolicyModule,
    Prefetch,
    ProfileTrace,
    Quiet,
    Ram,
    Requests,
    Runtime,
    Schedule,
    Seed,
    SharedDram,
    SloOption,
    Slots,
    SystemName,
    Timeline,
    Trace,
    Vram,
    WeightsFormat,
)

if TYPE_CHECKING:
    from moesim.simulator.results.run_result import RunResult
    from moesim.simulator.run_spec import RunSpec


def simulate(
    trace: Trace,
    hardware: Hardware,
    mapping: Mapping = None,
    runtime: Runtime = None,
    system: SystemName = None,
    cache: Cache = None,
    prefetch: Prefetch = None,
    schedule: Schedule = None,
    policy_module: PolicyModule = None,
    vram: Vram = None,
    expert_budget: ExpertBudget = None,
    slots: Slots = None,
    ram: Ram = None,
    host_cache: HostCache = None,
    host_exclusive: HostExclusive = False,
    host_empty: HostEmpty = False,
    peer_cache: PeerCache = None,
    peer_policy: PeerPolicy = None,
    model: Model = None,
    weights_format: WeightsFormat = None,
    cost_of: CostOf = None,
    profile_trace: ProfileTrace = None,
    gpus: Gpus = 1,
    placement: Placement = "round_robin",
    shared_dram: SharedDram = False,
    engine: Engine = "clock",
    seed: Seed = 0,
    ask: AskTimes = None,
    requests: Requests = None,
    arrivals: Arrivals = None,
    batching: Batching = None,
    max_batch: MaxBatch = None,
    chunk: Chunk = None,
    slo: SloOption = None,
    max_waiting: MaxWaiting = None,
    kv: Kv = None,
    kv_reserve: KvReserve = None,
    json_out: JsonOut = None,
    csv_out: CsvOut = None,
    timeline: Timeline = None,
    plot: Plot = None,
    dark: Dark = False,
    quiet: Quiet = False,
) -> None:
    """Replay a routing trace on a modelled machine: how fast, what moves, how far from the best.

    moesim simulate TRACE --hardware rtx4090 --cache lru --vram 12GiB

    moesim simulate TRACE --hardware h100-sxm --system mixtral-offloading --slots 25% --plot out.png

    moesim simulate TRACE --hardware h100-sxm --slots 50% --arrivals poisson:rate=2,requests=200
    """
    from moesim.simulator.errors import InputError
    from moesim.simulator.progress import progress
    from moesim.simulator.runs import prepare
    from moesim.simulator.sweeps.file import RunOptions

    _check_outputs(json_out, csv_out, timeline, plot)
    spec = RunOptions(
        trace=str(trace),
        hardware=hardware,
        map=mapping,
        requests=requests,
        runtime=runtime,
        system=system,
        cache=cache,
        prefetch=prefetch,
        schedule=schedule,
        policy_module=tuple(policy_module or ()),
        vram=vram,
        expert_budget=expert_budget,
        slots=slots,
        ram=ram,
        host_cache=host_cache,
        host_exclusive=host_exclusive,
        host_empty=host_empty,
        peer_cache=peer_cache,
        peer_policy=peer_policy,
        arrivals=arrivals,
        batching=batching,
        max_batch=max_batch,
        chunk=chunk,
        slo=tuple(slo or ()),
        max_waiting=max_waiting,
        kv=kv,
        kv_reserve=kv_reserve,
        model=model,
        format=weights_format,
        cost_of=cost_of,
        profile_trace=str(profile_trace) if profile_trace else None,
        gpus=gpus,
        placement=placement,
        shared_dram=shared_dram,
        engine=engine,
        seed=seed,
        ask=tuple(ask or ()),
    ).run_spec()
    prepared = prepare(spec)
    if ask and not any(policy.may_ask for policy in prepared.policies.values()):
        raise InputError(f"--ask {ask[0]}: no policy of this run asks for anything; leave it out")
    with progress("replaying", prepared.tokens, "tokens") as on_step:
        result = prepared.replay(on_step=on_step, keep_spans=timeline is not None)
    _write(result, spec, json_out, csv_out, timeline, plot, dark=dark)
    if not quiet and json_out != "-":
        from moesim.simulator.results.report import print_result

        print_result(result)


def _check_outputs(
    json_out: str | None, csv_out: Path | None, timeline: Path | None, plot: Path | None
) -> None:
    """Refuse an output that cannot be written before the run, not after it."""
    from moesim.simulator.commands.outputs import check_targets

    json_path = Path(json_out) if json_out not in (None, "-") else None
    check_targets(json_path, csv_out, timeline, plot)
    if csv_out is not None:
        from moesim.simulator.results.rows import check_csv

        check_csv(csv_out)
    if plot is not None:
        from moesim.simulator.results.plots import check_suffix

        check_suffix(plot)


def _write(
    result: "RunResult",
    spec: "RunSpec",
    json_out: str | None,
    csv_out: Path | None,
    timeline: Path | None,
    plot: Path | None,
    *,
    dark: bool,
) -> None:
    from moesim.simulator.results import rows as results

    if timeline is not None:
        from moesim.simulator.results.timeline import write_timeline

        write_timeline(timeline, result.spans or [], experts=spec.trace.experts)
    if plot is not None:
        from moesim.simulator.results.plots import plot_run

        plot_run(result, plot, dark=dark)
    if json_out == "-":
        typer.echo(results.to_json(result.row), nl=False)
    elif json_out is not None:
        results.write_text(Path(json_out), results.to_json(result.row))
    if csv_out is not None:
        results.append_csv(csv_out, result.row)
