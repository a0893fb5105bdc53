"""The table that a person reads after a run."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.gpus.results import gpu_lines
from moesim.simulator.ledger import Timings
from moesim.simulator.limits.bounds import Bounds
from moesim.simulator.limits.distance import split
from moesim.simulator.results.request_times import request_lines
from moesim.simulator.results.run_result import RunResult
from moesim.simulator.tables import console
from moesim.simulator.tiers.results import tier_lines


def print_result(result: RunResult) -> None:
    """Print one run."""
    row = result.row
    title = f"{row['system']} · {row['model']} · {row['hardware']} · {row['trace']}"
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, text in _lines(result):
        table.add_row(name, text)
    console().print(table)


def _lines(result: RunResult) -> Iterable[tuple[str, str]]:
    row = result.row
    band = f"± {row['band'] * 100:.0f} %"
    yield (
        "policies",
        f"cache {row['cache']}, prefetch {row['prefetch']}, schedule {row['schedule']}; "
        f"runtime {row['runtime']}",
    )
    if row["mean_tpot_ms"] is not None:
        yield (
            "TPOT",
            f"{row['mean_tpot_ms']:.3f} ms {band}  (p50 {row['p50_tpot_ms']:.3f}, "
            f"p90 {row['p90_tpot_ms']:.3f}, p99 {row['p99_tpot_ms']:.3f})",
        )
    if row["mean_ttft_ms"] is not None:
        yield "TTFT", f"{row['mean_ttft_ms']:.3f} ms {band}  (p99 {row['p99_ttft_ms']:.3f})"
    if row["arrivals"]:
        yield from request_lines(row)
    if row["output_tokens_per_s"] is not None:
        yield "speed", f"{row['output_tokens_per_s']:.2f} output tokens/s"
    yield "demands", _demands(row)
    if row["loop"]:
        yield (
            "lossy",
            f"{row['rerouted']} choices rerouted, {row['skipped']} skipped; {row['loop']} loop",
        )
    yield "copied", _bytes_by_cause(row)
    busy = ", ".join(
        f"{name} {row[f'{name}_busy_ns'] / row['span_ns'] * 100:.0f} %"
        for name in ("link", "gpu", "host", "cpu")
        if row[f"{name}_busy_ns"] and row["span_ns"]
    )
    yield "busy", f"{busy} of {_times(row['span_ns'])[0]}"
    yield "peak VRAM", _vram(row)
    yield from tier_lines(row)
    yield from gpu_lines(row)
    if row["bound_tpot_ms"] is not None:
        yield (
            "bound",
            f"no policy beats {row['bound_tpot_ms']:.3f} ms per token "
            f"(allowing {row['bound_actions']}); this one is {row['over_bound']:.2f} times that",
        )
    if result.bounds is not None:
        yield "beyond it", _distance(result.timings, result.bounds)
    yield "evidence", f"{row['evidence']} figures, band {band}; trace {row['trace_evidence']}"
    if row["notes"]:
        yield "notes", row["notes"]
    yield "run", row["run_id"]


def _distance(timings: Timings, limit: Bounds) -> str:
    gap = split(timings, limit)
    parts = [
        (gap.transfer_ns, "more bytes than must move"),
        (gap.host_ns, "the host"),
        (gap.contention_ns, "kernels beside copies"),
        (gap.idle_ns, "idle between requests"),
        (gap.waiting_ns, "waiting"),
    ]
    span, total, *shares = _times(timings.span_ns, gap.gap_ns, *(ns for ns, _ in parts))
    shown = ", ".join(
        f"{share} {what}" for share, (ns, what) in zip(shares, parts, strict=True) if ns
    )
    return f"{total} of {span}: {shown or 'nothing'}"


def _times(span_ns: int, *others_ns: int) -> list[str]:
    """Return times of one run in one unit, the one that suits its span."""
    unit, unit_ns = ("s", 10**9) if span_ns >= 10**9 else ("ms", 10**6)
    return [f"{ns / unit_ns:.3f} {unit}" for ns in (span_ns, *others_ns)]


def _demands(row: Mapping[str, Any]) -> str:
    demands = row["demands"] or 1
    parts = [
        f"{name} {row[key] / demands * 100:.1f} %"
        for name, key in (
            ("hit", "hits"),
            ("late", "late_hits"),
            ("partial", "partial_hits"),
            ("miss", "misses"),
        )
        if row[key] or key in ("hits", "misses")
    ]
    if row["decode_hit_rate"] is not None:
        parts.append(f"decode hit {row['decode_hit_rate'] * 100:.1f} %")
    return f"{row['demands']}: {', '.join(parts)}"


def _bytes_by_cause(row: Mapping[str, Any]) -> str:
    tokens = row["tokens"] or 1
    parts = [
        f"{name} {format_bytes(row[key] // tokens)}"
        for name, key in (
            ("demand", "bytes_demand"),
            ("prefetch useful", "bytes_prefetch_useful"),
            ("late", "bytes_prefetch_late"),
            ("wasted", "bytes_prefetch_wasted"),
            ("rebalance", "bytes_rebalance"),
        )
        if row[key]
    ]
    what = ", ".join(parts) or "nothing"
    return f"{format_bytes(row['bytes_total'] // tokens)} per prompt or output token ({what})"


def _vram(row: Mapping[str, Any]) -> str:
    experts = f"experts {format_bytes(row['expert_budget_bytes'])} ({row['slots']} slots"
    experts += f", {format_bytes(row['staging_bytes'])} staging)" if row["staging_bytes"] else ")"
    parts = [
        f"{name} {format_bytes(row[f'vram_{key}_bytes'])}"
        for name, key in (("dense", "dense"), ("KV", "kv"), ("workspace", "workspace"))
    ]
    return f"{format_bytes(row['peak_vram_bytes'])}: {', '.join([experts, *parts])}"
