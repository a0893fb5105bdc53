"""Sweeps as Slurm jobs: the same file as one process, and a lost job costs its own runs alone."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest

from moesim.simulator.errors import InputError
from moesim.simulator.sweeps.file import RunOptions, read_sweep
from moesim.simulator.sweeps.slurm import SlurmOptions, slurm_jobs
from moesim.simulator.sweeps.sweep import run_sweep
from moesim.traces import synthetic, write


@pytest.fixture
def runs(tmp_path: Path) -> list[RunOptions]:
    """Return six runs over a small trace."""
    trace = synthetic.sticky(
        seed=0, reuse=0.6, layers=4, experts=8, top_k=2,
        requests=1, prompt_tokens=2, decode_tokens=10,
    )  # fmt: skip
    write(trace, tmp_path / "t.npz")
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "base: {trace: t.npz, hardware: rtx4090, cost_of: mixtral-8x7b, format: int4}\n"
        "grid: {cache: [lru, fifo], slots: [8, 12, 16]}\n",
        encoding="utf-8",
    )
    return read_sweep(path)


class Inline(Executor):
    """Runs what is submitted at once."""

    def submit(self, fn, /, *args, **kwargs):
        """Return a future that is done."""
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture
def local(tmp_path: Path) -> Callable[..., SlurmOptions]:
    """Return a function that asks for jobs which are processes of this machine."""
    pytest.importorskip("submitit")

    def of(runs: int) -> SlurmOptions:
        return SlurmOptions.parse(f"cluster=local,runs={runs},folder={tmp_path / 'jobs'}")

    return of


@pytest.mark.slow
def test_jobs_come_to_the_file_of_one_process_and_go_on_from_it(
    runs: list[RunOptions], local: Callable[..., SlurmOptions], tmp_path: Path
) -> None:
    """What the file holds is not sent again, and the rest fills it to the same bytes."""
    one, many = tmp_path / "one.csv", tmp_path / "many.csv"
    run_sweep(runs, one, Inline())
    run_sweep(runs[:2], many, Inline())
    with slurm_jobs(local(2), tmp_path / "unused") as executor:
        report = run_sweep(runs, many, executor)
    assert (report.done, report.there, report.failed) == (4, 2, [])
    assert one.read_bytes() == many.read_bytes()
    assert len([*(tmp_path / "jobs").glob("*_submitted.pkl")]) == 2


def _lose_one(options: dict[str, object]) -> tuple[None, str]:
    if options["cache"] == "fifo":
        os._exit(3)
    return None, "not lost"


@pytest.mark.slow
def test_a_lost_job_costs_its_own_runs(
    local: Callable[..., SlurmOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that dies answers for its runs with its number; the others are as they were."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    with slurm_jobs(local(1), tmp_path / "unused") as executor:
        sent = [executor.submit(_lose_one, {"cache": cache}) for cache in ("lru", "fifo")]
        kept, lost = (future.result(timeout=60) for future in sent)
    assert kept == (None, "not lost")
    assert lost[0] is None
    assert lost[1].startswith("Slurm job ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs=0", "runs=0: expected how many runs a job does, from 1"),
        ("slurm_partition=", "option slurm_partition has no value"),
        ("cluster=cloud", "cluster=cloud: expected slurm or local"),
        ("runs=2,runs=3", "option runs is given twice"),
    ],
)
def test_wrong_options_are_one_line(text: str, message: str) -> None:
    """Each names the option."""
    with pytest.raises(InputError, match=message):
        SlurmOptions.parse(text)


def test_what_submitit_does_not_take_is_one_line(tmp_path: Path) -> None:
    """A parameter that it has not is named."""
    pytest.importorskip("submitit")
    unknown = SlurmOptions(1, tmp_path, "local", {"gigabytes": 3})
    with pytest.raises(InputError, match="--slurm: .*gigabytes"), slurm_jobs(unknown, tmp_path):
        pass


def test_without_submitit_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "submitit", None)
    options = SlurmOptions.parse("slurm_partition=cpu")
    with (
        pytest.raises(InputError, match=r"pip install 'moesim\[slurm\]'"),
        slurm_jobs(options, tmp_path),
    ):
        pass
