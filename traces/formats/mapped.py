"""Any CSV or JSONL whose columns the user names: token=COL,layer=COL,experts=COL and more.

One row per (token, layer) with all experts in one column (``experts=``: "1 2 3", "[1, 2, 3]",
"1;2;3" or a JSON list), or one row per chosen expert (``expert=``). Optional columns: ``gates=`` or
``gate=`` likewise, ``request=``, ``task=`` (of the request), ``phase=`` (prompt, prefill or 0;
decode, generate or 1) and ``step=``. Two keys are values, not columns: ``model=NAME`` and
``num_experts=N``. Rows may come in any order; experts of a token and layer stay in file order.
``token`` is the position in its request. Without ``phase`` all rows are decode rows, with a note.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moesim.traces.assemble import assemble, make_header
from moesim.traces.cells import Cells, dense
from moesim.traces.errors import TraceError, blame
from moesim.traces.schema import RoutingTrace
from moesim.traces.texts import csv_rows, head, integer, json_lines, number

__all__ = ["parse_mapping", "read", "sniff"]

COLUMN_KEYS = (
    "token", "layer", "experts", "expert", "gates", "gate", "request", "task", "phase", "step"
)  # fmt: skip
VALUE_KEYS = ("model", "num_experts")
PROMPT, DECODE = ("0", "prompt", "prefill"), ("1", "decode", "generate", "generation")
SEPARATORS = re.compile(r"[\s,;|]+")


def sniff(path: Path) -> bool:
    """Whether the content is recognised: never, since the columns must be named."""
    del path
    return False


def parse_mapping(text: str) -> dict[str, str]:
    """Parse ``token=COL,layer=COL,experts=COL``.

    Raises:
        TraceError: A key is unknown or given twice, or one that is needed is missing.

    >>> parse_mapping("token=t,layer=l,experts=ids")
    {'token': 't', 'layer': 'l', 'experts': 'ids'}
    """
    mapping: dict[str, str] = {}
    for part in text.split(","):
        key, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column:
            raise TraceError(f"--map: {part!r}: no column named; write {key or 'key'}=COLUMN")
        if key in mapping:
            raise TraceError(f"--map: {key}: given twice; name one column")
        mapping[key] = column
    _check_mapping(mapping)
    return mapping


def read(path: Path, mapping: Mapping[str, str] | None = None) -> RoutingTrace:
    """Read the file by a mapping from our keys to its columns.

    Raises:
        TraceError: The mapping or a line is wrong; names key or line, column and value.
    """
    name = str(path)
    if mapping is None:
        raise TraceError(f"{name}: columns not named; use --map token=COL,layer=COL,experts=COL")
    _check_mapping(mapping)
    cells = _collect(name, mapping, _rows(path))
    requests, layer_ids = dense(name, cells)
    largest = int(cells.expert_N.max())
    given = mapping.get("num_experts")
    notes = [] if given else ["number of experts taken from the largest id"]
    if "phase" not in mapping:
        notes.append("phase not given, all rows are read as decode rows")
    header = make_header(
        name,
        model=mapping.get("model", "unknown"),
        layer_ids=layer_ids,
        experts=largest + 1 if given is None else integer(name, "--map num_experts", given),
        top_k=requests[0].expert_TLK.shape[2],
        evidence="recorded",
        notes="; ".join(notes) or None,
    )
    return assemble(name, header, requests)


def _check_mapping(mapping: Mapping[str, str]) -> None:
    for key in mapping:
        if key not in COLUMN_KEYS + VALUE_KEYS:
            known = ", ".join(COLUMN_KEYS + VALUE_KEYS)
            raise TraceError(f"--map: {key}: unknown key; there are {known}")
    for key in ("token", "layer"):
        if key not in mapping:
            raise TraceError(f"--map: {key}: missing; write {key}=COLUMN")
    if ("experts" in mapping) == ("expert" in mapping):
        raise TraceError("--map: experts: name a column of lists (experts=) or of ids (expert=)")
    for gates, ids in (("gates", "experts"), ("gate", "expert")):
        if gates in mapping and ids not in mapping:
            raise TraceError(f"--map: {gates}: goes with {ids}=; rows of one kind hold both")


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if head(path).lstrip()[:1] == b"{":
        return json_lines(path)
    return csv_rows(path)


def _collect(name: str, mapping: Mapping[str, str], rows: Iterator[tuple[int, Any]]) -> Cells:
    many = "experts" in mapping
    ids_key, gates_key = ("experts", "gates") if many else ("expert", "gate")
    integers: list[tuple[int, int, int, int, int, bool, int]] = []
    gates: list[float] = []
    numbers: dict[str, int] = {}
    tasks: list[str] = []
    for line, row in rows:
        place = f"line {line}"
        if not isinstance(row, Mapping):
            blame(name, place, f"{row!r:.60}", "each line is a JSON object")
        for key, column in mapping.items():
            if key not in VALUE_KEYS and column not in row:
                problem = f"no column {column!r} for {key}"
                blame(name, place, problem, f"there are {', '.join(row)}")
        request = numbers.setdefault(str(row.get(mapping.get("request", ""), "")), len(numbers))
        if request == len(tasks):
            tasks.append(str(row.get(mapping.get("task", ""), "")))

        def whole(key: str, row: Mapping[str, Any] = row, place: str = place) -> int:
            return integer(name, f"{place}, {mapping[key]}", row[mapping[key]])

        token, layer = whole("token"), whole("layer")
        step = whole("step") if "step" in mapping else 0
        is_prefill = "phase" in mapping and _is_prefill(name, place, row[mapping["phase"]])
        values = _items(row[mapping[ids_key]]) if many else [row[mapping[ids_key]]]
        ids = [integer(name, f"{place}, {mapping[ids_key]}", value) for value in values]
        integers.extend((line, request, token, layer, ident, is_prefill, step) for ident in ids)
        if gates_key in mapping:
            value = row[mapping[gates_key]]
            parts = _items(value) if many else [value]
            if len(parts) != len(ids):
                blame(name, place, f"{len(parts)} gates for {len(ids)} experts", "one gate each")
            gates.extend(number(name, f"{place}, {mapping[gates_key]}", part) for part in parts)
    if not integers:
        blame(name, "table", "it has no rows", "record at least one token")
    line_N, request_N, token_N, layer_N, expert_N, is_prefill_N, step_N = np.array(integers).T
    return Cells(
        line_N=line_N,
        request_N=request_N,
        token_N=token_N,
        layer_N=layer_N,
        expert_N=expert_N,
        is_prefill_N=is_prefill_N.astype(np.bool_),
        gate_N=np.array(gates) if gates_key in mapping else None,
        step_N=step_N if "step" in mapping else None,
        task_R=tasks,
    )


def _items(value: object) -> list[Any]:
    """Return the members of a list, given as list or as text."""
    if isinstance(value, list):
        return value
    return [part for part in SEPARATORS.split(str(value).strip().strip("[]()")) if part]


def _is_prefill(name: str, place: str, value: object) -> bool:
    word = str(value).strip().lower()
    if word not in PROMPT + DECODE:
        blame(name, f"{place}, phase", f"{value!r:.60}", f"say {PROMPT[1]} or {DECODE[1]}")
    return word in PROMPT
