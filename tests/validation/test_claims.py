"""Signs, choice and inside follow from evidence, of one folder or of several."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from moesim.simulator.errors import InputError
from moesim.validation import claims
from moesim.validation.checking import find_folders
from moesim.validation.commands import validate
from moesim.validation.evidence import Evidence
from moesim.validation.protocol import run_cells

app = typer.Typer()
app.command()(validate)
STILL = {"copy": 1000, "loop": 500}


@pytest.fixture
def found(machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any) -> list[Evidence]:
    """Return the evidence of two systems, neither with prefetch."""
    cells = cells_of(machine, systems=("lru", "on-demand"))
    return run_cells(machine, cells, folder, origin, anchors_ns=STILL)


def changed(one: Evidence, *, tpot: float, measured: list[float], **cell: Any) -> Evidence:
    """Return evidence with other times."""

    def timed(outcome: Any, ms: float) -> Any:
        times = outcome.times.model_copy(update={"mean_tpot": ms})
        return outcome.model_copy(update={"times": times})

    foretold = one.prediction
    executions = tuple(
        execution.model_copy(update={"outcome": timed(execution.outcome, ms)})
        for execution, ms in zip(one.executions, measured, strict=True)
    )
    mean = sum(measured) / len(measured)
    return one.model_copy(
        update={
            "prediction": foretold.model_copy(
                update={
                    "cell": foretold.cell.model_copy(update=cell),
                    "outcome": timed(foretold.outcome, tpot),
                }
            ),
            "executions": executions,
            "judged": one.judged.model_copy(
                update={"measured": one.judged.measured.model_copy(update={"mean_tpot": mean})}
            ),
        }
    )


@pytest.mark.parametrize(
    ("tpot", "measured", "is_told", "confirmed"),
    [
        (9.0, [9.1, 9.2, 9.3], True, True),
        (11.0, [10.8, 11.0, 11.2], True, True),
        (9.0, [10.5, 10.6, 10.7], True, False),
        (9.0, [9.5, 9.9, 10.05], False, False),
    ],
)
def test_a_sign_is_confirmed_by_every_execution(
    found: list[Evidence], tpot: float, measured: list[float], *, is_told: bool, confirmed: bool
) -> None:
    """A win or loss counts where the machine tells the two apart, and the predicted way round."""
    without = changed(found[0], tpot=10.0, measured=[10.0, 10.1, 10.2])
    with_it = changed(
        found[0], tpot=tpot, measured=measured, prefetch="next_gate", system="lru+next_gate"
    )
    other = changed(found[1], tpot=20.0, measured=[20.0, 20.0, 20.0])
    [sign] = claims.signs([without, other, with_it])
    assert (sign.without, sign.with_it) == ("lru", "lru+next_gate")
    assert sign.predicted == pytest.approx(tpot / 10 - 1)
    assert (sign.is_told, sign.confirmed) == (is_told, confirmed)


def test_the_choice_costs_what_the_fastest_saves(found: list[Evidence]) -> None:
    """Whoever is predicted first is compared with whoever was; one system is no choice."""
    first = changed(found[0], tpot=9.0, measured=[10.2, 10.2, 10.2])
    second = changed(found[1], tpot=10.0, measured=[10.0, 10.0, 10.0])
    [picked] = claims.choices([first, second])
    assert (picked.chosen, picked.fastest, picked.among) == ("lru", "on-demand", 2)
    assert picked.regret == pytest.approx(0.02)
    assert claims.choices([first]) == []


def test_inside_compares_stalls_link_and_lateness(found: list[Evidence]) -> None:
    """A machine that is as predicted has the same inside; older evidence knows no stalls."""
    for inside in claims.insides(found):
        assert inside.stall_ms is not None
        assert inside.stall_ms[0] == inside.stall_ms[1] > 0
        assert inside.link_busy[0] == inside.link_busy[1] > 0
    outcome = found[0].prediction.outcome.model_copy(update={"stall_ms": None})
    foretold = found[0].prediction.model_copy(update={"outcome": outcome})
    [old] = claims.insides([found[0].model_copy(update={"prediction": foretold})])
    assert old.stall_ms is old.worst_stall_ms is None


def test_folders_are_judged_together(
    machine: Any, cells_of: Callable[..., Any], tmp_path: Path, origin: Any
) -> None:
    """Folders named, or found in one that is named, make one table and one JSON file."""
    for name, slots in (("one", 12), ("two", 18)):
        (tmp_path / name).mkdir()
        cells = cells_of(machine, slots=(slots,))
        run_cells(machine, cells, tmp_path / name, origin, anchors_ns=STILL)
    (tmp_path / "notes").mkdir()
    out = tmp_path / "all.json"
    outer = ["--check", str(tmp_path), "--json", str(out)]
    inner = ["--check", str(tmp_path / "one"), str(tmp_path / "two")]
    results = [CliRunner().invoke(app, words, catch_exceptions=False) for words in (outer, inner)]
    assert results[0].stdout == results[1].stdout
    assert results[0].exit_code == 0
    assert "held-out cells of all folders" in results[0].stdout
    assert "mean |error| of p99 of TPOT over 4 repeatable cells 0.0%, worst 0.0%" in (
        " ".join(results[0].stdout.split())
    )
    tree = json.loads(out.read_text())
    assert [cell["budget"] for cell in tree["cells"]] == ["12 slots"] * 2 + ["18 slots"] * 2
    assert len(tree["choice"]) == 2
    assert tree["missed"] == []


def test_what_cannot_be_judged_together_is_refused(tmp_path: Path) -> None:
    """A folder given twice, and folders without --check, are each refused in a line."""
    with pytest.raises(InputError, match="is given twice"):
        find_folders([tmp_path, tmp_path])
    with pytest.raises(InputError, match="judged again with --check"):
        CliRunner().invoke(app, [str(tmp_path)], catch_exceptions=False)
