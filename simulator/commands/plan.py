"""``moesim plan``: the cheapest machine and the least memory that meet an objective."""

from typing import TYPE_CHECKING, Annotated

import typer

from moesim.simulator.commands.options import (
    Cache,
    CostOf,
    Mapping,
    Model,
    Prefetch,
    Requests,
    Runtime,
    Schedule,
    SystemName,
    Trace,
    WeightsFormat,
)

if TYPE_CHECKING:
    from moesim.simulator.planning import Candidate

OBJECTIVE = "What is asked for (at least one)"


def plan(
    trace: Trace,
    hardware: Annotated[
        list[str],
        typer.Option(
            "--hardware",
            help="Machine that may be bought, NAME or NAME=PRICE; repeated. Without prices, name "
            "the cheapest first.",
        ),
    ],
    tpot: Annotated[
        float | None,
        typer.Option("--tpot", help="Most ms per token, mean.", rich_help_panel=OBJECTIVE),
    ] = None,
    p99_tpot: Annotated[
        float | None,
        typer.Option("--p99-tpot", help="The same, 99th percentile.", rich_help_panel=OBJECTIVE),
    ] = None,
    ttft: Annotated[
        float | None,
        typer.Option("--ttft", help="Most ms to the first token.", rich_help_panel=OBJECTIVE),
    ] = None,
    mapping: Mapping = None,
    requests: Requests = None,
    runtime: Runtime = None,
    system: SystemName = None,
    cache: Cache = None,
    prefetch: Prefetch = None,
    schedule: Schedule = None,
    model: Model = None,
    weights_format: WeightsFormat = None,
    cost_of: CostOf = None,
) -> None:
    """Find the cheapest machine, and the fewest expert slots on it, that meet an objective.

    By halving, a dozen runs for each machine; says why for each. Exit code 1 if none will do.

    moesim plan TRACE --tpot 60 --hardware rtx4060-laptop=900 --hardware rtx4090=2600
    """
    from moesim.simulator.planning import search
    from moesim.simulator.progress import progress
    from moesim.simulator.sweep_file import RunOptions
    from moesim.simulator.tables import console

    candidates = [_candidate(text) for text in hardware]
    options = RunOptions(
        trace=str(trace),
        hardware=candidates[0].hardware,
        map=mapping,
        requests=requests,
        runtime=runtime,
        system=system,
        cache=cache,
        prefetch=prefetch,
        schedule=schedule,
        model=model,
        format=weights_format,
        cost_of=cost_of,
    )
    given = {"mean_tpot_ms": tpot, "p99_tpot_ms": p99_tpot, "mean_ttft_ms": ttft}
    limits = {name: limit for name, limit in given.items() if limit is not None}
    with progress("searching", None, "runs") as on_run:
        verdicts = list(search(options, candidates, limits, on_run=on_run))
    out = console()
    for verdict in verdicts:
        price = "" if verdict.candidate.price is None else f" at {verdict.candidate.price:g}"
        word = "no: " if verdict.slots is None else "yes: "
        out.print(f"{verdict.candidate.hardware}{price}: {word}{verdict.reason}")
    if verdicts[-1].slots is None:
        typer.echo("moesim: none of the machines meets the objective", err=True)
        raise typer.Exit(1)
    runs = sum(verdict.runs for verdict in verdicts)
    found = verdicts[-1]
    out.print(f"cheapest: {found.candidate.hardware} with --slots {found.slots} ({runs} runs)")


def _candidate(text: str) -> "Candidate":
    from moesim.simulator.errors import InputError
    from moesim.simulator.planning import Candidate

    name, equals, price = text.rpartition("=")
    if not equals:
        return Candidate(text)
    try:
        return Candidate(name, float(price))
    except ValueError:
        raise InputError(f"--hardware {text}: expected NAME=PRICE, such as {name}=1600") from None
