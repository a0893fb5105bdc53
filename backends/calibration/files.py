"""Writes and prints what a calibration found."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesim.backends.calibration.fitting import Check
from moesim.hardware_profiles.writing import write_machine, write_runtime
from moesim.simulator.results.rows import write_text
from moesim.simulator.tables import print_table

__all__ = ["print_checks", "write_json", "write_machine", "write_runtime"]


def write_json(record: Mapping[str, Any], path: Path) -> None:
    """Write everything measured."""
    write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def print_checks(checks: Sequence[Check]) -> None:
    """Print how well the fits meet the points that they have not seen."""
    rows = [
        (
            check.name,
            f"{check.predicted / 1000:.1f}",
            f"{check.measured / 1000:.1f}",
            f"{check.error:+.1%}",
        )
        for check in checks
    ]
    print_table("held out of the fits", ("point", "predicted µs", "measured µs", "error"), rows)
