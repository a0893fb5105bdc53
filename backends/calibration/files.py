"""Writes what a calibration found: validated first, whole or not at all."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesim.backends.calibration.fitting import Check
from moesim.hardware_profiles.drafts import to_yaml
from moesim.hardware_profiles.files import validated
from moesim.hardware_profiles.runtime_schema import RuntimeProfile
from moesim.hardware_profiles.schema import HardwareProfile
from moesim.simulator.tables import print_table

_HEADER = "# Written by `moesim calibrate`: measured on the machine that the fingerprint names.\n\n"


def write_machine(tree: Mapping[str, Any], path: Path) -> None:
    """Write a hardware profile.

    Raises:
        moesim.hardware_profiles.errors.ProfileError: A figure cannot be; the line says which.
    """
    named = {**tree, "name": path.stem}
    validated(named, HardwareProfile, path.name)
    _write(_HEADER + to_yaml(named), path)


def write_runtime(tree: Mapping[str, Any], path: Path) -> None:
    """Write a runtime profile.

    Raises:
        moesim.hardware_profiles.errors.ProfileError: A figure cannot be; the line says which.
    """
    named = {**tree, "name": path.stem}
    validated(named, RuntimeProfile, path.name)
    _write("# Written by `moesim calibrate`.\n\n" + to_yaml(named), path)


def write_json(record: Mapping[str, Any], path: Path) -> None:
    """Write everything measured."""
    _write(json.dumps(record, indent=1, sort_keys=True) + "\n", path)


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


def _write(text: str, path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
