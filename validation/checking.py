"""Evidence judged again: of one folder, or of several at once in one table."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from moesim.simulator.errors import InputError
from moesim.simulator.results.rows import write_text
from moesim.validation.beside import Check
from moesim.validation.bursts import LIMIT
from moesim.validation.claim_tables import print_claims, print_together
from moesim.validation.claims import choices, insides, signs
from moesim.validation.evidence import Evidence
from moesim.validation.evidence_files import PREDICTION_SUFFIX, read_checks, read_folder
from moesim.validation.judge import check_judgements, verdict
from moesim.validation.phone_check import is_of_a_log, judge_log
from moesim.validation.tables import print_cells, print_checks, print_verdict, verdict_of


def judge_again(
    given: Sequence[Path], plot: Path | None = None, json_out: Path | None = None, *, dark: bool
) -> bool:
    """Print what evidence says, and return whether all is within target.

    Args:
        given: Folders of evidence, of cells or of a fitted log, or folders that hold such folders.
        plot: Where to draw predicted against measured.
        json_out: Where to write it.
        dark: Whether to draw on dark paper.

    Raises:
        InputError: A folder has no evidence, or what a file says does not follow from its figures.
    """
    folders = find_folders(given)
    logs = [folder for folder in folders if is_of_a_log(folder)]
    logs_are_right = [judge_log(folder) for folder in logs]
    folders = [folder for folder in folders if folder not in logs]
    if not folders:
        _refuse_of_cells(logs, plot, json_out)
        return all(logs_are_right)
    found: list[Evidence] = []
    checks: list[Check] = []
    for folder in folders:
        cells = read_folder(folder)
        check_judgements(cells)
        found += cells
        checks += read_checks(folder)
    if len(folders) == 1:
        if checks:
            print_checks(checks)
        print_cells(found)
    else:
        print_together(found)
    report(found, plot, json_out, dark=dark)
    is_right = not verdict(found).failed and all(check.passed for check in checks)
    return is_right and all(logs_are_right)


def _refuse_of_cells(logs: Sequence[Path], plot: Path | None, json_out: Path | None) -> None:
    for option, path in (("--plot", plot), ("--json", json_out)):
        if path is not None:
            raise InputError(f"{option} {path}: is of cells, and {logs[0]} has none")


def report(
    found: Sequence[Evidence], plot: Path | None, json_out: Path | None, *, dark: bool
) -> None:
    """Print what cells say together, draw them, write it down."""
    print_claims(signs(found), choices(found), insides(found))
    again = sum(len(one.replaced or ()) for one in found)
    if again:
        typer.echo(
            f"{again} executions were executed once more: their mean copy took over {LIMIT:.0%} "
            "longer than the median of their cell's; the shorter copies count, both are kept"
        )
    print_verdict(verdict(found))
    if json_out is not None:
        write_text(json_out, json.dumps(summary(found), indent=1) + "\n")
    if plot is not None:
        from moesim.validation.plots import plot_cells  # noqa: PLC0415  matplotlib only to draw

        plot_cells(found, plot, dark=dark)


def find_folders(given: Sequence[Path]) -> list[Path]:
    """Return the folders of evidence: those given, or the ones in them that have some.

    Raises:
        InputError: A folder is given twice.
    """
    found: list[Path] = []
    for path in given:
        inner = [each for each in sorted(path.glob("*/")) if _has_evidence(each)]
        found += [path] if _has_evidence(path) or not inner else inner
    for path in found:
        if found.count(path) > 1:
            raise InputError(f"{path}: is given twice; its cells would count twice")
    return found


def _has_evidence(folder: Path) -> bool:
    return any(folder.glob(f"*{PREDICTION_SUFFIX}")) or is_of_a_log(folder)


def summary(found: Sequence[Evidence]) -> dict[str, Any]:
    """Return what is printed, as JSON has it."""
    judged = verdict(found)
    return {
        "cells": [_cell(one) for one in found],
        "held_out": judged.held_out,
        "repeatable": judged.repeatable,
        "mean_error": judged.mean_error,
        "missed": list(judged.failed),
        "rankings": [rank._asdict() for rank in judged.rankings],
        "signs": [asdict(sign) | {"confirmed": sign.confirmed} for sign in signs(found)],
        "choice": [asdict(picked) for picked in choices(found)],
        "inside": [asdict(inside) for inside in insides(found)],
    }


def _cell(one: Evidence) -> dict[str, Any]:
    cell, judged = one.prediction.cell, one.judged
    return {
        "id": cell.id,
        "gpu": one.provenance.machine.get("gpu"),
        "model": cell.model,
        "budget": cell.budget,
        "batching": cell.batching,
        "system": cell.system,
        "held_out": cell.held_out,
        "predicted_ms": one.prediction.outcome.times.model_dump(),
        "measured_ms": judged.measured.model_dump(),
        "error": judged.error,
        "tolerance": judged.tolerance,
        "spread": judged.spread,
        "replaced": [replaced.number for replaced in one.replaced or ()],
        "verdict": verdict_of(one),
    }
