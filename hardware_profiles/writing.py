"""Writes files whole or not at all, and profiles only if they are valid."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moesim.hardware_profiles.drafts import to_yaml
from moesim.hardware_profiles.errors import ProfileError
from moesim.hardware_profiles.files import validated
from moesim.hardware_profiles.runtime_schema import RuntimeProfile
from moesim.hardware_profiles.schema import HardwareProfile

__all__ = ["replacing", "write_machine", "write_runtime"]

_HEADER = "# Written by `moesim calibrate`.\n\n"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a draft beside a file; it takes the file's place if all goes well.

    Otherwise nothing is left of it, and the file is as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_machine(tree: Mapping[str, Any], path: Path) -> None:
    """Write a hardware profile under the name of its file.

    Raises:
        ProfileError: A figure cannot be, or the file cannot be written; the line says which.
    """
    _write(tree, HardwareProfile, path)


def write_runtime(tree: Mapping[str, Any], path: Path) -> None:
    """Write a runtime profile likewise."""
    _write(tree, RuntimeProfile, path)


def _write(
    tree: Mapping[str, Any], schema: type[HardwareProfile] | type[RuntimeProfile], path: Path
) -> None:
    # Through JSON, so that no two figures are one object: YAML would write the second as an alias.
    copied: dict[str, Any] = json.loads(json.dumps(tree))
    named = {"schema": copied["schema"], "name": path.stem} | copied | {"name": path.stem}
    validated(named, schema, path.name)
    try:
        with replacing(path) as draft:
            draft.write_text(_HEADER + to_yaml(named), encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{path}: cannot be written: {error.strerror}") from error
