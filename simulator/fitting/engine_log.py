"""What somebody's own engine says of each token that it served: a CSV, a row for each decode step.

A column of times is needed, in a unit that its name ends in (``wall_ms``, ``latency_us``); one of
bytes read for the token is used if there and not 0 throughout. Lines that begin with ``#`` are
comments. No quantity is taken from anything but the file.
"""

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.errors import InputError
from moesim.simulator.key_values import key_values

# N decode steps.

TIMES = ("wall_ms", "time_ms", "tpot_ms", "itl_ms", "latency_ms")
"""Columns taken for the time of a token where none is named."""

BYTES = "read_bytes"
"""The column taken for the bytes read where none is named."""

_UNITS_NS: Mapping[str, int] = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_KEYS = ("time", "bytes")

Row = tuple[int, list[str]]
"""The number of a row's last line, and its cells."""


@dataclass(frozen=True, slots=True)
class EngineLog:
    """One engine's times.

    Attributes:
        name: Of the file.
        sha256: Of its bytes.
        time_ns_N: Time of each decode step.
        read_bytes_N: Weights that the engine says it read in each; None where it says nothing.
        columns: Which columns were taken.
    """

    name: str
    sha256: str
    time_ns_N: NDArray[np.float64]
    read_bytes_N: NDArray[np.float64] | None
    columns: Mapping[str, str]


class _Lines:
    """The lines of a log that are neither empty nor comments; ``number`` is the last one's."""

    def __init__(self, text: str) -> None:
        self.number = 0
        self._lines = StringIO(text, newline="")

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.number += 1
            if line.strip() and not line.startswith("#"):
                yield line


def parse_columns(text: str) -> dict[str, str]:
    """Parse ``time=COLUMN,bytes=COLUMN``.

    Raises:
        InputError: A key is none of those, or names no column.

    >>> parse_columns("time=latency_us")
    {'time': 'latency_us'}
    """
    form = " or ".join(f"{key}=COLUMN" for key in _KEYS)
    found = key_values(text, f"--log-columns {text}", form=form)
    if not found.keys() <= {*_KEYS}:
        raise InputError(f"--log-columns {text}: expected {form}")
    return found


def read_log(path: Path, columns: Mapping[str, str] | None = None) -> EngineLog:
    """Read a log.

    Args:
        path: The CSV.
        columns: What `parse_columns` gives; the usual names otherwise.

    Raises:
        InputError: The file, a column, or a value of a row is not what it should be; one line.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; give a CSV with a row for each token"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; give a CSV with a row for each token") from None
    (_, heads), *rows = _rows(path, text)
    taken = _choose(path, heads, columns or {})
    time_ns = _column(path, heads, rows, taken["time"], least=0.0, may_equal=False)
    unit = _UNITS_NS[taken["time"].rpartition("_")[2]]
    read = None
    if "bytes" in taken:
        read = _column(path, heads, rows, taken["bytes"], least=0.0, may_equal=True)
        if not read.any():
            if "bytes" in (columns or {}):
                raise InputError(
                    f"{path}: {taken['bytes']} is 0 in every row; leave it out of --log-columns"
                )
            del taken["bytes"]
            read = None
    return EngineLog(path.name, hashlib.sha256(raw).hexdigest(), time_ns * unit, read, taken)


def _rows(path: Path, text: str) -> list[Row]:
    """Return the header and the rows below it."""
    lines = _Lines(text)
    try:
        rows = [(lines.number, row) for row in csv.reader(lines)]
    except csv.Error as error:
        raise InputError(
            f"{path}: line {lines.number}: {error}; give a row for each token"
        ) from None
    if len(rows) <= 1:
        raise InputError(f"{path}: no rows below a header; give a CSV with a row for each token")
    return rows


def _choose(path: Path, heads: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    time = columns.get("time") or next((name for name in TIMES if name in heads), None)
    if time is None:
        raise InputError(
            f"{path}: no column of times ({', '.join(TIMES)}); name one: --log-columns time=COLUMN "
            f"(there are {', '.join(heads)})"
        )
    taken = {"time": time}
    if "bytes" in columns or BYTES in heads:
        taken["bytes"] = columns.get("bytes", BYTES)
    for column in taken.values():
        if column not in heads:
            raise InputError(f"{path}: no column {column}; there are {', '.join(heads)}")
    if time.rpartition("_")[2] not in _UNITS_NS:
        raise InputError(
            f"{path}: column {time}: the name does not say its unit; end it in "
            f"{', '.join('_' + unit for unit in _UNITS_NS)}"
        )
    return taken


def _column(
    path: Path,
    heads: Sequence[str],
    rows: Sequence[Row],
    column: str,
    *,
    least: float,
    may_equal: bool,
) -> NDArray[np.float64]:
    at = heads.index(column)
    values: list[Any] = []
    for number, row in rows:
        try:
            value = float(row[at])
        except (ValueError, IndexError):
            value = float("nan")
        if not (np.isfinite(value) and (value > least or (may_equal and value == least))):
            shown = row[at] if at < len(row) else "nothing"
            raise InputError(
                f"{path}: line {number}: {column} is {shown!r}; expected a number "
                f"{'of at least' if may_equal else 'above'} {least:g}"
            )
        values.append(value)
    return np.asarray(values, np.float64)
