"""Slurm as an executor of a sweep, through submitit: a job for every few runs.

What is submitted is gathered until nothing more comes, then sent as one array. A job whose node
dies, or that runs out of memory or time, costs its own runs: each leaves a line in the errors, and
the next sweep into the file runs them again. Jobs and their logs are in a folder that the cluster
and this machine see under the same path. A sweep that is killed leaves no row half written; jobs it
had sent end by themselves, unread.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.simulator.errors import InputError
from moesim.simulator.key_values import key_values

__all__ = ["SlurmOptions", "slurm_jobs"]

_QUIET_S = 0.5
"""Nothing submitted for so long: what has been gathered is sent."""

_LOOK_S = 0.5
_MOST_JOBS = 1000
"""Of one array: Slurm's own limit, unless a cluster says otherwise."""

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """What ``--slurm`` says.

    Attributes:
        runs: Runs of one job.
        folder: Of the jobs and their logs; None is beside the results.
        cluster: ``slurm``, or ``local`` for processes of this machine behind the same interface.
        parameters: All else, as submitit names it: ``timeout_min``, ``mem_gb``, ``cpus_per_task``,
            ``slurm_partition``, ``slurm_account`` and so on.
    """

    runs: int
    folder: Path | None
    cluster: str
    parameters: Mapping[str, int | str]

    @classmethod
    def parse(cls, text: str) -> "SlurmOptions":
        """Return the options of a text such as ``slurm_partition=cpu,timeout_min=60,runs=20``.

        Raises:
            InputError: An option has no value or is given twice, or ``runs`` is not a number.
        """
        given = key_values(text, "--slurm")
        runs = given.pop("runs", "10")
        if not runs.isdecimal() or int(runs) == 0:
            raise InputError(f"--slurm: runs={runs}: expected how many runs a job does, from 1")
        folder, cluster = given.pop("folder", None), given.pop("cluster", "slurm")
        if cluster not in ("slurm", "local"):
            raise InputError(f"--slurm: cluster={cluster}: expected slurm or local")
        numbers = {key: int(value) if value.isdecimal() else value for key, value in given.items()}
        return cls(int(runs), Path(folder) if folder else None, cluster, numbers)


@contextmanager
def slurm_jobs(options: SlurmOptions, folder: Path) -> Iterator[Executor]:
    """Yield an executor whose runs are jobs; those that are left at the end are cancelled.

    Args:
        options: What ``--slurm`` said.
        folder: Of the jobs and their logs where the options name none.

    Raises:
        InputError: submitit is not installed, there is no Slurm here, or it does not know a
            parameter.
    """
    try:
        import submitit  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        raise InputError("--slurm: needs submitit; run: pip install 'moesim[slurm]'") from None
    try:
        jobs = submitit.AutoExecutor(options.folder or folder, cluster=options.cluster)
        jobs.update_parameters(name="moesim", **options.parameters)
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise InputError(f"--slurm: {str(error).splitlines()[0]}") from None
    executor = _Jobs(jobs, options.runs)
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


class _Jobs(Executor):
    """Gathers calls, sends them in arrays of jobs, and looks which have ended.

    A call returns what `run_one` does, and so does one that was lost: no row, and why.

    Args:
        jobs: An executor of submitit.
        runs: Calls of one job.
    """

    def __init__(self, jobs: Any, runs: int) -> None:  # noqa: ANN401  submitit's
        self._jobs, self._runs = jobs, runs
        self._gathered: list[tuple[Future[Any], Call]] = []
        self._sent: list[tuple[Any, list[Future[Any]]]] = []
        self._lock = threading.Lock()
        self._last_s = 0.0
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Gather a call; it is sent with those that follow at once."""
        future: Future[Any] = Future()
        with self._lock:
            self._gathered.append((future, (fn, args, kwargs)))
            self._last_s = time.monotonic()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel what has not ended, if that is asked for; then stop looking."""
        if not cancel_futures:
            while self._gathered or self._sent:
                time.sleep(_LOOK_S)
        self._is_ending.set()
        if wait:
            self._thread.join()
        for job, futures in self._sent:
            job.cancel(check=False)
            for future in futures:
                future.cancel()

    def _watch(self) -> None:
        while not self._is_ending.wait(_LOOK_S):
            with self._lock:
                is_quiet = time.monotonic() - self._last_s > _QUIET_S
                ready, self._gathered = (self._gathered, []) if is_quiet else ([], self._gathered)
            self._send([(future, call) for future, call in ready if not future.cancelled()])
            ended = [(job, futures) for job, futures in self._sent if job.done()]
            self._sent = [pair for pair in self._sent if pair not in ended]
            for job, futures in ended:
                _settle(job, futures)

    def _send(self, ready: Sequence[tuple[Future[Any], Call]]) -> None:
        groups = [ready[at : at + self._runs] for at in range(0, len(ready), self._runs)]
        for first in range(0, len(groups), _MOST_JOBS):
            array = groups[first : first + _MOST_JOBS]
            calls = [[call for _, call in group] for group in array]
            futures = [[future for future, _ in group] for group in array]
            try:
                jobs = self._jobs.map_array(_carry_out, calls)
            except Exception as error:  # noqa: BLE001  sbatch's own words, one for each run
                for future in (future for group in futures for future in group):
                    _finish(future, (None, f"Slurm took no job: {error}"))
                continue
            self._sent += zip(jobs, futures, strict=True)


def _carry_out(calls: Sequence[Call]) -> list[Any]:
    """Do the calls of one job, in it."""
    return [fn(*args, **kwargs) for fn, args, kwargs in calls]


def _settle(job: Any, futures: Sequence[Future[Any]]) -> None:  # noqa: ANN401  submitit's
    """Hand over what the calls of a job came to; as failed runs where it was lost."""
    try:
        results = job.result()
    except Exception as error:  # noqa: BLE001  whatever ended it; the others go on
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        results = [(None, f"Slurm job {job.job_id} gave no result: {words}")] * len(futures)
    for future, result in zip(futures, results, strict=True):
        _finish(future, result)


def _finish(future: Future[Any], result: object) -> None:
    if future.set_running_or_notify_cancel():
        future.set_result(result)
