"""One run is one row: its fields, where each comes from, and the files it goes to.

``FIELDS`` is the whole schema, in the order of the CSV. A figure that the trace cannot give is None
(``null`` in JSON, empty in CSV) and ``notes`` says why; it is never 0.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.hardware_profiles.writing import replacing
from moesim.simulator.errors import InputError
from moesim.simulator.gpus import results as gpus_results
from moesim.simulator.ledger import Counts, RequestTimes, Timings
from moesim.simulator.limits.bounds import Bounds
from moesim.simulator.results import request_times
from moesim.simulator.results.summaries import summary
from moesim.simulator.tiers import results as tiers_results

if TYPE_CHECKING:
    from moesim.simulator.results.streamed_times import StreamedTimes

SCHEMA_VERSION = 3

FIELDS: Mapping[str, str] = {
    "schema_version": "version of this schema",
    "run_id": "hash of everything that determines the run",
    "trace": "name of the routing trace",
    "trace_hash": "SHA-256 of its content",
    "trace_evidence": "recorded, twin or synthetic",
    "model": "whose costs are charged, weights' format included",
    "hardware": "hardware profile",
    "runtime": "runtime profile: what the serving software adds",
    "system": "named bundle of policies, or 'custom'",
    "cache": "cache policy with its options",
    "prefetch": "prefetch policy with its options",
    "schedule": "schedule policy with its options",
    "arrivals": "how requests arrived; empty: one recorded request after another",
    "stitched": "requests longer than a recorded sequence, continued with others of their task",
    "engine": "which simulator ran",
    "seed": "seed of the policies' random streams",
    "slots": "experts that fit into the budget (the largest, where sizes differ)",
    "expert_bytes": "bytes of one expert (the largest, where sizes differ)",
    "expert_budget_bytes": "room for experts in VRAM, staging included",
    "staging_bytes": "the part of it set apart for experts that do not stay",
    "requests": "requests served",
    "steps": "forward passes",
    "tokens": "tokens processed, prompt and output",
    "output_tokens": "tokens generated",
    "demands": "distinct experts demanded, summed over layer events",
    "hits": "demands whose expert was ready in VRAM",
    "late_hits": "demands whose expert was on its way",
    "partial_hits": "demands with some parts of the expert in VRAM",
    "misses": "demands whose expert was absent",
    "hit_rate": "hits / demands",
    "decode_hit_rate": "the same over steps without prompt tokens",
    "bytes_demand": "bytes copied because demanded",
    "bytes_prefetch_useful": "bytes copied ahead and ready when demanded",
    "bytes_prefetch_late": "bytes copied ahead and still on their way when demanded",
    "bytes_prefetch_wasted": "bytes copied ahead and never demanded",
    "bytes_rebalance": "bytes moved by rebalancing",
    "bytes_total": "sum of the five above",
    "bytes_initial": "bytes placed before time zero, not timed",
    "bytes_peer": "bytes from another GPU",
    "bytes_nvme": "bytes from NVMe",
    "evictions": "experts that left the cache for another",
    "copies": "copies handed over",
    "waves": "extra waves of events larger than the room",
    "cpu_experts": "experts computed on the CPU",
    "decision_ns": "time the policies' decisions were charged",
    "rerouted": "choices of the router that a lossy system gave to another expert",
    "skipped": "choices that it gave to none",
    "loop": "of a lossy system: open where later routes do not feel it, closed where they were "
    "recorded under it; empty: lossless",
    "derived": "signals derived instead of recorded",
    "mean_tpot_ms": "time per output token after the first, mean over the pooled gaps (vLLM's ITL)",
    "p50_tpot_ms": "its median",
    "p90_tpot_ms": "its 90th percentile",
    "p99_tpot_ms": "its 99th percentile",
    "mean_ttft_ms": "time from arrival to the first token, mean over requests",
    "p50_ttft_ms": "its median",
    "p90_ttft_ms": "its 90th percentile",
    "p99_ttft_ms": "its 99th percentile",
    **request_times.FIELDS,
    **tiers_results.FIELDS,
    **gpus_results.FIELDS,
    "output_tokens_per_s": "output tokens / time of the last one",
    "link_busy_ns": "time the host-to-device link was in use",
    "gpu_busy_ns": "time the GPU computed",
    "host_busy_ns": "time the host thread decided, launched or read",
    "cpu_busy_ns": "time the CPU computed experts",
    "span_ns": "from the first fact to the last end",
    "peak_vram_bytes": "dense weights, KV cache, workspace and room for experts at the peak",
    "vram_dense_bytes": "its dense weights",
    "vram_kv_bytes": "its KV cache at the longest context",
    "vram_workspace_bytes": "its workspace",
    "peak_expert_bytes": "most bytes of experts in VRAM at one time",
    "bound_tpot_ms": "TPOT that no policy with the same means can beat",
    "bound_bytes": "bytes that such a policy must move",
    "bound_actions": "the means that the bounds allow",
    "over_bound": "mean TPOT / its bound",
    "evidence": "weakest evidence of the figures that decide the time",
    "band": "relative half-width of the prediction's band",
    "notes": "what a reader must know beside the figures",
}

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TokenTimes:
    """Latencies read off the token ends; empty where the trace cannot give them."""

    gaps_ns: list[int]
    first_ns: list[int]
    last_end_ns: int
    tokens: int


def token_times(requests: Sequence[RequestTimes]) -> TokenTimes:
    """Return gaps between tokens and times to first tokens.

    A request whose prompt was not recorded has no first token: its gaps begin with its service.
    """
    gaps: list[int] = []
    first: list[int] = []
    for request in requests:
        ends = request.token_ends_ns
        if not ends:
            continue
        if request.has_first_token:
            first.append(ends[0] - request.arrived_ns)
        else:
            gaps.append(ends[0] - request.began_ns)
        gaps += [int(gap) for gap in np.diff(ends)]
    last = max(
        (request.token_ends_ns[-1] for request in requests if request.token_ends_ns), default=0
    )
    return TokenTimes(gaps, first, last, sum(len(request.token_ends_ns) for request in requests))


def latency_fields(times: "TokenTimes | StreamedTimes") -> tuple[Row, list[str]]:
    """Return the latency fields and, for each that is None, why."""
    row: Row = {**summary("tpot", times.gaps_ns), **summary("ttft", times.first_ns)}
    notes = []
    if not times.gaps_ns:
        notes.append("no TPOT: the trace has no decode steps")
    if not times.first_ns:
        notes.append("no TTFT: the trace has no prompt steps")
    row["output_tokens_per_s"] = (
        round(times.tokens * 1e9 / times.last_end_ns, 6) if times.last_end_ns else None
    )
    return row, notes


def bound_fields(limit: Bounds | None, actions: str, mean_tpot_ms: float | None) -> Row:
    """Return the fields of the bounds; None where there are none.

    Args:
        limit: What no policy with the same means can beat.
        actions: Those means.
        mean_tpot_ms: Of the run.
    """
    bound_ms = None
    if limit is not None and limit.tpot_ns is not None:
        bound_ms = round(limit.tpot_ns / 1e6, 6)
    return {
        "bound_tpot_ms": bound_ms,
        "bound_bytes": None if limit is None else limit.bytes_min,
        "bound_actions": actions,
        "over_bound": round(mean_tpot_ms / bound_ms, 6) if mean_tpot_ms and bound_ms else None,
    }


def count_fields(counts: Counts, timings: Timings) -> Row:
    """Return the counts, bytes and busy times of a run."""
    row: Row = {key: value for key, value in counts.as_dict().items() if key in FIELDS}
    row["bytes_total"] = counts.bytes_total
    row["hit_rate"] = _ratio(counts.hits, counts.demands)
    row["decode_hit_rate"] = _ratio(counts.decode_hits, counts.decode_demands)
    for name in ("link", "gpu", "host", "cpu"):
        row[f"{name}_busy_ns"] = getattr(timings, f"{name}_busy_ns")
    row["span_ns"] = timings.span_ns
    row["decision_ns"] = timings.decision_ns
    return row


def ordered(row: Row) -> Row:
    """Return the row in the order of the schema.

    Raises:
        KeyError: A field is missing or not in the schema: our own bug.
    """
    if row.keys() != FIELDS.keys():
        raise KeyError(sorted(row.keys() ^ FIELDS.keys()))
    return {name: row[name] for name in FIELDS}


def to_json(row: Row) -> str:
    """Return a row as JSON text, one line for each field."""
    return json.dumps(row, indent=2, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: The folder is not there, or cannot be written.
    """
    try:
        with replacing(path) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def check_csv(path: Path) -> None:
    """Check that a row can be appended to a file, so that nobody learns it after the run.

    Raises:
        InputError: The file is not one of ours, or is of another version.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        if lines.readline().rstrip("\n") != ",".join(FIELDS):
            raise InputError(
                f"{path}: line 1 is not the header of results version {SCHEMA_VERSION}; "
                "append to another file"
            )


def append_csv(path: Path, row: Row) -> None:
    """Append a row to a CSV file, which begins with the schema's header.

    Raises:
        InputError: The file is not one of ours, or cannot be written; it is left as it is.
    """
    check_csv(path)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    try:
        if not path.exists() or path.stat().st_size == 0:
            lines.writerow(FIELDS)
        lines.writerow([_cell(value) for value in row.values()])
        with path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _cell(value: object) -> object:
    """Return a value as CSV has it: nothing for None, JSON for a list."""
    if value is None:
        return ""
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list) else value


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 9) if whole else None
