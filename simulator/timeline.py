"""Writes every job of a run as a timeline that opens in ui.perfetto.dev and chrome://tracing.

The format is Chrome's JSON: one track for the host and one for each server, one event for each job,
and counters of the bytes on their way and copied, by cause. Times are µs with three decimals, so
that no ns is lost. Equal runs give equal files, compressed ones included.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from moesim.simulator.errors import InputError
from moesim.simulator.messages import Copy, Move, Run
from moesim.simulator.terms import Cause

__all__ = ["events", "write_timeline"]

Span = tuple[str, object, int, int]
"""Track, what (a text, a layer's number for its attention, or a command), begin and end in ns."""

Event = dict[str, Any]

PROCESS = 1

TRACKS = ("host", "gpu", "h2d", "d2h", "peer", "nvme", "cpu", "asks")
"""From top to bottom; other tracks follow in order of appearance."""

TITLES = {
    "host": "host thread",
    "gpu": "GPU compute",
    "h2d": "link: host to GPU",
    "d2h": "link: GPU to host",
    "peer": "link: GPU to GPU",
    "nvme": "NVMe",
    "cpu": "CPU experts",
    "asks": "asks",
}


def write_timeline(
    path: Path,
    spans: Sequence[Span],
    *,
    experts: int,
    expert_bytes_L: Sequence[int] | None = None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write a timeline, whole or not at all; gzipped if the name ends in ``.gz``.

    Args:
        path: Where to; ``.json`` or ``.json.gz`` open without ado.
        spans: What an engine noted.
        experts: Experts of a layer, which tell the layer of an expert.
        expert_bytes_L: Bytes of one expert of each layer; counters of bytes need them.
        about: What the viewer shows of the run: model, trace, policies.

    Raises:
        InputError: The folder is not there, or cannot be written.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(draft.open("wb"))
            binary = raw
            if path.suffix == ".gz":
                packed = gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0)
                binary = stack.enter_context(packed)  # type: ignore[assignment]
            _write(binary, events(spans, experts, expert_bytes_L), about or {})
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InputError(f"{path}: {error.strerror}") from None
