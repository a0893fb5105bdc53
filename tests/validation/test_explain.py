"""``moesim explain``: the first difference first, and what the gap is made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from moesim.simulator.errors import InputError, UnknownNameError
from moesim.validation.commands import explain
from moesim.validation.protocol import run_cells

app = typer.Typer()
app.command()(explain)
STILL = {"copy": 1000, "loop": 500}
LFU = {"cache": "lfu", "prefetch": "none", "schedule": "resident_first"}


def told(folder: Path, *options: object) -> str:
    """Return what the command prints; a user's error is raised."""
    arguments = [str(folder), *map(str, options)]
    return CliRunner().invoke(app, arguments, catch_exceptions=False).stdout


def test_a_seeded_difference_is_found(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """Where LFU decides in place of LRU, the first other victim is named, above other cells."""
    machine.decides = {"lru": LFU}
    found = run_cells(machine, cells_of(machine), folder, origin, anchors_ns=STILL)
    first = (
        next(o for o in found if o.prediction.cell.system == "lru").executions[0].decisions.first
    )

    lines = told(folder).splitlines()

    assert "12 slots lru: " in lines[1]
    assert f"first in step {first.step} layer {first.layer}: predicted Copy(" in lines[2]
    assert first.predicted != first.executed
    assert any("decided alike in 3 executions" in line for line in lines)


def test_a_slow_link_is_the_cause(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any, slow_link: Any
) -> None:
    """Where the link is half as fast, decisions are equal and copies explain the gap."""
    machine.truth = slow_link
    [one] = run_cells(
        machine, cells_of(machine, systems=("on-demand",)), folder, origin, anchors_ns=STILL
    )

    printed = told(folder)

    gap = one.judged.gap_ms
    assert "decided alike" in printed
    assert "parts at counted token 1: predicted" in printed
    assert f"(measured minus predicted): copy {gap['copy']:+.1f}" in printed
    assert "a copy takes 105.0 us on average, executed 205.0 to 205.0" in printed
    kinds = [line.split() for line in printed.splitlines() if line.startswith("    ")]
    assert kinds[0] == ["copy", "105.0", "205.0", "+600.0", "6", "/", "6"]
    assert gap["total"] == pytest.approx(
        gap["host"] + gap["copy"] + gap["kernel"] + gap["contention"], abs=1e-5
    )


def test_one_cell_can_be_chosen_and_drawn(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any, tmp_path: Path
) -> None:
    """``--cell`` takes the beginning of a name; ``--timeline`` draws a token both ways."""
    pytest.importorskip("matplotlib", reason="it draws")
    one, other = run_cells(machine, cells_of(machine), folder, origin, anchors_ns=STILL)
    path = tmp_path / "token.svg"

    printed = told(folder, "--cell", one.prediction.cell.id[:8], "--timeline", path)

    assert one.prediction.cell.id in printed
    assert other.prediction.cell.id not in printed
    assert "<svg" in path.read_text()
    assert {job.track for job in one.timeline} >= {"GPU compute", "copies host to GPU"}
    with pytest.raises(UnknownNameError, match="no cell 'xyz'"):
        told(folder, "--cell", "xyz")
    with pytest.raises(InputError, match="--timeline draws one cell; choose it with --cell"):
        told(folder, "--timeline", path)
