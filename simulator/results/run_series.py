"""The figures that a plot of a run shows, taken from the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moesim.simulator.limits.distance import split

if TYPE_CHECKING:
    from moesim.simulator.results.run_result import RunResult

__all__ = ["RunSeries", "series_of"]


@dataclass(frozen=True, slots=True)
class RunSeries:
    """What the figure of a run shows.

    Attributes:
        title: The answer in one line.
        subtitles: What was run on what, and how sure the figures are.
        latencies_ms: One for each token or, without decode steps, each first token.
        latency_name: What they are, and ``sample_name`` what they are counted by.
        bound_ms: Mean that no policy with the same means can beat, if there is one.
        bytes_per_token: Bytes copied for each token processed, by cause.
        least_bytes_per_token: Those that no such policy can avoid.
        outcomes: Demands by outcome, each a list over layers, or of one figure for all.
        busy: Share of the span that each resource was in use.
        span_s: Parts of the span in seconds: the bound, then what was added to it. Where requests
            arrived there is no bound, and these are the parts of a request's mean stay.
    """

    title: str
    subtitles: Sequence[str]
    latencies_ms: Sequence[float]
    latency_name: str
    sample_name: str
    bound_ms: float | None
    bytes_per_token: Mapping[str, float]
    least_bytes_per_token: float
    outcomes: Mapping[str, Sequence[int]]
    busy: Mapping[str, float]
    span_s: Mapping[str, float]


def series_of(result: "RunResult") -> RunSeries:
    """Return what is drawn of a run."""
    row, limit, timings = result.row, result.bounds, result.timings
    gaps = bool(result.tokens.gaps_ns)
    latency_ns = result.tokens.gaps_ns or result.tokens.first_ns
    name = "TPOT" if gaps else "TTFT"
    mean_ms = float(np.mean(latency_ns)) / 1e6 if latency_ns else 0.0
    tokens = max(1, row["tokens"])
    if limit is None or row["arrivals"]:
        parts = {"queueing": "mean_queue_ms", "service": "mean_service_ms"}
        span_s = {name: (row[key] or 0.0) / 1e3 for name, key in parts.items()}
    else:
        distance = split(timings, limit)
        span_s = {
            "bound": limit.span_ns / 1e9,
            "more bytes": distance.transfer_ns / 1e9,
            "host": distance.host_ns / 1e9,
            "contention": distance.contention_ns / 1e9,
            "waiting": distance.waiting_ns / 1e9,
        }
    causes = {
        "demand": "bytes_demand",
        "prefetch, useful": "bytes_prefetch_useful",
        "prefetch, late": "bytes_prefetch_late",
        "prefetch, wasted": "bytes_prefetch_wasted",
        "rebalance": "bytes_rebalance",
    }
    outcomes = {"hit": "hits", "late": "late_hits", "partial": "partial_hits", "miss": "misses"}
    busy = {"link": "link", "GPU": "gpu", "host": "host", "CPU experts": "cpu"}
    tiers = {"NVMe": ("nvme", "host_cache"), "other GPU": ("peer", "peer_cache")}
    busy |= {name: key for name, (key, policy) in tiers.items() if row[policy]}
    policies = f"cache {row['cache']}, prefetch {row['prefetch']}, schedule {row['schedule']}"
    return RunSeries(
        title=f"{row['model']} on {row['hardware']}: {mean_ms:.3g} ms mean {name} "
        f"± {row['band'] * 100:.0f} %",
        subtitles=(
            f"trace {row['trace']} ({row['trace_evidence']}) · runtime {row['runtime']} · "
            f"{row['slots']} slots · {row['evidence']} figures",
            f"system {row['system']}: {policies}",
        ),
        latencies_ms=[ns / 1e6 for ns in latency_ns],
        latency_name="time of each token, ms" if gaps else "time to first token, ms",
        sample_name="output token" if gaps else "request",
        bound_ms=limit.tpot_ns / 1e6 if gaps and limit and limit.tpot_ns is not None else None,
        bytes_per_token={cause: row[key] / tokens for cause, key in causes.items()},
        least_bytes_per_token=limit.bytes_min / tokens if limit else 0.0,
        outcomes={outcome: [row[key]] for outcome, key in outcomes.items()},
        busy={
            name: row[f"{key}_busy_ns"] / max(1, timings.span_ns)
            for name, key in busy.items()
            if key != "cpu" or row["cpu_experts"]
        },
        span_s=span_s,
    )
