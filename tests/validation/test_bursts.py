"""Executions hit by a burst of long copies are executed once more, by a rule of copies alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesim.simulator.errors import InputError
from moesim.validation import bursts
from moesim.validation.checking import judge_again
from moesim.validation.evidence import Execution
from moesim.validation.evidence_files import read_folder
from moesim.validation.judge import check_judgements
from moesim.validation.protocol import run_cells

STILL = {"copy": 1000, "loop": 500}


@pytest.fixture
def execution_with(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> Callable[[int], Execution]:
    """Return a function that gives an execution whose copies took so long on average."""
    [one] = run_cells(
        machine, cells_of(machine, systems=("lru",)), folder, origin, anchors_ns=STILL
    )
    first = one.executions[0]

    def make(mean_ns: int) -> Execution:
        outcome = first.outcome
        link = mean_ns * outcome.counts["copies"]
        busy = outcome.busy.model_copy(update={"link": link})
        return first.model_copy(
            update={"outcome": outcome.model_copy(update={"busy": busy}), "attempts": mean_ns}
        )

    return make


def test_the_rule(execution_with: Callable[[int], Execution]) -> None:
    """More than 3 % above the median is hit; 3 % is not, nor what is below it."""
    means = [1000, 1030, 1031, 1000, 900]
    assert bursts.hit([execution_with(mean) for mean in means]) == [2]
    assert bursts.hit([execution_with(1000)]) == []


def test_the_shorter_copies_count(execution_with: Callable[[int], Execution]) -> None:
    """Of an execution and its repetition the one with shorter copies counts, both are kept."""
    first = [execution_with(mean) for mean in (1000, 1500, 1600)]
    again = {1: execution_with(1010), 2: execution_with(1700)}
    counted, replaced = bursts.settle(first, again)
    assert [one.attempts for one in counted] == [1000, 1010, 1600]
    assert [(one.number, one.execution.attempts) for one in replaced] == [(1, 1500), (2, 1700)]
    assert bursts.is_by_rule(counted, replaced)
    assert not bursts.is_by_rule(first, [replaced[0].model_copy(update={"number": 2})])


def test_who_was_hit_is_executed_once_more(
    machine: Any,
    cells_of: Callable[..., Any],
    folder: Path,
    origin: Any,
    slow_link: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One slow execution of three is repeated, once, and its evidence says so."""
    true = machine.truth

    def slow_second(_cell: Any) -> None:
        machine.truth = slow_link if len(machine.executed) == 1 else true

    machine.before = slow_second
    [one] = run_cells(
        machine, cells_of(machine, systems=("lru",)), folder, origin, anchors_ns=STILL
    )
    assert machine.executed == ["lru"] * 4
    assert one.judged.spread == 0
    assert one.judged.within
    [replaced] = one.replaced or ()
    assert replaced.number == 1
    assert replaced.execution.outcome.busy.link > one.executions[1].outcome.busy.link
    assert read_folder(folder) == [one]
    judge_again([folder], dark=False)
    assert "1 executions were executed once more" in capsys.readouterr().out


def test_putting_a_good_execution_aside_is_refused(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any
) -> None:
    """Evidence in which what counts had longer copies than what does not was edited."""
    [one] = run_cells(
        machine, cells_of(machine, systems=("lru",)), folder, origin, anchors_ns=STILL
    )
    assert one.replaced is None
    path = folder / f"{one.prediction.cell.id}.json"
    tree = json.loads(path.read_text())
    assert "replaced" not in tree
    good = json.loads(json.dumps(tree["executions"][0]))
    good["outcome"]["busy"]["link"] -= 1000
    tree["replaced"] = [{"number": 0, "execution": good}]
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match="replaced: an execution was put aside"):
        check_judgements(read_folder(folder))


def test_stalls_are_the_waits_for_copies(
    machine: Any, cells_of: Callable[..., Any], folder: Path, origin: Any, slow_link: Any
) -> None:
    """A layer's stall is known both ways; a link half as fast makes it almost twice as long."""
    machine.truth = slow_link
    [one] = run_cells(
        machine, cells_of(machine, systems=("on-demand",)), folder, origin, anchors_ns=STILL
    )
    predicted, measured = one.prediction.outcome.stall_ms, one.executions[0].outcome.stall_ms
    assert predicted is not None
    assert measured is not None
    assert len(predicted) == len(measured) == machine.trace.layers
    # Two experts a layer: two copies, the first run hidden in the second copy.
    assert all(0.2 < ms < 0.25 for ms in predicted)
    assert all(1.8 < b / a <= 2 for a, b in zip(predicted, measured, strict=True))
