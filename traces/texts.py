"""Reading text files so that what is wrong in them is told with its line."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moesim.traces.errors import TraceError, blame

LARGEST = 2**53


def head(path: Path, size: int = 4096) -> bytes:
    """Return the first bytes of a file; nothing of a folder."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(size)


def parse_json(name: str, text: str | bytes, place: str = "") -> Any:  # noqa: ANN401 - any JSON
    """Parse JSON.

    Raises:
        TraceError: Names the line and column of the fault.
    """
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise TraceError(
            f"{name}: not UTF-8 text (byte {error.start}); is it compressed?"
        ) from error
    except json.JSONDecodeError as error:
        where = place or f"line {error.lineno}, column {error.colno}"
        raise TraceError(f"{name}: {where}: {error.msg}; is the file cut off?") from error


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield line number and value of each line that is not empty."""
    for number, line in _lines(path):
        if line.strip():
            yield number, parse_json(str(path), line, f"line {number}")


def csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield line number and fields by column name; lines that start with # are passed over.

    Raises:
        TraceError: A line has another number of fields than the first, which names the columns.
    """
    columns: list[str] | None = None
    for number, line in _lines(path):
        if line.startswith("#") or not line.strip():
            continue
        values = next(csv.reader([line]))
        if columns is None:
            columns = [column.strip() for column in values]
            continue
        if len(values) != len(columns):
            problem = f"{len(values)} fields, the first line names {len(columns)}"
            blame(str(path), f"line {number}", problem, "is the file cut off?")
        yield number, dict(zip(columns, values, strict=True))


def integer(name: str, place: str, value: object) -> int:
    """Return a whole number given as number or text.

    Raises:
        TraceError: It is none, or one that no count or id can be; names the place and the value.
    """
    try:
        whole = int(value) if isinstance(value, float) else int(str(value).strip())
    except (ValueError, OverflowError) as error:
        raise TraceError(f"{name}: {place}: {value!r:.60} is not a whole number") from error
    if whole != value and isinstance(value, float):
        raise TraceError(f"{name}: {place}: {value!r:.60} is not a whole number")
    if abs(whole) > LARGEST:
        raise TraceError(f"{name}: {place}: {value!r:.60} is too large")
    return whole


def number(name: str, place: str, value: object) -> float:
    """Return a number given as number or text.

    Raises:
        TraceError: Names the place and the value.
    """
    try:
        return float(str(value).strip())
    except ValueError as error:
        raise TraceError(f"{name}: {place}: {value!r:.60} is not a number") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield from enumerate(file, start=1)
        except UnicodeDecodeError as error:
            raise TraceError(f"{path}: not UTF-8 text; is it compressed?") from error
