"""What a person reads of a validation: the cells, the verdict, what was asserted."""

from collections.abc import Iterable, Sequence
from statistics import fmean

import typer

from moesim.simulator.tables import print_table
from moesim.validation.beside import Check
from moesim.validation.evidence import Cell, Evidence
from moesim.validation.experienced import KINDS, PERCENTILES, both
from moesim.validation.judge import Verdict

NONE = "-"
HEADS = ("system", "predicted", "measured", "error", "p99", "TTFT", "spread", "differ", "verdict")
DEAR = ("system", "over the physical floor", "over every expert resident")


def print_cells(found: Sequence[Evidence]) -> None:
    """Print the held-out cells, then those that figures were fitted on.

    There is a table for each budget, and where they differ for each model, trace and profile. Under
    it is what requests went through that arrived by themselves; and how many times what the bytes
    moved must take (``physical.py``) a token took, and what it takes with every expert in VRAM,
    where that is known.
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
            if any(row[1:] != [NONE, NONE] for row in dear):
                print_table(f"what a token took {where}", DEAR, dear)


def _print_guests(where: str, cells: Sequence[Evidence]) -> None:
    """Print what requests went through where they arrived by themselves."""
    rows = []
    for one in cells:
        found = both(one)
        if found is not None:
            names = [f"p{percent}_request_{kind}" for kind in KINDS for percent in PERCENTILES]
            rows.append([one.prediction.cell.system, *(_both(found, name) for name in names)])
    if rows:
        heads = [f"{text} p{percent}" for text in KINDS.values() for percent in PERCENTILES]
        print_table(f"requests {where}: predicted / measured in ms", ("system", *heads), rows)


def _both(found: tuple[dict[str, float], dict[str, float]], name: str) -> str:
    return " / ".join(f"{side[name]:.1f}" if name in side else NONE for side in found)


def _place(cell: Cell) -> tuple[str, ...]:
    return cell.budget, cell.model, cell.trace, cell.hardware


def _row(one: Evidence) -> list[str]:
    cell, judged = one.prediction.cell, one.judged

    def error(name: str) -> str:
        return f"{judged.error[name]:+.1%}" if name in judged.error else NONE

    first = one.executions[0].decisions
    differing = max(execution.decisions.differing for execution in one.executions)
    return [
        cell.system,
        f"{one.prediction.outcome.times.mean_tpot:.3f}",
        f"{judged.measured.mean_tpot:.3f}",
        error("mean_tpot"),
        error("p99_tpot"),
        error("mean_ttft"),
        f"{judged.spread:.1%}",
        f"{differing / first.events:.1%}" if differing else "none",
        verdict_of(one),
    ]


def _dear_row(one: Evidence) -> list[str]:
    measured_ms = one.judged.measured.mean_tpot
    return [
        one.prediction.cell.system,
        _times(measured_ms, _floor_ms(one)),
        _times(measured_ms, one.provenance.resident_ms),
    ]


def _floor_ms(one: Evidence) -> float | None:
    floors = [execution.floor_ms for execution in one.executions]
    known = [floor for floor in floors if floor is not None]
    return fmean(known) if known else None


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
        [
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
