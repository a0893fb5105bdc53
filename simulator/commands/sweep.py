"""``moesim sweep``: many runs into one CSV, on all cores or a cluster, resumed after a stop."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moesim.simulator.sweeps.file import RunOptions


def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            help="YAML: base (what all share), grid (every combination), runs (a list)."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="CSV of the results; what it holds is not rerun."),
    ],
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes; by default one per CPU.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option("--dask", help="Run on a Dask cluster: the address of its scheduler."),
    ] = None,
    slurm: Annotated[
        str | None,
        typer.Option(
            "--slurm",
            metavar="KEY=VALUE,...",
            help="Run as Slurm jobs: slurm_partition, timeout_min, mem_gb and so on, as submitit "
            "names them; runs of a job; folder of the logs.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and what is done of them.")
    ] = False,
) -> None:
    """Run every combination that a file asks for; a row for each, appended when it is done.

    Stopped or killed, the same command goes on where it was: no row is lost and none is there
    twice. A run that fails leaves a line in OUTPUT.errors.csv, the others go on; exit code 1.

    moesim sweep FILE.yaml -o results.csv

    moesim sweep FILE.yaml -o results.csv --slurm slurm_partition=cpu,timeout_min=60,runs=20
    """
    from moesim.simulator.commands.outputs import check_targets
    from moesim.simulator.errors import InputError
    from moesim.simulator.progress import progress
    from moesim.simulator.sweeps.file import read_sweep
    from moesim.simulator.sweeps.slurm import SlurmOptions, slurm_jobs
    from moesim.simulator.sweeps.sweep import dask_cluster, local_processes, run_sweep

    places = {"--jobs": jobs, "--dask": dask, "--slurm": slurm}
    given = [f"{name} {value}" for name, value in places.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"give {given[0]} or {given[1]}, not both")
    check_targets(output)
    runs = read_sweep(file)
    if dry_run:
        _list(runs, output)
        return
    with ExitStack() as stack:
        if slurm is not None:
            folder = output.with_suffix(".slurm")
            workers = slurm_jobs(SlurmOptions.parse(slurm), folder)
        else:
            workers = dask_cluster(dask) if dask else local_processes(jobs)
        executor = stack.enter_context(workers)

        def begin(total: int) -> Callable[[int], None]:
            return stack.enter_context(progress("sweeping", total, "runs"))

        report = run_sweep(runs, output, executor, on_begin=begin)
    there, failed = report.there, len(report.failed)
    typer.echo(f"{output}: {report.done} runs done, {there} were there, {failed} failed", err=True)
    if report.failed:
        typer.echo(
            f"moesim: {report.failed[0]} (all of them: {output.with_suffix('.errors.csv')})",
            err=True,
        )
        raise typer.Exit(1)


def _list(runs: "list[RunOptions]", out: Path) -> None:
    import csv

    from moesim.simulator.sweeps.sweep import plan_sweep
    from moesim.simulator.tables import print_table

    done = set()
    if out.exists():
        with out.open(encoding="utf-8", newline="") as lines:
            done = {row.get("run_id") for row in csv.DictReader(lines)}
    planned = plan_sweep(runs)
    given = [run.options.given() for run in planned]
    shared = {key for key in given[0] if all(key in g and g[key] == given[0][key] for g in given)}
    rows = []
    for run, options in zip(planned, given, strict=True):
        state = run.error or ("done" if run.run_id in done else "to do")
        own = ", ".join(f"{key} {value}" for key, value in options.items() if key not in shared)
        rows.append((run.run_id or "-", own or "all as the base says", state))
    print_table(f"{len(runs)} runs, {len(planned)} different", ("run", "options", "state"), rows)
