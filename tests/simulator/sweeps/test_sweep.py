"""Sweeps: what a file asks for, and what is in the results however the sweep went."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from moesim.simulator.errors import InputError, MoesimError
from moesim.simulator.results.rows import FIELDS
from moesim.simulator.sweeps.file import read_sweep
from moesim.simulator.sweeps.results import SweepResults
from moesim.simulator.sweeps.sweep import dask_cluster, plan_sweep, run_sweep
from moesim.traces import synthetic, write

BASE = "base: {trace: t.npz, hardware: rtx4090, cost_of: mixtral-8x7b, format: int4}\n"
GRID = "grid: {cache: [lru, lfu, fifo], slots: [8, 12, 16]}\n"

Write = Callable[[str], Path]


class Inline(Executor):
    """Runs what is submitted at once, in this thread, and counts it."""

    def __init__(self) -> None:
        self.runs = 0

    def submit(self, fn, /, *args, **kwargs):
        """Run and return a future that is done."""
        self.runs += 1
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture
def sweep_file(tmp_path: Path) -> Write:
    """Return a function that writes a sweep beside a small trace."""
    trace = synthetic.sticky(
        seed=0, reuse=0.6, layers=4, experts=8, top_k=2,
        requests=1, prompt_tokens=2, decode_tokens=30,
    )  # fmt: skip
    write(trace, tmp_path / "t.npz")

    def put(text: str) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return put


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a results file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_grid_is_every_combination(sweep_file: Write) -> None:
    """The last axis of the grid varies fastest."""
    runs = read_sweep(sweep_file(BASE + GRID))
    assert [(run.cache, run.slots) for run in runs] == [
        (cache, slots) for cache in ("lru", "lfu", "fifo") for slots in ("8", "12", "16")
    ]


def test_a_list_goes_before_the_grid_and_the_grid_before_the_base(sweep_file: Write) -> None:
    """What an entry says itself is not varied."""
    text = BASE.replace("{trace", "{seed: 7, trace") + (
        "grid: {cache: [lru, lfu], seed: [1, 2]}\nruns: [{slots: 8}, {slots: 9, cache: fifo}]\n"
    )
    runs = read_sweep(sweep_file(text))
    assert [(run.slots, run.cache, run.seed) for run in runs] == [
        ("8", "lru", 1), ("8", "lru", 2), ("8", "lfu", 1), ("8", "lfu", 2),
        ("9", "fifo", 1), ("9", "fifo", 2),
    ]  # fmt: skip


def test_files_are_found_from_the_sweep_s_folder(sweep_file: Write, tmp_path: Path) -> None:
    """Traces, profiles and policies of a file are looked for beside the sweep."""
    path = sweep_file("base: {trace: t.npz, hardware: mine.yaml, policy_module: p.py:Mine}\n")
    (run,) = read_sweep(path)
    assert run.trace == str(tmp_path / "t.npz")
    assert run.hardware == str(tmp_path / "mine.yaml")
    assert run.policy_module == (f"{tmp_path / 'p.py'}:Mine",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE + "grid: {cahce: [lru]}", r"sweep.yaml: grid.cahce: unknown key; .*'cache'"),
        (BASE + "runs: [{slot: 8}]", r"sweep.yaml: runs.1.slot: unknown key; .*'slots'"),
        ("bas: {}", r"sweep.yaml: bas: unknown key; did you mean 'base'"),
        ("base: {trace: t.npz}", r"sweep.yaml: run 1 of the list: hardware: missing"),
        (BASE + "grid: {seed: [x]}", r"sweep.yaml: run 1 of the list: seed: .*got 'x'"),
        (BASE + "grid: {slots: []}", r"sweep.yaml: grid.slots: an empty list"),
        (BASE + "runs: []", r"sweep.yaml: runs: the list is empty"),
        ("- a", r"sweep.yaml: expected keys and values"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_key_and_way_out(
    sweep_file: Write, text: str, message: str
) -> None:
    """Keys that nothing reads are refused, with the nearest that is."""
    with pytest.raises(InputError, match=message) as caught:
        read_sweep(sweep_file(text))
    assert "\n" not in str(caught.value)


def test_rows_are_those_of_single_runs_in_the_order_of_the_sweep(
    sweep_file: Write, tmp_path: Path
) -> None:
    """A row for each run, whole, in the schema of moesim simulate --csv."""
    runs = read_sweep(sweep_file(BASE + GRID))
    report = run_sweep(runs, tmp_path / "out.csv", Inline())
    rows = read_rows(tmp_path / "out.csv")
    assert (report.done, report.there, report.failed) == (9, 0, [])
    assert list(rows[0]) == list(FIELDS)
    assert [(row["cache"], row["slots"]) for row in rows] == [(r.cache, r.slots) for r in runs]
    assert not (tmp_path / "out.errors.csv").exists()


def test_what_is_done_is_not_run_again(sweep_file: Write, tmp_path: Path) -> None:
    """A wider sweep into the same file runs what is new; the file is as if run at once."""
    once, twice = tmp_path / "once.csv", tmp_path / "twice.csv"
    runs = read_sweep(sweep_file(BASE + GRID))
    run_sweep(runs, once, Inline())
    run_sweep(runs[3:5], twice, Inline())
    executor = Inline()
    report = run_sweep(runs, twice, executor)
    assert (report.done, report.there, executor.runs) == (7, 2, 7)
    assert once.read_bytes() == twice.read_bytes()
    assert run_sweep(runs, twice, Inline()).there == 9
    assert once.read_bytes() == twice.read_bytes()


def test_two_names_of_one_run_are_run_once(sweep_file: Write, tmp_path: Path) -> None:
    """8 slots and 25 % of 32 experts are the same run."""
    runs = read_sweep(sweep_file(BASE + "grid: {slots: [8, 25%]}\n"))
    assert len(plan_sweep(runs)) == 1
    assert run_sweep(runs, tmp_path / "out.csv", Inline()).done == 1


def test_a_row_that_a_kill_cut_off_is_run_again(sweep_file: Write, tmp_path: Path) -> None:
    """At whatever byte the file ends, the sweep mends it and comes to the same bytes."""
    out = tmp_path / "out.csv"
    runs = read_sweep(sweep_file(BASE + "grid: {slots: [8, 12]}\n"))
    run_sweep(runs, out, Inline())
    whole = out.read_bytes()
    first_row_ends = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for length in (0, 10, whole.index(b"\n") + 1, first_row_ends - 1, first_row_ends + 7):
        out.write_bytes(whole[:length])
        run_sweep(runs, out, Inline())
        assert out.read_bytes() == whole


def test_rows_of_other_sweeps_stay(sweep_file: Write, tmp_path: Path) -> None:
    """A file may collect several sweeps; the rows of the last come last."""
    out = tmp_path / "out.csv"
    runs = read_sweep(sweep_file(BASE + GRID))
    run_sweep(runs[:2], out, Inline())
    run_sweep(runs[4:6], out, Inline())
    assert [row["run_id"] for row in read_rows(out)] == [
        run.run_id for run in plan_sweep([*runs[:2], *runs[4:6]])
    ]


def test_a_failing_run_leaves_a_line_and_the_others_go_on(
    sweep_file: Write, tmp_path: Path
) -> None:
    """Errors before a run and in it are kept beside the rows, and gone once they are mended."""
    out, errors = tmp_path / "out.csv", tmp_path / "out.errors.csv"
    runs = read_sweep(sweep_file(BASE + "grid: {slots: [1, 8, 0], cache: [lru, nosuch]}\n"))
    report = run_sweep(runs, out, Inline())
    assert (report.done, len(report.failed)) == (1, 5)
    rows = read_rows(errors)
    assert len(rows) == 5
    assert sum("no cache policy 'nosuch'" in row["error"] for row in rows) == 3
    assert sum("--slots 0" in row["error"] for row in rows) == 1
    assert ["this cache needs" in row["error"] for row in rows if row["run_id"]] == [True]
    run_sweep(read_sweep(sweep_file(BASE + "grid: {slots: [8]}\n")), out, Inline())
    assert not errors.exists()


def test_a_bug_in_one_run_is_an_error_of_that_run(sweep_file: Write, tmp_path: Path) -> None:
    """A policy that raises anything at all ends its own run alone."""
    (tmp_path / "bad.py").write_text(
        "from moesim.simulator.policies.cache.lru import LeastRecentlyUsed\n"
        "class Bad(LeastRecentlyUsed):\n"
        "    def choose_victim(self, evictable, view):\n        return 1 // 0\n",
        encoding="utf-8",
    )
    runs = read_sweep(sweep_file(BASE + "grid: {slots: [8], cache: [lru, 'bad.py:Bad']}\n"))
    report = run_sweep(runs, tmp_path / "out.csv", Inline())
    assert report.done == 1
    assert report.failed == ["ZeroDivisionError: integer division or modulo by zero"]


def test_two_sweeps_do_not_write_to_one_file(tmp_path: Path) -> None:
    """The second is refused in one line while the first holds the file."""
    out = tmp_path / "out.csv"
    with SweepResults(out), pytest.raises(InputError, match="another sweep writes to it"):
        SweepResults(out)
    with SweepResults(out):
        pass


def test_a_file_that_is_not_ours_is_left_as_it_is(sweep_file: Write, tmp_path: Path) -> None:
    """No row is put under somebody else's header, and nothing is cut off it."""
    out = tmp_path / "notes.csv"
    out.write_text("a,b\n1,2", encoding="utf-8")
    runs = read_sweep(sweep_file(BASE))
    with pytest.raises(InputError, match="line 1 is not the header"):
        run_sweep(runs, out, Inline())
    assert out.read_text(encoding="utf-8") == "a,b\n1,2"


def test_any_executor_gives_the_same_bytes(sweep_file: Write, tmp_path: Path) -> None:
    """Threads that end in any order come to the file of one after the other."""
    runs = read_sweep(sweep_file(BASE + GRID))
    run_sweep(runs, tmp_path / "one.csv", Inline())
    with ThreadPoolExecutor(4) as executor:
        run_sweep(runs, tmp_path / "many.csv", executor)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "many.csv").read_bytes()


def test_a_dead_worker_ends_the_sweep_with_one_line(sweep_file: Write, tmp_path: Path) -> None:
    """What was done before stays in the file, and the line says how to go on."""

    class Dying(Inline):
        def submit(self, fn, /, *args, **kwargs):
            if self.runs < 2:
                return super().submit(fn, *args, **kwargs)
            future = Future()
            future.set_exception(BrokenProcessPool())
            return future

    runs = read_sweep(sweep_file(BASE + GRID))
    with pytest.raises(MoesimError, match="a worker died.*start again"):
        run_sweep(runs, tmp_path / "out.csv", Dying())
    assert run_sweep(runs, tmp_path / "out.csv", Inline()).failed == []
    assert len(read_rows(tmp_path / "out.csv")) == 9


@pytest.mark.slow
def test_a_killed_sweep_is_resumed_to_the_same_bytes(sweep_file: Write, tmp_path: Path) -> None:
    """SIGKILL in the middle: its workers end, whole rows are left, and none is lost or repeated."""
    trace = synthetic.sticky(
        seed=0, reuse=0.6, layers=12, experts=32, top_k=4,
        requests=2, prompt_tokens=8, decode_tokens=100,
    )  # fmt: skip
    write(trace, tmp_path / "t.npz")
    path = sweep_file(BASE + "grid: {cache: [lru, lfu, fifo], slots: [64, 96, 128, 192]}\n")
    command = [sys.executable, "-m", "moesim.simulator.cli", "sweep", str(path), "--jobs", "2"]
    out, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    killed = subprocess.Popen([*command, "-o", str(out)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not out.exists() or out.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    workers = _children(killed.pid)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = out.read_bytes().count(b"\n") - 1
    assert 2 <= done < 12
    while time.monotonic() < deadline and any(_is_alive(worker) for worker in workers):
        time.sleep(0.05)
    assert not any(_is_alive(worker) for worker in workers)
    resumed = subprocess.run(
        [*command, "-o", str(out)], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert f"{12 - done} runs done, {done} were there, 0 failed" in resumed.stderr
    run_sweep(read_sweep(path), whole, Inline())
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_real_dask_cluster_gives_the_same_bytes(sweep_file: Write, tmp_path: Path) -> None:
    """Two worker processes behind a scheduler come to the file of one process."""
    distributed = pytest.importorskip("distributed")
    runs = read_sweep(sweep_file(BASE + GRID))
    run_sweep(runs, tmp_path / "one.csv", Inline())
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        dask_cluster(cluster.scheduler_address) as executor,
    ):
        run_sweep(runs, tmp_path / "many.csv", executor)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "many.csv").read_bytes()


def test_no_scheduler_is_one_line() -> None:
    """An address where nothing answers, or that is none, names the option."""
    pytest.importorskip("distributed")
    with (
        pytest.raises(InputError, match="--dask nowhere:x: no scheduler answers there"),
        dask_cluster("nowhere:x"),
    ):
        pass


def _children(pid: int) -> list[int]:
    """Return the processes that a process has begun."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


def _is_alive(pid: int) -> bool:
    """Return whether a process is there and not merely unburied."""
    try:
        os.kill(pid, 0)
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")
