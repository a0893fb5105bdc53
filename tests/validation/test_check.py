"""``validate --check``: committed evidence is judged again, and the exit code says how."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from moesim.simulator.errors import InputError
from moesim.validation.commands import validate
from moesim.validation.protocol import run_cells

app = typer.Typer()
app.command()(validate)
STILL = {"copy": 1000, "loop": 500}


def check(folder: Path, *options: object) -> Any:
    """Run the command; a user's error is raised."""
    arguments = ["--check", str(folder), *map(str, options)]
    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_all_within_target_exits_0(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """Evidence of a machine that is as predicted passes, and its table names every cell."""
    run_cells(machine, cells_of(machine), folder, origin, anchors_ns=STILL)
    result = check(folder)
    assert result.exit_code == 0
    assert "held-out cells" in result.stdout
    assert "on-demand" in result.stdout
    assert "1 of 1 rankings right" in result.stdout
    assert result.stdout.endswith("all within target\n")
    _, over = result.stdout.split("what a token took at 12 slots")
    [row] = [line.split() for line in over.splitlines() if line.startswith("on-demand")]
    assert 1 < float(row[1].removesuffix("x")) < 1.15
    assert row[2] == "-"


def test_a_missed_target_exits_1(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any, slow_link: Any
) -> None:
    """Cells that are out of tolerance are listed, the mean error too."""
    machine.truth = slow_link
    run_cells(machine, cells_of(machine), folder, origin, anchors_ns=STILL)
    result = check(folder)
    assert result.exit_code == 1
    assert "missed: mean |error| of TPOT is" in result.stdout
    assert "missed: 2 of 2 repeatable cells are out of tolerance" in result.stdout


def test_what_does_not_repeat_counts_neither_way(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """A cell whose executions spread is no error, but too few repeatable ones miss the target."""
    machine.noise = [1.0, 1.0, 1.0, 1.2]
    run_cells(machine, cells_of(machine), folder, origin, anchors_ns=STILL)
    result = check(folder)
    assert result.exit_code == 1
    assert "1 of 2 held-out cells are repeatable here; mean |error| of TPOT over them 0.0%" in (
        " ".join(result.stdout.split())
    )
    assert "missed: 1 of 2 cells are repeatable here, 80 % are needed" in result.stdout


def test_cells_fitted_on_are_no_claim(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """A folder without held-out cells does not pass."""
    cells = cells_of(machine, fit_traces=(machine.trace.content_hash(),))
    run_cells(machine, cells, folder, origin, anchors_ns=STILL)
    result = check(folder)
    assert result.exit_code == 1
    assert "missed: no held-out cell" in result.stdout


def test_differing_decisions_of_a_timing_free_system_fail(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """A timing-free system that decides otherwise fails whatever its time."""
    machine.decides = {"lru": {"cache": "lfu", "prefetch": "none", "schedule": "resident_first"}}
    run_cells(machine, cells_of(machine), folder, origin, anchors_ns=STILL)
    result = check(folder)
    assert result.exit_code == 1
    assert "missed: 1 cells of timing-free systems were decided otherwise" in result.stdout


def test_a_polished_verdict_is_refused(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """A verdict that does not follow from the executions beside it is named."""
    [cell] = cells_of(machine, systems=("lru",))
    run_cells(machine, [cell], folder, origin, anchors_ns=STILL)
    path = folder / f"{cell.id}.json"
    tree = json.loads(path.read_text())
    tree["judged"]["spread"] = 0.001
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=rf"{cell.id}.json: judged: does not follow"):
        check(folder)


def test_a_prediction_changed_afterwards_is_refused(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """The prediction beside the evidence must be the one that was executed against."""
    [cell] = cells_of(machine, systems=("lru",))
    run_cells(machine, [cell], folder, origin, anchors_ns=STILL)
    path = folder / f"{cell.id}.prediction.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(InputError, match="is not the prediction that"):
        check(folder)
    path.unlink()
    with pytest.raises(InputError, match="a claim needs its prediction"):
        check(folder)


def test_a_folder_without_evidence_is_one_line(folder: Path, tmp_path: Path) -> None:
    """A missing folder, an empty one and a faulty file are each told in one line."""
    with pytest.raises(InputError, match=r"nowhere: no such folder; moesim validate -o"):
        check(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no evidence of any cell"):
        check(folder)
    name = f"{'0' * 16}.json"
    (folder / name).write_text('{"prediction_hash": 3}')
    with pytest.raises(
        InputError, match=rf"{name}: prediction_hash: .* it is not evidence"
    ) as told:
        check(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("dark", [False, True])
def test_it_draws_the_cells(
    machine: Any,
    cells_of: Callable[..., Any],
    folder: Path,
    origin: Any,
    tmp_path: Path,
    *,
    dark: bool,
) -> None:
    """``--plot`` draws every cell, on light and on dark paper."""
    pytest.importorskip("matplotlib", reason="it draws")
    run_cells(machine, cells_of(machine), folder, origin, anchors_ns=STILL)
    path = tmp_path / "cells.svg"
    check(folder, "--plot", path, *(["--dark"] if dark else []))
    text = path.read_text()
    assert ("#14171c" in text) is dark
    assert "<svg" in text


@pytest.mark.parametrize("name", ["cpu-reference", "h100-olmoe"])
def test_the_committed_evidence_follows_from_its_figures(repository: Path, name: str) -> None:
    """What is committed is judged alike again, and its checks passed, whatever its times."""
    result = check(repository / "validation" / "results" / name)
    assert "own routes, against the resident model" in result.stdout
    assert "FAILED" not in result.stdout
    assert result.exit_code == (0 if result.stdout.endswith("all within target\n") else 1)
