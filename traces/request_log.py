"""Recorded arrivals: when requests came, how long their prompts and answers were.

Three formats, told by what is in them: the CSV of the Azure LLM inference traces (``TIMESTAMP,
ContextTokens,GeneratedTokens``), a plain CSV (``arrived_s,prompt_tokens,output_tokens``) and the
JSON lines of the Mooncake traces (``timestamp`` in ms, ``input_length``, ``output_length``), each
as it is or with ``.gz``. None of them says which experts were used.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.errors import TraceError

# R requests.

SECOND_NS = 10**9
MILLISECOND_NS = 10**6

CSV_COLUMNS: Mapping[tuple[str, ...], str] = {
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): "azure",
    ("arrived_s", "prompt_tokens", "output_tokens"): "plain",
}

Row = tuple[int, int, int]
"""Arrival in ns, prompt and output tokens."""


@dataclass(frozen=True, slots=True)
class RequestLog:
    """Recorded arrivals in order of time, the first at 0."""

    arrival_ns_R: NDArray[np.int64]
    prompt_tokens_R: NDArray[np.int64]
    output_tokens_R: NDArray[np.int64]


def load_requests(path: Path | str, *, requests: int | None = None) -> RequestLog:
    """Return the arrivals of a file, or the first of them.

    Raises:
        TraceError: The file cannot be read, is of no known format, or a line of it is wrong; one
            line that names file, line, value and way out.
    """
    path = Path(path)
    rows: list[Row] = []
    try:
        for number, row in _rows(path):
            arrived_ns, prompt, output = row
            if prompt < 1 or output < 1:
                raise TraceError(
                    f"{path}: line {number}: {prompt} prompt and {output} output tokens; both must "
                    "be at least 1, leave the line out"
                )
            if rows and arrived_ns < rows[-1][0]:
                raise TraceError(
                    f"{path}: line {number}: earlier than the line before; sort by time"
                )
            rows.append(row)
            if requests is not None and len(rows) == requests:
                break
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: damaged ({error}); copy it again") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise TraceError(
            f"{path}: not a text; expected CSV or JSON lines, as they are or .gz"
        ) from None
    if not rows:
        raise TraceError(f"{path}: no requests in it")
    columns = np.asarray(rows, np.int64).T
    return RequestLog(columns[0] - columns[0][0], columns[1], columns[2])


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield line numbers, from 1, and what the lines say."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        first = file.readline().strip().lstrip("\ufeff")
        if first.startswith("{"):
            yield 1, _of_json(path, 1, first)
            for number, line in enumerate(file, 2):
                if line.strip():
                    yield number, _of_json(path, number, line)
            return
        columns = tuple(first.split(","))
        kind = CSV_COLUMNS.get(columns)
        if kind is None:
            known = " or ".join(",".join(names) for names in CSV_COLUMNS)
            raise TraceError(f"{path}: line 1: expected the columns {known}, or JSON lines")
        reader = csv.reader(file)
        try:
            for values in reader:
                if values:
                    yield reader.line_num + 1, _of_csv(path, reader.line_num + 1, kind, values)
        except csv.Error as error:
            raise TraceError(
                f"{path}: line {reader.line_num + 1}: {error}; expected a time and two counts"
            ) from None


def _of_csv(path: Path, number: int, kind: str, values: list[str]) -> Row:
    try:
        arrived, prompt, output = values
        arrived_ns = _date_ns(arrived) if kind == "azure" else round(float(arrived) * SECOND_NS)
        return _row(arrived_ns, int(prompt), int(output))
    except (ValueError, OverflowError):
        raise TraceError(
            f"{path}: line {number}: {','.join(values)!r}; expected a time and two counts"
        ) from None


def _row(*figures: int) -> Row:
    """Return the figures of a row, if arrays hold them.

    Raises:
        OverflowError: One takes more than 64 bits.
    """
    arrived_ns, prompt, output = (int(np.array(figure, np.int64)) for figure in figures)
    return arrived_ns, prompt, output


def _date_ns(text: str) -> int:
    """Return a date and time as ns; digits below the µs, which ``datetime`` refuses, count."""
    whole, _, fraction = text.partition(".")
    since = datetime.fromisoformat(whole) - datetime(1970, 1, 1)  # noqa: DTZ001  no zone is recorded
    seconds = since.days * 86_400 + since.seconds
    return seconds * SECOND_NS + int(f"{fraction:0<9}"[:9] if fraction else 0)


def _of_json(path: Path, number: int, line: str) -> Row:
    try:
        value: Mapping[str, Any] = json.loads(line)
        times = value["timestamp"], value["input_length"], value["output_length"]
        arrived_ns = round(times[0] * MILLISECOND_NS)
        return _row(arrived_ns, index(times[1]), index(times[2]))
    except (ValueError, TypeError, KeyError, OverflowError):
        raise TraceError(
            f"{path}: line {number}: expected an object with timestamp (ms), input_length and "
            "output_length"
        ) from None
