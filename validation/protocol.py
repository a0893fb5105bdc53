"""The protocol of a validation: predict, write, execute in turns, judge, write.

Cells of one group differ in the system alone. They are predicted together, then executed one after
another, round after round, so that a machine that drifts favours none of them; only where systems
want experts laid out otherwise and host memory holds one layout alone, those of one layout take
turns and then those of the other. A cell whose evidence is in the folder is done, and so is each
execution that was kept; a run that was stopped goes on with the others. Who was hit by a burst of
long copies is executed once more (``bursts.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import inf
from pathlib import Path
from time import monotonic

from moesim.simulator.errors import InputError
from moesim.validation.anchoring import Anchors
from moesim.validation.evidence import Cell, Evidence, Prediction, Provenance
from moesim.validation.evidence_files import (
    PARTIAL_SUFFIX,
    PREDICTION_SUFFIX,
    hash_of,
    read,
    read_cell,
    to_text,
    write,
)
from moesim.validation.executing import Say, UnderWay, execute, keep, now, repeat_hit, resume, told
from moesim.validation.judge import judge
from moesim.validation.machine import Machine
from moesim.validation.predict import predict


@dataclass(frozen=True, slots=True)
class Origin:
    """What evidence says of its making: command, commit, and a token's time all resident."""

    command: str
    commit: str
    resident_ms: float | None = None
    resident_predicted_ms: float | None = None


def group_cells(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return cells by group, the group worth most first.

    Held-out cells are worth more than those that were fitted on, and among them those whose budget
    is nearest to half of the largest: hits and copies both matter there.
    """
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    largest = max((cell.expert_budget_bytes for cell in cells), default=0)

    def worth(group: list[Cell]) -> tuple[bool, float]:
        return (
            not any(cell.held_out for cell in group),
            abs(group[0].expert_budget_bytes - largest / 2),
        )

    return sorted(groups.values(), key=worth)


@dataclass(slots=True)
class Pace:
    """How much time there is, and how much was needed so far.

    Attributes:
        until_s: On the monotonic clock; None is no limit.
        cell_s: What the slowest cell took so far; 0 before the first.
    """

    until_s: float | None = None
    cell_s: float = 0.0

    def left_s(self) -> float:
        """Return how long it goes on."""
        return inf if self.until_s is None else self.until_s - monotonic()


def run_cells(
    machine: Machine,
    cells: Sequence[Cell],
    folder: Path,
    origin: Origin,
    *,
    anchors_ns: dict[str, int],
    anchors: Anchors | None = None,
    pace: Pace | None = None,
    say: Say = lambda _line: None,
) -> list[Evidence]:
    """Predict and execute the cells that the folder lacks; return the evidence of all.

    Args:
        machine: What executes.
        cells: In any order.
        folder: Where evidence goes; it exists.
        origin: Who made it.
        anchors_ns: The anchors as they were at calibration.
        anchors: How they were in this session so far.
        pace: Begin no group that would not end in time, but for the first, and repeat nothing
            because of an anchor unless the group still ends in time.
        say: Told what happens, a line at a time.

    Raises:
        InputError: A file in the folder contradicts what would be written.
    """
    found: list[Evidence] = []
    anchors, pace = anchors or Anchors(), pace or Pace()
    for group in group_cells(cells):
        missing = []
        for cell in group:
            path = folder / f"{cell.id}.json"
            if path.exists():
                found.append(read_cell(path))
                say(f"{cell.budget} {cell.system}: done before")
            else:
                missing.append(cell)
        if not missing:
            continue
        left_s = pace.left_s()
        if pace.cell_s and pace.cell_s * len(missing) > left_s:
            say(f"{group[0].budget}: left for another time, {max(0.0, left_s) / 60:.1f} min remain")
            continue
        group_began_s = monotonic()
        found += _run_group(
            machine, missing, folder, origin, anchors, anchors_ns, pace.until_s, say
        )
        pace.cell_s = max(pace.cell_s, (monotonic() - group_began_s) / len(missing))
    return found


def write_prediction(folder: Path, prediction: Prediction) -> None:
    """Write a prediction, unless the very same was written before.

    Raises:
        InputError: Another prediction of this cell is there.
    """
    path = folder / f"{prediction.cell.id}{PREDICTION_SUFFIX}"
    if not path.exists():
        write(path, prediction)
    elif read(path, Prediction) != prediction:
        raise InputError(
            f"{path}: is another prediction of the same cell; write to an empty folder"
        )


def _run_group(
    machine: Machine,
    cells: Sequence[Cell],
    folder: Path,
    origin: Origin,
    anchors: Anchors,
    anchors_ns: dict[str, int],
    until_s: float | None,
    say: Say,
) -> list[Evidence]:
    under_way = []
    for cell in cells:
        replayed = predict(machine, cell)
        write_prediction(folder, replayed.prediction)
        under_way.append(resume(folder, UnderWay(cell, replayed, now())))
    found = []
    anchors.take(machine.anchors())
    to_do = sum(it.cell.repeats - len(it.executions) for it in under_way)
    for lot in machine.take_turns(cells):
        taking = [it for it in under_way if it.cell in lot]
        for turn, it in product(range(max(cell.repeats for cell in lot)), taking):
            if turn >= it.cell.repeats:
                continue
            if turn >= len(it.executions):
                it.began_at = it.began_at or now()
                one = execute(machine, it, anchors, until_s, to_do)
                to_do -= 1
                it.executions.append(one)
                keep(folder, it)
                say(f"{told(it, one)}, {turn + 1} of {it.cell.repeats}")
            if turn == it.cell.repeats - 1:
                repeat_hit(machine, it, anchors, until_s, to_do, say)
                found.append(_close(machine, it, folder, origin, anchors_ns))
    return found


def _close(
    machine: Machine, it: UnderWay, folder: Path, origin: Origin, anchors_ns: dict[str, int]
) -> Evidence:
    prediction = it.replayed.prediction
    evidence = Evidence(
        prediction_hash=hash_of(to_text(prediction)),
        prediction=prediction,
        executions=tuple(it.executions),
        timeline=it.timeline,
        provenance=Provenance(
            machine=dict(machine.fingerprint()),
            versions=dict(machine.versions()),
            commit=origin.commit,
            command=origin.command,
            anchors_ns=anchors_ns,
            predicted_at=it.predicted_at,
            began_at=it.began_at,
            ended_at=now(),
            resident_ms=origin.resident_ms,
            resident_predicted_ms=origin.resident_predicted_ms,
        ),
        judged=judge(prediction, it.executions, anchors_ns),
        replaced=it.replaced or None,
    )
    write(folder / f"{it.cell.id}.json", evidence)
    (folder / f"{it.cell.id}{PARTIAL_SUFFIX}").unlink(missing_ok=True)
    return evidence
