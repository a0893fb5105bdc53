"""One cell under way: executions, those that an anchor's move or a burst of copies repeats."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from time import monotonic

from moesim.validation.anchoring import Anchors
from moesim.validation.beside import Partial
from moesim.validation.bursts import hit, settle
from moesim.validation.compare import compare_decisions, one_token, outcome_of
from moesim.validation.evidence import Cell, Execution, Job, Replaced
from moesim.validation.evidence_files import PARTIAL_SUFFIX, hash_of, read, to_text, write
from moesim.validation.machine import Machine
from moesim.validation.physical import fastest, floor_ms
from moesim.validation.predict import Replayed, token_shown

MOST_ATTEMPTS = 3
"""Of an execution during which an anchor moved by more than it may."""
UNEVEN = "cpu"
"""A backend whose copies are those of a shared CPU: uneven always, so that nothing is repeated."""

Say = Callable[[str], None]


@dataclass(slots=True)
class UnderWay:
    """A cell under way; its timeline is of its fastest execution, ``seconds`` of its last one."""

    cell: Cell
    replayed: Replayed
    predicted_at: str
    began_at: str = ""
    executions: list[Execution] = field(default_factory=list)
    replaced: tuple[Replaced, ...] = ()
    timeline: tuple[Job, ...] = ()
    fastest: float = inf
    seconds: float = 0.0


def keep(folder: Path, it: UnderWay) -> None:
    """Write what was executed of a cell so far."""
    partial = Partial(
        prediction_hash=hash_of(to_text(it.replayed.prediction)),
        predicted_at=it.predicted_at,
        began_at=it.began_at,
        executions=tuple(it.executions),
        timeline=it.timeline,
        fastest=it.fastest,
    )
    write(folder / f"{it.cell.id}{PARTIAL_SUFFIX}", partial)


def resume(folder: Path, it: UnderWay) -> UnderWay:
    """Take over what was executed of a cell before, against the same prediction.

    Raises:
        InputError: The file is faulty.
    """
    path = folder / f"{it.cell.id}{PARTIAL_SUFFIX}"
    if path.exists():
        partial = read(path, Partial)
        if partial.prediction_hash == hash_of(to_text(it.replayed.prediction)):
            it.predicted_at, it.began_at = partial.predicted_at, partial.began_at
            it.executions = [*partial.executions]
            it.timeline, it.fastest = partial.timeline, partial.fastest
    return it


def told(it: UnderWay, one: Execution) -> str:
    """Return a line of progress."""
    foretold = it.replayed.prediction.outcome.times.mean_tpot
    return (
        f"{it.cell.budget} {it.cell.system}: TPOT {one.outcome.times.mean_tpot:.3f} ms, predicted "
        f"{foretold:.3f}"
    )


def repeat_hit(
    machine: Machine,
    it: UnderWay,
    anchors: Anchors,
    until_s: float | None,
    to_do: int,
    say: Say,
) -> None:
    """Execute once more whoever was hit by a burst of long copies; see ``bursts.py``."""
    again = {}
    for number in [] if it.cell.backend == UNEVEN else hit(it.executions):
        began_s = monotonic()
        if until_s is not None and began_s + (to_do + 1) * it.seconds > until_s:
            say(f"{it.cell.budget} {it.cell.system}: {number + 1} was hit by a burst, no time left")
            break
        again[number] = execute(machine, it, anchors, until_s, to_do)
        say(f"{told(it, again[number])}, {number + 1} once more: a burst of long copies")
    counted, replaced = settle(it.executions, again)
    it.executions, it.replaced = [*counted], replaced


def execute(
    machine: Machine, it: UnderWay, anchors: Anchors, until_s: float | None, to_do: int
) -> Execution:
    """Execute, again if an anchor moved meanwhile.

    There is time to repeat if what the group has to do ends in time, at this one's pace.
    """
    cell, prediction = it.cell, it.replayed.prediction
    attempt = 0
    while True:
        attempt += 1
        began_s, before = monotonic(), anchors.last_ns
        done = machine.execute(cell)
        after = machine.anchors()
        is_still = anchors.take(after)
        now_s = monotonic()
        it.seconds = now_s - began_s
        is_late = until_s is not None and now_s + to_do * it.seconds > until_s
        if is_still or is_late or attempt == MOST_ATTEMPTS:
            break
    spans = done.spans or []
    lengths = cell.warm_tokens, cell.tokens
    arrived = machine.terms is not None
    outcome = outcome_of(done.counts, done.timings, spans, done.log, lengths, arrived=arrived)
    if outcome.times.mean_tpot < it.fastest:  # the one that least came between
        it.fastest = outcome.times.mean_tpot
        it.timeline = one_token(done.timings, spans, token_shown(cell), machine.trace.experts)
    return Execution(
        outcome=outcome,
        decisions=compare_decisions(it.replayed.log, done.log, exact=prediction.cell.timing_free),
        attempts=attempt,
        anchors_before_ns=before,
        anchors_after_ns=after,
        floor_ms=None
        if cell.batching
        else floor_ms(done, machine.costs, machine.trace.experts, fastest(before, after), lengths),
    )


def now() -> str:
    """Return the time, as evidence has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
