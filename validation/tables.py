"""What a person reads of a validation: the cells, the verdict, what was asserted."""

from collections.abc import Iterable, Sequence

import typer

from moesim.simulator.tables import print_table
from moesim.validation.evidence import Check, Evidence
from moesim.validation.judge import Verdict

HEADS = ("system", "predicted", "measured", "error", "p99", "TTFT", "spread", "differ", "verdict")


def print_cells(found: Sequence[Evidence]) -> None:
    """Print the held-out cells, a table for each budget, then those that figures were fitted on."""
    for held_out, title in ((True, "held-out cells"), (False, "cells fitted on")):
        cells = [one for one in found if one.prediction.cell.held_out is held_out]
        for budget in sorted({one.prediction.cell.budget for one in cells}):
            rows = [_row(one) for one in cells if one.prediction.cell.budget == budget]
            print_table(f"{title} at {budget}: mean TPOT in ms", HEADS, rows)


def _row(one: Evidence) -> list[str]:
    cell, judged = one.prediction.cell, one.judged

    def error(name: str) -> str:
        return f"{judged.error[name]:+.1%}" if name in judged.error else "-"

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
