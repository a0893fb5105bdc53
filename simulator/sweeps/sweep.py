"""Carries out many runs on any executor, each once, and goes on where it was stopped.

A run is known by the hash of all that determines it (`Prepared.run_id`). What the results file
holds already is not run again, two entries that come to the same run are run once, and a run that
fails leaves a line beside the results while the others go on.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesim.simulator.errors import USER_ERRORS, InputError, MoesimError
from moesim.simulator.results.rows import Row
from moesim.simulator.runs import prepare
from moesim.simulator.sweeps.file import RunOptions
from moesim.simulator.sweeps.results import SweepResults


@dataclass(frozen=True, slots=True)
class Planned:
    """A run of a sweep: its hash, or why it cannot be run."""

    options: RunOptions
    run_id: str
    error: str | None = None


@dataclass(slots=True)
class Report:
    """What a sweep did.

    Attributes:
        done: Runs carried out now.
        there: Runs whose row was in the file.
        failed: One line for each run that failed.
    """

    done: int = 0
    there: int = 0
    failed: list[str] = field(default_factory=list)


def plan_sweep(runs: Sequence[RunOptions]) -> list[Planned]:
    """Return each run with its hash, in order, each once; one that cannot be run says why."""
    return list(_planned(runs))


def _planned(runs: Sequence[RunOptions]) -> Iterator[Planned]:
    seen = set()
    for options in runs:
        try:
            run = Planned(options, prepare(options.run_spec()).run_id)
        except USER_ERRORS as error:
            run = Planned(options, "", str(error))
        key = run.run_id or repr(options)
        if key not in seen:
            seen.add(key)
            yield run


def _grouped(runs: Sequence[RunOptions]) -> list[RunOptions]:
    """Return the runs in an order in which those that share most follow one another.

    A worker keeps what it has read of a trace, and what a prefetch policy answers to it.
    """
    return sorted(
        runs,
        key=lambda run: [
            str(getattr(run, name))
            for name in ("trace", "map", "requests", "profile_trace", "system", "prefetch", "slots")
        ],
    )


def run_sweep(
    runs: Sequence[RunOptions],
    out: Path,
    executor: Executor,
    *,
    on_begin: Callable[[int], Callable[[int], None]] | None = None,
) -> Report:
    """Carry out the runs whose rows a file lacks, and append each row when its run is done.

    Args:
        runs: What to run, as `read_sweep` gives it.
        out: The results; see `SweepResults`.
        executor: Anything whose futures are of `concurrent.futures`: its workers need moesim and
            the trace files under the same paths.
        on_begin: Told how many runs there are to do; what it returns is told of each that ended.

    Raises:
        InputError: The file cannot be written.
        MoesimError: A worker died; what was done before is in the file.
    """
    report = Report()
    with SweepResults(out) as results:
        planned, futures = [], {}
        try:
            for run in _planned(_grouped(runs)):  # workers begin meanwhile
                planned.append(run)
                if run.error is None and run.run_id not in results.done:
                    sent = executor.submit(run_one, run.options.model_dump(mode="json"))
                    futures[sent] = run
            place = {options: number for number, options in reversed([*enumerate(runs)])}
            planned.sort(key=lambda run: place[run.options])
            for run in planned:
                if run.error is not None:
                    results.add_error("", run.error, run.options.given())
                    report.failed.append(run.error)
            report.there = len(planned) - len(futures) - len(report.failed)
            on_end = on_begin(len(futures)) if on_begin else None
            for future in as_completed(futures):
                _settle(future, futures[future], results, report)
                if on_end is not None:
                    on_end(1)
        finally:
            for future in futures:
                future.cancel()
        results.put_in_order(run.run_id for run in planned)
    return report


def run_one(options: dict[str, Any]) -> tuple[Row | None, str]:
    """Carry out one run in a worker; return its row, or None and what was wrong."""
    try:
        spec = RunOptions.model_validate(options).run_spec()
        return prepare(spec).replay().row, ""
    except USER_ERRORS as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001  one run's bug must not end a night's sweep
        return None, f"{type(error).__name__}: {error}"


@contextmanager
def local_processes(jobs: int | None = None) -> Iterator[Executor]:
    """Yield an executor of processes of this machine, which end with this one however it ends.

    Args:
        jobs: How many; None takes one for each CPU that this process may use.
    """
    with ProcessPoolExecutor(
        jobs or len(os.sched_getaffinity(0)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_end_with_parent,
    ) as executor:
        yield executor


@contextmanager
def dask_cluster(address: str) -> Iterator[Executor]:
    """Yield an executor of a Dask cluster.

    Args:
        address: Of its scheduler, such as ``tcp://host:8786``.

    Raises:
        InputError: distributed is not installed, or nothing answers.
    """
    try:
        from distributed import Client  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        raise InputError(
            f"--dask {address}: needs distributed; run: pip install 'moesim[dask]'"
        ) from None
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"--dask {address}: no scheduler answers there ({error})") from None
    with client, client.get_executor(pure=False) as executor:
        yield executor


def _settle(
    future: "Future[tuple[Row | None, str]]", run: Planned, results: SweepResults, report: Report
) -> None:
    try:
        row, error = future.result()
    except BrokenProcessPool:
        raise MoesimError(
            f"a worker died, most likely for lack of memory; {results.path} holds the "
            f"{len(results.done)} runs that are done: start again, with fewer --jobs"
        ) from None
    if row is None:
        results.add_error(run.run_id, error, run.options.given())
        report.failed.append(error)
        return
    if row["run_id"] != run.run_id:
        error = f"the worker ran {row['run_id']}, not {run.run_id}: its moesim or files differ"
        results.add_error(run.run_id, error, run.options.given())
        report.failed.append(error)
        return
    results.add(row)
    report.done += 1


def _end_with_parent() -> None:
    """Let a worker end when its parent is killed; its own queue would keep it waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
