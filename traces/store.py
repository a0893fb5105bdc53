"""The native file: arrays under their own names and one JSON document, as safetensors or npz.

Safetensors is the working format: it is memory-mapped, so opening a trace of any length costs
milliseconds. Compressed npz is for small files that live in a repository. Both hold the same
document (header and task labels), under ``moesim``. Equal traces give equal bytes, and a file
appears whole or not at all. `join` makes one file of many without holding their arrays.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from moesim.traces.errors import TraceError, blame
from moesim.traces.header import TraceHeader, first_problem
from moesim.traces.npz import NPZ_START, damaged, read_npz
from moesim.traces.schema import RoutingTrace, make_document
from moesim.traces.shapes import KNOWN, NEEDED
from moesim.traces.streams import Column, stream_npz, stream_safetensors, whole

Array = NDArray[Any]

DOCUMENT = "moesim"
SUFFIXES = (".safetensors", ".npz")
SAFETENSORS_DTYPES = {
    "BOOL": "?", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "u1", "U16": "<u2", "U32": "<u4", "F16": "<f2", "F32": "<f4",
}  # fmt: skip


def write(trace: RoutingTrace, path: str | os.PathLike[str]) -> None:
    """Check the trace and write it beside the target, then put it in place.

    Raises:
        TraceError: The suffix is neither ``.safetensors`` nor ``.npz``, there is no such folder, or
            the trace is not valid.
    """
    target = _target(path)
    trace.validate(str(target))
    columns = {name: whole(array) for name, array in trace.arrays().items()}
    _put(target, trace.document(), columns)


def join(pieces: Sequence[Path], path: str | os.PathLike[str]) -> None:
    """Write one trace of native files that follow each other; one of them is open at a time.

    Their requests keep their order and are numbered through. The headers must be equal.

    Raises:
        TraceError: There is no piece, they differ in header or arrays, or as for `write`.
    """
    target = _target(path)
    if not pieces:
        blame(str(target), "pieces", "there are none", "record at least one request")
    first = read(pieces[0])
    kinds = {name: (array.dtype, array.shape[1:]) for name, array in first.arrays().items()}
    labels: list[str] = []
    lengths: dict[str, int] = dict.fromkeys(kinds, 0)
    first_requests = []
    for piece in pieces:
        trace = read(piece)
        arrays = trace.arrays()
        if trace.header != first.header or kinds != {
            name: (array.dtype, array.shape[1:]) for name, array in arrays.items()
        }:
            blame(str(piece), "header", f"differs from {pieces[0]}", "join pieces of one recording")
        first_requests.append(len(labels))
        labels.extend(trace.task_R)
        for name, array in arrays.items():
            lengths[name] += len(array)

    def blocks(name: str) -> Iterable[Array]:
        for piece, first_request in zip(pieces, first_requests, strict=True):
            array = read(piece).arrays()[name]
            is_number = name == "request_T"
            yield array + array.dtype.type(first_request) if is_number else array

    columns = {
        name: Column(dtype, (lengths[name], *rest), lambda name=name: blocks(name))  # type: ignore[misc]
        for name, (dtype, rest) in kinds.items()
    }
    _put(target, make_document(first.header, labels), columns)


def _target(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise TraceError(f"{target}: suffix {target.suffix!r}; write to {' or '.join(SUFFIXES)}")
    if not target.parent.is_dir():
        raise TraceError(f"{target}: no folder {target.parent}; make it first")
    return target


def _put(target: Path, document: str, columns: Mapping[str, Column]) -> None:
    """Write beside the target, then put it in place."""
    handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        if target.suffix == ".npz":
            stream_npz(Path(scratch), {DOCUMENT: whole(np.array(document))} | dict(columns))
        else:
            stream_safetensors(Path(scratch), columns, {DOCUMENT: document})
        Path(scratch).chmod(0o644)
        Path(scratch).replace(target)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def sniff(path: Path) -> bool:
    """Whether the file is one that `write` made, whole or cut off."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(NPZ_START):
        return start[30:].startswith(f"{DOCUMENT}.npy".encode())
    return start[8:9] == b"{" and f'"{DOCUMENT}"'.encode() in start


def read(path: str | os.PathLike[str], *, mmap: bool = True) -> RoutingTrace:
    """Open a native file; `moesim.traces.load` also checks it.

    Args:
        path: A file that `write` made.
        mmap: Leave the arrays of a safetensors file on disk, to be paged in when used. An npz
            is compressed and always comes into memory.

    Raises:
        TraceError: The file is cut off, is not ours, or its document is not understood.
    """
    source = Path(path)
    with source.open("rb") as file:
        is_npz = file.read(4) == NPZ_START
    document, arrays = _read_npz(source) if is_npz else _read_safetensors(source, mmap=mmap)
    header, task_R = _parse(str(source), document)
    for key in sorted(NEEDED.keys() - arrays.keys()):
        blame(str(source), key, "the array is missing", "write the trace again")
    return RoutingTrace(
        header=header,
        task_R=task_R,
        gate_TLK=arrays.get("gate_TLK"),
        signals={key: arrays[key] for key in sorted(arrays.keys() - KNOWN.keys())},
        **{key: arrays[key] for key in NEEDED},  # type: ignore[arg-type]  # none of them is known
    )


def iter_requests(trace: RoutingTrace) -> Iterator[RoutingTrace]:
    """Yield each request as a trace of its own whose arrays are views; nothing is copied.

    The one exception is ``request_T``, which is 0 in every row of a trace of one request.
    """
    starts = trace.row_starts()
    for request in range(trace.requests):
        yield trace.one_request(request, slice(int(starts[request]), int(starts[request + 1])))


def _read_npz(path: Path) -> tuple[str, dict[str, Array]]:
    arrays = read_npz(path)
    if DOCUMENT not in arrays:
        blame(str(path), DOCUMENT, "the document is missing", "this npz is not a moesim trace")
    return str(arrays.pop(DOCUMENT)), arrays


def _read_safetensors(path: Path, *, mmap: bool) -> tuple[str, dict[str, Array]]:
    try:
        with safe_open(path, framework="numpy") as checked:
            metadata: Mapping[str, str] = checked.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error
    if DOCUMENT not in metadata:
        blame(str(path), DOCUMENT, "the document is missing", "this file is not a moesim trace")
    arrays = read_arrays(path)
    return metadata[DOCUMENT], arrays if mmap else {
        key: array.copy() for key, array in arrays.items()
    }


def read_arrays(path: Path) -> dict[str, Array]:
    """Map every array of a safetensors file whose header was checked.

    Raises:
        TraceError: An array is of a type that no trace has.
    """
    raw = np.memmap(path, mode="r", dtype=np.uint8)
    data_start = 8 + int(raw[:8].view("<u8")[0])
    entries = json.loads(raw[8:data_start].tobytes())
    arrays = {}
    for key, entry in entries.items():
        if key == "__metadata__":
            continue
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            blame(
                str(path), key, f"dtype {entry['dtype']}", "moesim traces hold integers and floats"
            )
        start, end = (data_start + offset for offset in entry["data_offsets"])
        array = np.asarray(raw[start:end]).view(SAFETENSORS_DTYPES[entry["dtype"]])
        arrays[key] = array.reshape(entry["shape"])
    return arrays


def _parse(name: str, document: str) -> tuple[TraceHeader, tuple[str, ...]]:
    try:
        content = json.loads(document)
        labels = content["task_R"]
        header = TraceHeader.model_validate(content["header"])
    except ValidationError as error:
        raise TraceError(f"{name}: header: {first_problem(error)}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        blame(name, DOCUMENT, f"not a trace document ({error})", "write the trace again")
    return header, tuple(str(label) for label in labels)
