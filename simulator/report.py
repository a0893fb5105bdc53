"""Tables for people, on stdout."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.runs import RunResult

WIDTH = 100


def console() -> Console:
    """Return a console on stdout; as wide as the terminal, or 100 columns in a pipe."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=WIDTH)


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under a title."""
    table = Table(*heads, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_fields(title: str, fields: Mapping[str, Any]) -> None:
    """Print names and values under a title."""
    table = Table(
        "", "", title=title, title_justify="left", box=None, show_header=False, pad_edge=False
    )
    for name, value in fields.items():
        table.add_row(name, _plain(value))
    console().print(table)


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
        f"cache {row['cache']}, prefetch {row['prefetch']}, schedule {row['schedule']}",
    )
    if row["mean_tpot_ms"] is not None:
        yield (
            "TPOT",
            f"{row['mean_tpot_ms']:.3f} ms {band}  (p50 {row['p50_tpot_ms']:.3f}, "
            f"p90 {row['p90_tpot_ms']:.3f}, p99 {row['p99_tpot_ms']:.3f})",
        )
    if row["mean_ttft_ms"] is not None:
        yield "TTFT", f"{row['mean_ttft_ms']:.3f} ms {band}  (p99 {row['p99_ttft_ms']:.3f})"
    if row["output_tokens_per_s"] is not None:
        yield "speed", f"{row['output_tokens_per_s']:.2f} output tokens/s"
    yield "demands", _demands(row)
    yield "copied per token", _bytes_by_cause(row)
    busy = ", ".join(
        f"{name} {row[f'{name}_busy_ns'] / row['span_ns'] * 100:.0f} %"
        for name in ("link", "gpu", "host", "cpu")
        if row[f"{name}_busy_ns"] and row["span_ns"]
    )
    yield "busy", f"{busy} of {row['span_ns'] / 1e9:.3f} s"
    yield "peak VRAM", _vram(row)
    if row["bound_tpot_ms"] is not None:
        yield (
            "bound",
            f"no policy beats {row['bound_tpot_ms']:.3f} ms per token (allowing {row['bound_actions']}); "
            f"this one is {row['over_bound']:.2f} times that",
        )
    yield "evidence", f"{row['evidence']} figures, band {band}; trace {row['trace_evidence']}"
    if row["notes"]:
        yield "notes", row["notes"]
    yield "run", row["run_id"]


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
    return f"{format_bytes(row['bytes_total'] // tokens)} ({', '.join(parts) or 'nothing'})"


def _vram(row: Mapping[str, Any]) -> str:
    experts = f"experts {format_bytes(row['expert_budget_bytes'])} ({row['slots']} slots"
    experts += f", {format_bytes(row['staging_bytes'])} staging)" if row["staging_bytes"] else ")"
    return (
        f"{format_bytes(row['peak_vram_bytes'])}: {experts}, dense {format_bytes(row['vram_dense_bytes'])}, "
        f"KV {format_bytes(row['vram_kv_bytes'])}, workspace {format_bytes(row['vram_workspace_bytes'])}"
    )


def _plain(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_plain(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return "\n".join(_plain(item) for item in value) or "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
