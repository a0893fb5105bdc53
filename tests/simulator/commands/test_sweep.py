"""``moesim sweep`` as a user calls it; what is in the results is tested with `run_sweep`."""

import csv
import inspect
from pathlib import Path

import pytest

from moesim.simulator.commands.simulate import simulate
from moesim.simulator.sweeps.file import RunOptions


@pytest.fixture
def sweep_file(sample: Path, tmp_path: Path) -> Path:
    """Return a sweep of three runs, one of which cannot be."""
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"base: {{trace: {sample}, hardware: rtx4090, cost_of: mixtral-8x7b, format: int4,"
        " requests: 1}\ngrid: {slots: [48, 96, 0]}\n",
        encoding="utf-8",
    )
    return path


def test_a_sweep_is_listed_run_listed_again_and_left_alone(
    cli, sweep_file: Path, tmp_path: Path
) -> None:
    """The list tells what is to do, done and impossible; a failure is exit code 1 and one line."""
    out = tmp_path / "out.csv"
    before = cli("sweep", sweep_file, "-o", out, "--dry-run")
    assert before.code == 0
    assert "3 runs, 3 different" in before.out
    assert before.out.count("to do") == 2
    assert not out.exists()
    first = cli("sweep", sweep_file, "-o", out, "--jobs", 1)
    assert first.code == 1
    assert f"{out}: 2 runs done, 0 were there, 1 failed" in first.err
    assert "--slots 0: expected a number of experts" in first.err
    with out.open(encoding="utf-8") as file:
        assert [row["slots"] for row in csv.DictReader(file)] == ["48", "96"]
    rows = out.read_bytes()
    after = cli("sweep", sweep_file, "-o", out, "--dry-run")
    assert after.out.count("done") == 2
    again = cli("sweep", sweep_file, "-o", out, "--jobs", 1)
    assert f"{out}: 0 runs done, 2 were there, 1 failed" in again.err
    assert out.read_bytes() == rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "nowhere/o.csv"), "there is no folder nowhere; make it first"),
        (("-o", "o.csv", "--jobs", 2, "--dask", "tcp://a:1"), "give --jobs 2 or --dask tcp://a:1"),
    ],
)
def test_what_cannot_be_done_is_one_line(cli, sweep_file: Path, words, message: str) -> None:
    """Before any worker begins."""
    done = cli("sweep", sweep_file, *words)
    assert done.code == 1
    assert message in done.err
    assert done.err.count("\n") == 1


def test_whatever_can_be_simulated_can_be_swept() -> None:
    """The keys of a sweep are the options of ``moesim simulate``, but for what it writes."""
    written = {"json_out", "csv_out", "timeline", "plot", "dark", "quiet"}
    options = {*inspect.signature(simulate).parameters} - written
    renamed = {"mapping": "map"}
    assert {renamed.get(name, name) for name in options} == RunOptions.model_fields.keys()


def test_what_a_policy_asks_for_has_a_time_in_a_sweep(cli, sample: Path, tmp_path: Path) -> None:
    """``ask`` is a key like any other: each time makes a run of its own."""
    (tmp_path / "sweep.yaml").write_text(
        f"base: {{trace: {sample}, hardware: rtx4090, cost_of: mixtral-8x7b, format: int4,"
        ' requests: 1, slots: 25%, prefetch: "expert_map:history=4"}\n'
        "grid: {ask: [expert_map_search=1us, expert_map_search=2us]}\n",
        encoding="utf-8",
    )
    listed = cli("sweep", tmp_path / "sweep.yaml", "-o", tmp_path / "out.csv", "--dry-run")
    assert listed.code == 0, listed.err
    assert "2 runs, 2 different" in listed.out
