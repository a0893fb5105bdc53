"""What a person reads of a validation: the cells, the verdict, what was asserted."""

from collections.abc import Iterable, Sequence

import typer

from moesim.simulator.tables import print_table
from moesim.validation.beside import Check
from moesim.validation.evidence import Cell, Evidence
from moesim.validation.experienced import KINDS, PERCENTILES, both
from moesim.validation.judge import Verdict

NONE = "-"
HEADS = ("system", "predicted", "measured", "error", "p99", "TTFT", "spread", "differ", "verdict")
FLOOR = "a floor is of the fastest copies beside any execution"
DEAR = (
    "system",
    "over the physical floor",
    "over every expert resident",
    "every expert resident, predicted / measured",
)


def print_cells(found: Sequence[Evidence]) -> None:
    """Print the held-out cells, then those that figures were fitted on.

    There is a table for each budget, and where they differ for each model, trace and profile. Under
    it is what requests went through that arrived by themselves; and how many times what the bytes
    moved must take (``physical.py``) a token took, and what it takes with every expert in VRAM:
    measured, and foretold by the same figures, for what is wrong there is the runtime's part of an
    error.
    """
    places = [_place(one.prediction.cell) for one in found]
    told = [len(set(column)) > 1 for column in zip(*places, strict=True)]
    for held_out, title in ((True, "held-out cells"), (False, "cells fitted on")):
        of_title = [one for one in found if one.prediction.cell.held_out is held_out]
        for place in sorted({_place(one.prediction.cell) for one in of_title}):
            cells = [one for one in of_title if _place(one.prediction.cell) == place]
            budget, *others = place
            more = [f", {text}" for text, is_told in zip(others, told[1:], strict=True) if is_told]
            where = f"at {budget}{''.join(more)}"
            print_table(f"{title} {where}: mean TPOT in ms", HEADS, map(_row, cells))
            _print_guests(where, cells)
            dear = [_dear_row(one) for one in cells]
            if any(set(row[1:]) != {NONE} for row in dear):
                print_table(f"what a token took {where} ({FLOOR})", DEAR, dear)


def _print_guests(where: str, cells: Sequence[Evidence]) -> None:
    """Print what requests went through where they arrived by themselves."""
    rows = []
    for one in cells:
        found = both(one)
        if found is not None:
            rows += [_guests_row(one, kind, found) for kind in KINDS]
    if rows:
        heads = [text for percent in PERCENTILES for text in (f"p{percent}", "off by")]
        title = f"requests that arrived {where}: predicted / measured in ms"
        print_table(title, ("system", "", *heads), rows)


def _guests_row(
    one: Evidence, kind: str, found: tuple[dict[str, float], dict[str, float]]
) -> list[str]:
    row = [one.prediction.cell.system, KINDS[kind]]
    for percent in PERCENTILES:
        name = f"p{percent}_request_{kind}"
        ours, theirs = (side.get(name) for side in found)
        if ours is None or theirs is None:
            row += [NONE, NONE]
            continue
        error = one.judged.error.get(name)
        off = f"{ours - theirs:+.1f} ms" if error is None else f"{error:+.1%}"
        row += [f"{ours:.1f} / {theirs:.1f}", off]
    return row


def _place(cell: Cell) -> tuple[str, ...]:
    return cell.budget, cell.model, cell.trace, cell.hardware


def _row(one: Evidence) -> list[str]:
    cell, judged = one.prediction.cell, one.judged

    def error(name: str) -> str:
        return f"{judged.error[name]:+.1%}" if name in judged.error else NONE

    first = one.executions[0].decisions
    differing = max(execution.decisions.differing for execution in one.executions)
    share = f"{differing / first.events:.1%}" if differing else "none"
    return [
        cell.system,
        f"{one.prediction.outcome.times.mean_tpot:.3f}",
        f"{judged.measured.mean_tpot:.3f}",
        error("mean_tpot"),
        error("p99_tpot"),
        error("mean_ttft"),
        f"{judged.spread:.1%}",
        NONE if cell.arrivals else share,  # other steps have other layer events
        verdict_of(one),
    ]


def _dear_row(one: Evidence) -> list[str]:
    measured_ms = one.judged.measured.mean_tpot
    return [
        one.prediction.cell.system,
        _times(measured_ms, _floor_ms(one)),
        _times(measured_ms, one.provenance.resident_ms),
        _resident(one),
    ]


def _resident(one: Evidence) -> str:
    both_ms = one.provenance.resident_predicted_ms, one.provenance.resident_ms
    if both_ms == (None, None):
        return NONE
    return " / ".join(NONE if ms is None else f"{ms:.3f} ms" for ms in both_ms)


def _floor_ms(one: Evidence) -> float | None:
    """Return the lowest floor of a cell's executions: what the machine can do, without bursts."""
    floors = [execution.floor_ms for execution in one.executions]
    return min((floor for floor in floors if floor is not None), default=None)


def _times(measured_ms: float, other_ms: float | None) -> str:
    return f"{measured_ms / other_ms:.2f}x" if other_ms else NONE


def verdict_of(one: Evidence) -> str:
    """Return a cell's verdict in a word.

    ``decided``: a timing-free system decided otherwise; ``noisy``: not repeatable here.
    """
    if not one.judged.decisions_right:
        return "decided"
    if not one.judged.repeatable:
        return "noisy"
    return "within" if one.judged.within else "out"


def print_verdict(verdict: Verdict) -> None:
    """Print what all cells say together."""
    mean = "none" if verdict.mean_error is None else f"{verdict.mean_error:.1%}"
    right = sum(rank.predicted_right for rank in verdict.rankings)
    typer.echo(
        f"{verdict.repeatable} of {verdict.held_out} held-out cells are repeatable here; mean "
        f"|error| of TPOT over them {mean}; {right} of {len(verdict.rankings)} rankings right"
    )
    for line in verdict.failed:
        typer.echo(f"missed: {line}")
    if not verdict.failed:
        typer.echo("all within target")


def print_checks(checks: Iterable[Check]) -> None:
    """Print what was asserted on the model's own routes."""
    rows = [
        [check.system, check.fault, NONE, NONE, "FAILED"]
        if check.fault is not None
        else [
            check.system,
            f"{check.decisions} equal" if check.first is None else check.first,
            "equal"
            if check.largest_logit_difference == 0
            else f"{check.largest_logit_difference:.1e} off",
            "equal" if check.same_text else "differs",
            "passed" if check.passed else "FAILED",
        ]
        for check in checks
    ]
    print_table(
        "own routes, against the resident model",
        ("system", "decisions", "logits", "text", ""),
        rows,
    )
