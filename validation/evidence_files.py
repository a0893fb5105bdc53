"""Evidence as files: two for a cell, written whole, read strictly.

``ID.prediction.json`` is written before a cell is executed, ``ID.json`` when its executions have
ended; the second names the first by its hash. Between the two ``ID.partial.json`` keeps each
execution as it ends.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from moesim.simulator.errors import InputError
from moesim.simulator.results.rows import write_text
from moesim.validation.beside import Check, Checks
from moesim.validation.evidence import Evidence, Strict

PREDICTION_SUFFIX, PARTIAL_SUFFIX = ".prediction.json", ".partial.json"
CHECKS = "checks.json"
CALIBRATION = "calibration.json"

ID_DIGITS = 16
"""Of a cell's name, by which its files are called."""

Document = TypeVar("Document", bound=Strict)


def to_text(document: Strict) -> str:
    """Return a document as JSON, a line for each key of the outermost object."""
    tree = document.model_dump(mode="json")
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in tree.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def hash_of(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, document: Strict) -> None:
    """Write a document whole or not at all."""
    write_text(path, to_text(document))


def read(path: Path, kind: type[Document]) -> Document:
    """Read a document.

    Raises:
        InputError: It cannot be read, or is not what it should be; one line.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        fault: Any = error.errors()[0]
        key = ".".join(map(str, fault["loc"])) or "the file"
        raise InputError(
            f"{path}: {key}: {fault['msg']}; it is not evidence of this version of moesim validate"
        ) from None


def read_folder(folder: Path) -> list[Evidence]:
    """Return the evidence of every cell in a folder, in order of their names.

    Raises:
        InputError: There is none, or a file is faulty or does not follow from its own prediction.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; moesim validate -o {folder} makes one")
    paths = [
        path
        for path in sorted(folder.glob("*.json"))
        if not path.name.endswith((PREDICTION_SUFFIX, PARTIAL_SUFFIX))
        and path.name not in (CHECKS, CALIBRATION)
    ]
    if not any(len(path.stem) == ID_DIGITS for path in paths):
        kind = "; it has evidence of another kind, see its README.md" if paths else ""
        raise InputError(f"{folder}: no evidence of any cell{kind}; moesim validate writes it")
    return [read_cell(path) for path in paths]


def read_checks(folder: Path) -> tuple[Check, ...]:
    """Return what was asserted before the cells of a folder were executed; () where nothing was."""
    path = folder / CHECKS
    return read(path, Checks).checks if path.exists() else ()


def read_cell(path: Path) -> Evidence:
    """Return the evidence of one cell, once its prediction file was found to be the one it names.

    Raises:
        InputError: A file is faulty, or the two do not belong together.
    """
    found = read(path, Evidence)
    if path.stem != found.prediction.cell.id:
        raise InputError(f"{path}: holds cell {found.prediction.cell.id}; it was renamed or edited")
    beside = path.with_name(path.stem + PREDICTION_SUFFIX)
    try:
        text = beside.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{beside}: {error.strerror}; a claim needs its prediction") from None
    if hash_of(text) != found.prediction_hash or text != to_text(found.prediction):
        raise InputError(f"{beside}: is not the prediction that {path.name} was executed against")
    return found
