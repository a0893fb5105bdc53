"""Chunked traces: a folder of native files that follow each other, and an index with their hashes.

For traces larger than memory. A chunk is a native file of whole requests and can be read alone;
the index says how many rows and requests each has, its SHA-256, and the content hash of the whole,
which is that of the same trace in one file: it is computed once, when the folder is written. The
index is checked against a hash of its own when the trace is opened, a chunk against its hash when
it is opened first. What there is once for each request is in ``requests.safetensors``.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moesim.traces import store
from moesim.traces.chained import Array, Chained, RequestNumbers
from moesim.traces.errors import TraceError, blame
from moesim.traces.header import TraceHeader, first_problem
from moesim.traces.schema import RoutingTrace, first_axis
from moesim.traces.shapes import KNOWN, NEEDED
from moesim.traces.streams import stream_safetensors, whole

# T tokens, R requests.

INDEX = "index.json"
PER_REQUEST = "requests.safetensors"
ROWS = 262_144
"""Rows of a chunk, unless one request has more."""

_FORMAT = "moesim chunks 1"
_OPEN = 2
_ROWS_R, _LABEL_R = "rows_R", "label_R"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Chunk(_Strict):
    """One file of the folder."""

    file: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*\.safetensors$")
    tokens: int = Field(ge=1)
    requests: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Index(_Strict):
    """What ``index.json`` holds.

    Attributes:
        labels: The different task labels; ``label_R`` counts in them.
        last_position: The largest position of any row.
        index_sha256: Hash of all the rest.
    """

    format: str
    content_hash: str
    header: TraceHeader
    labels: tuple[str, ...]
    last_position: int = Field(ge=0)
    requests_sha256: str
    chunks: tuple[Chunk, ...] = Field(min_length=1)
    index_sha256: str = ""

    def sealed(self) -> Self:
        """Return it with its own hash."""
        told = json.dumps(self.model_dump(mode="json", exclude={"index_sha256"}), sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()
        return self.model_copy(update={"index_sha256": digest})


def sniff(path: Path) -> bool:
    """Whether the folder is one that `write_chunks` made."""
    index = path / INDEX
    if not index.is_file():
        return False
    with index.open("rb") as file:
        return _FORMAT.encode() in file.read(256)


def cut(trace: RoutingTrace, rows: int = ROWS) -> Iterator[RoutingTrace]:
    """Yield a trace in pieces of whole requests, with at most so many rows unless one has more."""
    starts = trace.row_starts().tolist()
    first = 0
    while first < trace.requests:
        last = first + 1
        while last < trace.requests and starts[last + 1] - starts[first] <= rows:
            last += 1
        yield trace.between(first, last)
        first = last


def write_chunks(pieces: Iterable[RoutingTrace], folder: str | os.PathLike[str]) -> None:
    """Write pieces that follow each other as a chunked trace; one of them is held at a time.

    Args:
        pieces: Each a valid trace with requests numbered from 0; headers and arrays alike.
        folder: Where to; it must not exist. It appears whole or not at all.

    Raises:
        TraceError: The folder exists or its parent does not, there is no piece, one is not valid,
            or they differ in header or arrays.
    """
    target = Path(folder)
    if target.exists():
        raise TraceError(f"{target}: exists already; choose another folder or remove it")
    if not target.parent.is_dir():
        raise TraceError(f"{target}: no folder {target.parent}; make it first")
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        _write(pieces, draft, str(target))
        draft.chmod(0o755)
        draft.replace(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def read_chunks(folder: str | os.PathLike[str]) -> RoutingTrace:
    """Open a chunked trace; its chunks are opened, and compared with their hashes, when used.

    Raises:
        TraceError: The index, or the figures of the requests, are not what they should be.
    """
    return _Folder(Path(folder)).trace()


def check_whole(trace: RoutingTrace, folder: Path) -> None:
    """Check every row of a chunked trace, and that its index names the right content.

    Raises:
        TraceError: At the first finding.
    """
    trace.validate(str(folder))
    if trace.computed_hash() != trace.content_hash():
        blame(str(folder / INDEX), "content_hash", "not the content's", "write the trace again")


def _write(pieces: Iterable[RoutingTrace], draft: Path, name: str) -> None:
    chunks: list[Chunk] = []
    labels: dict[str, int] = {}
    per_request: dict[str, list[Array]] = {}
    first: RoutingTrace | None = None
    last_position = 0
    for number, piece in enumerate(pieces):
        if first is None:
            first = piece
        elif piece.header != first.header or _kinds(piece) != _kinds(first):
            blame(name, f"piece {number}", "header or arrays differ", "chunk one recording")
        file = f"chunk-{number:06d}.safetensors"
        store.write(piece, draft / file)
        for key, array in piece.arrays().items():
            if first_axis(key) == "R":
                per_request.setdefault(key, []).append(np.array(array))
        label_R = [labels.setdefault(task, len(labels)) for task in piece.task_R]
        per_request.setdefault(_LABEL_R, []).append(np.asarray(label_R, np.int32))
        rows_R = np.diff(piece.row_starts())
        per_request.setdefault(_ROWS_R, []).append(rows_R)
        last_position = max(last_position, int(piece.position_T.max()))
        chunks.append(
            Chunk(
                file=file,
                tokens=piece.tokens,
                requests=piece.requests,
                sha256=_hash_of(draft / file),
            )
        )
    if first is None:
        blame(name, "pieces", "there are none", "give at least one request")
    columns = {key: whole(np.concatenate(parts)) for key, parts in per_request.items()}
    stream_safetensors(draft / PER_REQUEST, columns, {})
    index = Index(
        format=_FORMAT,
        content_hash="",
        header=first.header,
        labels=tuple(labels),
        last_position=last_position,
        requests_sha256=_hash_of(draft / PER_REQUEST),
        chunks=tuple(chunks),
    )
    content_hash = _Folder(draft, index, is_checked=True).trace().content_hash()
    sealed = index.model_copy(update={"content_hash": content_hash}).sealed()
    text = sealed.model_dump(mode="json")
    lines = [f"  {json.dumps(chunk)}" for chunk in text.pop("chunks")]
    rest = "".join(f" {json.dumps(k)}: {json.dumps(v)},\n" for k, v in text.items())
    body = f'{{\n{rest} "chunks": [\n' + ",\n".join(lines) + "\n ]\n}\n"
    (draft / INDEX).write_text(body, encoding="utf-8")


def _kinds(trace: RoutingTrace) -> dict[str, tuple[Any, ...]]:
    return {name: (array.dtype, array.shape[1:]) for name, array in trace.arrays().items()}


class _Folder:
    """The chunks of a folder, few of them open."""

    def __init__(
        self, folder: Path, index: Index | None = None, *, is_checked: bool = False
    ) -> None:
        self._folder = folder
        self._index = read_index(folder) if index is None else index
        count = len(self._index.chunks)
        self._checked = [is_checked] * count
        self._open: dict[int, dict[str, Array]] = {}
        self._first_requests = np.concatenate(
            [[0], np.cumsum([chunk.requests for chunk in self._index.chunks])]
        )

    def trace(self) -> RoutingTrace:
        """Return the whole as a trace."""
        index = self._index
        per_request = self._per_request()
        rows_R, label_R = per_request.pop(_ROWS_R), per_request.pop(_LABEL_R)
        starts = np.concatenate([[0], np.cumsum(rows_R)]).astype(np.int64)
        lengths = [chunk.tokens for chunk in index.chunks]
        arrays: dict[str, Any] = dict(per_request)
        for name, array in self._arrays(0).items():
            if first_axis(name) != "T":
                continue
            maximum = index.last_position if name == "position_T" else None
            arrays[name] = Chained(
                array.dtype,
                array.shape[1:],
                lengths,
                partial(self._column, name),
                maximum=maximum,
            )
        arrays["request_T"] = RequestNumbers(starts, lengths, self._request_numbers)
        trace = RoutingTrace(
            header=index.header,
            task_R=tuple(index.labels[label] for label in label_R.tolist()),
            gate_TLK=arrays.get("gate_TLK"),
            signals={key: arrays[key] for key in sorted(arrays.keys() - KNOWN.keys())},
            **{key: arrays[key] for key in NEEDED},
        )
        return trace.knowing(index.content_hash) if index.content_hash else trace

    def _per_request(self) -> dict[str, Array]:
        path = self._folder / PER_REQUEST
        if not path.is_file() or _hash_of(path) != self._index.requests_sha256:
            raise TraceError(f"{path}: absent, or SHA-256 differs from {INDEX}'s; copy it again")
        return store.read_arrays(path)

    def _column(self, name: str, number: int) -> Array:
        return self._arrays(number)[name]

    def _request_numbers(self, number: int) -> Array:
        local_T = self._arrays(number)["request_T"]
        numbers: Array = local_T + np.int32(self._first_requests[number])
        return numbers

    def _arrays(self, number: int) -> dict[str, Array]:
        if number in self._open:
            return self._open[number]
        chunk = self._index.chunks[number]
        path = self._folder / chunk.file
        if not path.is_file():
            raise TraceError(f"{path}: no such chunk; copy the whole folder again")
        if not self._checked[number]:
            if _hash_of(path) != chunk.sha256:
                raise TraceError(
                    f"{path}: SHA-256 differs from {INDEX}'s; copy the chunk or write it again"
                )
            self._checked[number] = True
        while len(self._open) >= _OPEN:
            del self._open[next(iter(self._open))]
        trace = store.read(path)
        if (trace.tokens, trace.requests) != (chunk.tokens, chunk.requests):
            raise TraceError(
                f"{path}: {trace.tokens} rows of {trace.requests} requests, but {INDEX} says "
                f"{chunk.tokens} of {chunk.requests}; write the trace again"
            )
        self._open[number] = trace.arrays()
        return self._open[number]


def read_index(folder: Path) -> Index:
    """Return the index of a folder.

    Raises:
        TraceError: It cannot be read, or is not as it was written.
    """
    path = folder / INDEX
    try:
        index = Index.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; copy the whole folder again") from error
    except ValidationError as error:
        raise TraceError(f"{path}: {first_problem(error)}; write the trace again") from error
    if index != index.sealed():
        raise TraceError(f"{path}: was edited; write the trace again")
    return index


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
