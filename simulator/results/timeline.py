"""Writes every job of a run as a timeline that opens in ui.perfetto.dev and chrome://tracing.

The format is Chrome's JSON: a track for the host and for each server, an event for each job, and
counters of what was copied, by cause. Times are µs with three decimals, so that no ns is lost.
Equal runs give equal files, compressed ones included.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from moesim.hardware_profiles.writing import replacing
from moesim.simulator.errors import InputError
from moesim.simulator.messages import Copy, Move, Run
from moesim.simulator.terms import ALL, Cause, Tier

__all__ = ["events", "write_timeline"]

# L MoE layers.

Span = tuple[str, object, int, int]
"""Track, what (a text, a layer's number for its attention, or a command), begin and end in ns."""

Event = dict[str, Any]

PROCESS = 1

BOTTOM = ", bottom"
"""Names the second part of an expert; the first is named as a whole one."""

TRACKS = {
    "host": "host thread",
    "gpu": "GPU compute",
    "h2d": "copies host to GPU",
    "d2h": "copies GPU to host",
    "peer": "copies from another GPU",
    "peer_out": "copies to another GPU",
    "exchange": "activations to other GPUs",
    "nvme": "reads from NVMe",
    "cpu": "experts on the CPU",
    "asks": "asks",
}
"""Titles of the tracks, from top to bottom; of several GPUs each has its own, such as ``h2d 1``."""


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
        path: Where to.
        spans: What an engine noted.
        experts: Experts of a layer, which tell an expert's layer.
        expert_bytes_L: Bytes of one expert of each layer; without them counters count experts.
        about: What the viewer shows of the run: trace, model, policies.

    Raises:
        InputError: The folder is not there, or cannot be written.
    """
    try:
        with replacing(path) as draft, draft.open("wb") as file:
            found = events(spans, experts=experts, expert_bytes_L=expert_bytes_L)
            if path.suffix == ".gz":
                with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
                    _write(packed, found, about or {})
            else:
                _write(file, found, about or {})
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def events(
    spans: Sequence[Span], *, experts: int, expert_bytes_L: Sequence[int] | None = None
) -> Iterator[Event]:
    """Yield the names of the tracks, then every job, then the counters; each in order of time.

    ``ts`` and ``dur`` are in ns; the writer turns them into µs.
    """
    shown = {track for track, *_ in spans}
    order = {track: number for number, track in enumerate(TRACKS)}
    ranked = sorted(shown, key=lambda track: (*_rank(track, order), track))
    tracks = {track: number for number, track in enumerate(ranked, 1)}
    yield {"ph": "M", "name": "process_name", "pid": PROCESS, "args": {"name": "moesim"}}
    for track, number in tracks.items():
        place = {"ph": "M", "pid": PROCESS, "tid": number}
        yield place | {"name": "thread_name", "args": {"name": _title(track)}}
        yield place | {"name": "thread_sort_index", "args": {"sort_index": number}}
    for track, label, begin_ns, end_ns in spans:
        name, details = _describe(label, experts)
        yield {
            "ph": "X",
            "name": name,
            "pid": PROCESS,
            "tid": tracks[track],
            "ts": begin_ns,
            "dur": end_ns - begin_ns,
            "args": details,
        }
    yield from _counters(spans, experts, expert_bytes_L)


def _rank(track: str, order: Mapping[str, int]) -> tuple[int, int]:
    """Return where a track stands: by GPU, then as `TRACKS` has it; unknown ones last."""
    kind, _, gpu = track.partition(" ")
    return (int(gpu) + 1 if gpu.isdecimal() else 0), order.get(kind, len(order))


def _title(track: str) -> str:
    kind, _, gpu = track.partition(" ")
    if kind in TRACKS and gpu.isdecimal():
        return f"GPU {gpu}: {TRACKS[kind].removeprefix('GPU ')}"
    return TRACKS.get(track, track)


def _describe(label: object, experts: int) -> tuple[str, dict[str, Any]]:
    """Return what a job is called and what a click on it shows."""
    if isinstance(label, Copy | Move):
        layer, expert = divmod(label.expert, experts)
        details = {"n": label.n, "after runs": label.after, "to slot": label.dst.slot}
        name = f"L{layer} E{expert}{BOTTOM * label.part}"
        if isinstance(label, Copy):
            return f"copy {name} ({label.cause.name.lower()})", details
        return f"move {name}", details
    if isinstance(label, Run):
        layer = label.experts[0] // experts
        numbers = [expert % experts for expert in label.experts]
        plural = "expert" if len(numbers) == 1 else "experts"
        return f"run L{layer} {len(numbers)} {plural}{BOTTOM * label.part}", {
            "n": label.n,
            "experts": numbers,
            "tokens": label.tokens,
            "after copies": label.after,
        }
    if isinstance(label, int):
        return f"attention L{label}", {}
    return str(label), {}


def _counters(
    spans: Iterable[Span], experts: int, expert_bytes_L: Sequence[int] | None
) -> Iterator[Event]:
    """Yield what was copied to VRAM so far, by cause, each time that a copy ends.

    Of experts that are split the parts are counted, whose sizes no copy tells.
    """
    name = "experts copied" if expert_bytes_L is None else "bytes copied"
    copies = [
        (end_ns, label)
        for _, label, _, end_ns in spans
        if isinstance(label, Copy) and label.dst.tier is Tier.VRAM and label.cause != Cause.DEMOTION
    ]
    copies.sort(key=lambda copy: (copy[0], copy[1].n))
    if any(copy.part != ALL for _, copy in copies):
        name, expert_bytes_L = "parts copied", None
    causes = sorted({copy.cause for _, copy in copies})
    copied = {cause.name.lower(): 0 for cause in causes}
    for end_ns, copy in copies:
        size = 1 if expert_bytes_L is None else expert_bytes_L[copy.expert // experts]
        copied[Cause(copy.cause).name.lower()] += size
        yield {"ph": "C", "name": name, "pid": PROCESS, "ts": end_ns, "args": dict(copied)}


def _write(
    file: BinaryIO | gzip.GzipFile, found: Iterable[Event], about: Mapping[str, str]
) -> None:
    """Write events one to a line, as they come."""
    head = json.dumps(dict(about), ensure_ascii=False, sort_keys=True)
    file.write(f'{{"displayTimeUnit": "ns", "otherData": {head}, "traceEvents": ['.encode())
    separator = "\n"
    for event in found:
        file.write((separator + _text(event)).encode())
        separator = ",\n"
    file.write(b"\n]}\n")


def _text(event: Event) -> str:
    """Return an event as JSON with its times in µs, exact to the ns."""
    times = "".join(f', "{key}": {_us(event[key])}' for key in ("ts", "dur") if key in event)
    rest = {key: value for key, value in event.items() if key not in ("ts", "dur")}
    return json.dumps(rest, ensure_ascii=False)[:-1] + times + "}"


def _us(time_ns: int) -> str:
    return f"{time_ns // 1000}.{time_ns % 1000:03d}"
