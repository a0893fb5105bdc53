"""The protocol of a validation: predict, write, execute in turns, judge, write.

Cells of one group differ in the system alone. They are predicted together, then executed one after
another, round after round, so that a machine that drifts favours none of them. A cell whose
evidence is in the folder is done; a run that was stopped goes on with the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from time import monotonic

from moesim.simulator.errors import InputError
from moesim.validation.compare import compare_decisions, one_token, outcome_of
from moesim.validation.evidence import Cell, Evidence, Execution, Job, Prediction, Provenance
from moesim.validation.evidence_files import (
    PREDICTION_SUFFIX,
    hash_of,
    read,
    read_cell,
    to_text,
    write,
)
from moesim.validation.judge import judge
from moesim.validation.machine import Machine
from moesim.validation.physical import floor_ms
from moesim.validation.predict import Replayed, predict, token_shown
from moesim.validation.statistics import relative_error

MOVED = 0.03
"""An execution during which an anchor moved by more than this is repeated."""
MOST_ATTEMPTS = 3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Origin:
    """What evidence says of its making: command, commit, and a token's time all resident."""

    command: str
    commit: str
    resident_ms: float | None = None


@dataclass(slots=True)
class _Open:
    """A cell under way; its timeline is of its fastest execution."""

    cell: Cell
    replayed: Replayed
    predicted_at: str
    began_at: str = ""
    executions: list[Execution] = field(default_factory=list)
    timeline: tuple[Job, ...] = ()


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


def run_cells(
    machine: Machine,
    cells: Sequence[Cell],
    folder: Path,
    origin: Origin,
    *,
    anchors_ns: dict[str, int],
    until_s: float | None = None,
    say: Say = lambda _line: None,
) -> list[Evidence]:
    """Predict and execute the cells that the folder lacks; return the evidence of all.

    Args:
        machine: What executes.
        cells: In any order.
        folder: Where evidence goes; it exists.
        origin: Who made it.
        anchors_ns: The anchors as they were at calibration.
        until_s: On the monotonic clock: begin no group that would not end before, but for the
            first, and repeat nothing because of an anchor unless the group still ends before.
        say: Told what happens, a line at a time.

    Raises:
        InputError: A file in the folder contradicts what would be written.
    """
    found: list[Evidence] = []
    cell_s = 0.0  # what the slowest cell took so far
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
        left_s = None if until_s is None else until_s - monotonic()
        if left_s is not None and cell_s and cell_s * len(missing) > left_s:
            say(f"{group[0].budget}: left for another time, {max(0.0, left_s) / 60:.1f} min remain")
            continue
        group_began_s = monotonic()
        found += _run_group(machine, missing, folder, origin, anchors_ns, until_s, say)
        cell_s = max(cell_s, (monotonic() - group_began_s) / len(missing))
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
    anchors_ns: dict[str, int],
    until_s: float | None,
    say: Say,
) -> list[Evidence]:
    under_way = []
    for cell in cells:
        replayed = predict(machine, cell)
        write_prediction(folder, replayed.prediction)
        under_way.append(_Open(cell, replayed, _now()))
    found = []
    before = machine.anchors()
    to_do = sum(cell.repeats for cell in cells)
    for turn in range(max(cell.repeats for cell in cells)):
        for it in under_way:
            if turn >= it.cell.repeats:
                continue
            it.began_at = it.began_at or _now()
            before = _execute(machine, it, before, until_s, to_do)
            to_do -= 1
            one = it.executions[-1]
            say(
                f"{it.cell.budget} {it.cell.system}: {turn + 1} of {it.cell.repeats}, TPOT "
                f"{one.outcome.times.mean_tpot:.3f} ms, predicted "
                f"{it.replayed.prediction.outcome.times.mean_tpot:.3f}"
            )
            if len(it.executions) == it.cell.repeats:
                found.append(_close(machine, it, folder, origin, anchors_ns))
    return found


def _execute(
    machine: Machine, it: _Open, before: dict[str, int], until_s: float | None, to_do: int
) -> dict[str, int]:
    """Execute once more, again if an anchor moved meanwhile; return the anchors after it.

    There is time to repeat if what the group has to do ends in time, at this one's pace.
    """
    cell, prediction = it.cell, it.replayed.prediction
    attempt = 0
    while True:
        attempt += 1
        began_s = monotonic()
        done = machine.execute(cell)
        after = machine.anchors()
        is_still = all(abs(relative_error(after[n], before[n])) <= MOVED for n in before)
        now_s = monotonic()
        is_late = until_s is not None and now_s + to_do * (now_s - began_s) > until_s
        if is_still or is_late or attempt == MOST_ATTEMPTS:
            break
        before = after
    spans = done.spans or []
    outcome = outcome_of(done.counts, done.timings, spans, cell.warm_tokens, cell.tokens)
    fastest = min((one.outcome.times.mean_tpot for one in it.executions), default=inf)
    if outcome.times.mean_tpot < fastest:  # the one that least came between
        it.timeline = one_token(done.timings, spans, token_shown(cell), machine.trace.experts)
    decisions = compare_decisions(it.replayed.log, done.log, exact=prediction.cell.timing_free)
    it.executions.append(
        Execution(
            outcome=outcome,
            decisions=decisions,
            attempts=attempt,
            anchors_before_ns=before,
            anchors_after_ns=after,
            floor_ms=None
            if cell.batching
            else floor_ms(
                done,
                machine.costs,
                machine.trace.experts,
                after,
                (cell.warm_tokens, cell.tokens),
            ),
        )
    )
    return after


def _close(
    machine: Machine, it: _Open, folder: Path, origin: Origin, anchors_ns: dict[str, int]
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
            ended_at=_now(),
            resident_ms=origin.resident_ms,
        ),
        judged=judge(prediction, it.executions, anchors_ns),
    )
    write(folder / f"{it.cell.id}.json", evidence)
    return evidence


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
