"""Predictions come first, executions take turns, what is done is not done again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesim.simulator.errors import InputError
from moesim.validation.anchoring import FIRST, Anchors
from moesim.validation.evidence_files import read_folder
from moesim.validation.protocol import Pace, group_cells, run_cells

STILL = {"copy": 1000, "loop": 500}
MOVED = {"copy": 1000, "loop": 600}


def test_every_prediction_is_on_disk_before_an_execution(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """When the first execution begins, the predictions of its group are files."""
    cells = cells_of(machine)
    seen: list[set[str]] = []
    machine.before = lambda _cell: seen.append({path.name for path in folder.iterdir()})

    run_cells(machine, cells, folder, origin, anchors_ns=STILL)

    assert seen[0] == {f"{cell.id}.prediction.json" for cell in cells}


def test_executions_of_a_group_take_turns(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """Each system is executed once before any is executed again."""
    run_cells(machine, cells_of(machine), folder, origin, anchors_ns=STILL)
    assert machine.executed == ["lru", "on-demand"] * 3


def test_a_true_profile_predicts_exactly(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """A machine that is as its profile says shows no error, no differing decision and no gap."""
    for one in run_cells(machine, cells_of(machine), folder, origin, anchors_ns=STILL):
        assert set(one.judged.error.values()) == {0}
        assert set(one.judged.gap_ms.values()) == {0}
        assert [e.decisions.differing for e in one.executions] == [0, 0, 0]
        assert one.judged.within


def test_the_timeline_is_of_the_fastest_execution(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """Of three executions, the second as predicted and the others slower, the second is shown."""
    machine.noise = [1.3, 1.0, 1.3]
    cells = cells_of(machine, systems=("lru",))
    (one,) = run_cells(machine, cells, folder, origin, anchors_ns=STILL)
    assert one.prediction.timeline == one.timeline
    assert one.judged.spread > 0


def test_a_killed_run_goes_on_where_it_was(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """What was executed is not executed again, and predictions are kept."""
    cells = cells_of(machine, slots=(12, 18))

    def kill(_cell: Any) -> None:
        if len(machine.executed) == 8:
            raise KeyboardInterrupt

    machine.before = kill
    with pytest.raises(KeyboardInterrupt):
        run_cells(machine, cells, folder, origin, anchors_ns=STILL)
    done = read_folder(folder)
    predictions = {path: path.read_bytes() for path in folder.glob("*.prediction.json")}
    assert len(done) == 2
    assert len(predictions) == 4
    machine.before = lambda _cell: None
    machine.executed.clear()

    found = run_cells(machine, cells, folder, origin, anchors_ns=STILL)

    assert machine.executed == ["lru", "on-demand"] * 2
    assert [len(one.executions) for one in found] == [3] * 4
    assert not [*folder.glob("*.partial.json")]
    assert {one.prediction.cell.id for one in found} == {cell.id for cell in cells}
    assert {path: path.read_bytes() for path in predictions} == predictions


def test_other_figures_are_another_cell(machine: Any, cells_of: Callable[..., Any]) -> None:
    """A cell's identity changes with whatever determines it."""
    cell = cells_of(machine)[0]
    changes = [{"profile_hash": "x"}, {"tokens": 19}, {"repeats": 4}, {"expert_budget_bytes": 7}]
    ids = {cell.model_copy(update=change).id for change in changes}
    assert len(ids | {cell.id}) == 5


def test_a_contradicting_prediction_is_refused(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """A prediction that was changed after it was written stops the run before it executes."""
    [cell] = cells_of(machine, systems=("lru",))
    run_cells(machine, [cell], folder, origin, anchors_ns=STILL)
    (folder / f"{cell.id}.json").unlink()
    path = folder / f"{cell.id}.prediction.json"
    path.write_text(path.read_text().replace('"decisions": ', '"decisions": 1'))
    machine.executed.clear()

    with pytest.raises(InputError, match=r"another prediction of the same cell"):
        run_cells(machine, [cell], folder, origin, anchors_ns=STILL)

    assert machine.executed == []


def test_a_moved_anchor_repeats_at_most_twice(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """Where anchors held still, an execution that moves one by more than 3 % is repeated."""
    anchors = Anchors()
    for _ in range(FIRST):
        anchors.take(STILL)
    machine.anchor_readings = [STILL, MOVED, MOVED, MOVED, STILL, MOVED, STILL, STILL]

    [one] = run_cells(
        machine,
        cells_of(machine, systems=("lru",)),
        folder,
        origin,
        anchors_ns=STILL,
        anchors=anchors,
    )

    assert [execution.attempts for execution in one.executions] == [2, 1, 3]
    assert one.judged.drift == pytest.approx(0.2)


def test_an_anchor_that_never_holds_still_repeats_little(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """Once its first readings have shown how far it moves, that far is no reason to repeat."""
    machine.anchor_readings = [STILL, MOVED, STILL, MOVED, STILL, MOVED, STILL]

    [one] = run_cells(
        machine, cells_of(machine, systems=("lru",)), folder, origin, anchors_ns=STILL
    )

    assert [execution.attempts for execution in one.executions] == [2, 1, 1]


def test_each_anchor_has_an_allowance_of_its_own() -> None:
    """One that swings is let swing, as far as its first readings lie apart; another is not."""
    anchors = Anchors()
    readings = [{"copy": 1000, "loop": loop} for loop in (500, 800, 400, 500, 700, 600)]
    still = [anchors.take(reading) for reading in readings]
    assert still == [True, False, False, True, True, True]
    assert (anchors.allowance("copy"), anchors.allowance("loop")) == (0.03, 1.0)
    assert not anchors.take({"copy": 1031, "loop": 600})
    assert not anchors.take({"copy": 1031, "loop": 1300})
    assert anchors.allowance("loop") == 1.0


def test_groups_that_do_not_fit_the_time_are_left(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """Past the deadline the first group is still done, and no other is begun."""
    said: list[str] = []
    cells = cells_of(machine, slots=(12, 24))

    found = run_cells(
        machine, cells, folder, origin, anchors_ns=STILL, pace=Pace(0.0), say=said.append
    )

    assert {one.prediction.cell.budget for one in found} == {"12 slots"}
    assert said[-1].startswith("24 slots: left for another time")


def test_what_is_worth_most_comes_first(
    machine: Any, cells_of: Callable[..., Any], trace_of: Callable[..., Any]
) -> None:
    """Held-out cells precede those fitted on, and half of the largest budget precedes the ends."""
    other = type(machine)(trace=trace_of(seed=9))
    fitted = cells_of(other, slots=(10,), fit_traces=(other.trace.content_hash(),))
    held_out = cells_of(machine, slots=(20, 6, 10))
    order = [(group[0].budget, group[0].held_out) for group in group_cells([*fitted, *held_out])]
    assert order[0] == ("10 slots", True)
    assert order[-1] == ("10 slots", False)
