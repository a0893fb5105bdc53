"""The comparison as Markdown: a table for each trace, order, machine and budget."""

from collections.abc import Mapping
from typing import Any

Key = tuple[str, str, str, int]


def by_cell(result: Mapping[str, Any]) -> dict[Key, dict[str, dict[str, Any]]]:
    """Return the rows by (trace, order, hardware, share), then by arm."""
    found: dict[Key, dict[str, dict[str, Any]]] = {}
    columns = result["columns"]
    for row in result["rows"]:
        named = dict(zip(columns, row, strict=True))
        key = (named["trace"], named["order"], named["hardware"], named["share"])
        found.setdefault(key, {})[named["arm"]] = named
    return found


def tables(result: Mapping[str, Any]) -> str:
    """Return all tables; times are ms, bytes GB."""
    lines = ["# Tables", "", "Written by `benchmarks/system_comparison.py`; see README.md.", ""]
    for (trace, order, hardware, share), cell in by_cell(result).items():
        lines += [f"## {trace}, {order} order, {hardware}, {share} % of expert bytes", ""]
        lines.append(
            "| system | TPOT | TTFT | hits | moved | wasted | against no prefetch | against LRU "
            "| over Belady |"
        )
        lines.append("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
        for arm in sorted(cell, key=lambda name: cell[name]["mean_tpot_ms"]):
            lines.append(_line(arm, cell, result["demand_only"]))
        lines.append("")
    lines += ["## Not run", "", *(f"- {line}" for line in result["refused"]), ""]
    return "\n".join(lines)


def _line(arm: str, cell: Mapping[str, Mapping[str, Any]], demand_only: Mapping[str, str]) -> str:
    row = cell[arm]
    tpot = row["mean_tpot_ms"]
    ttft = "" if row["mean_ttft_ms"] is None else f"{row['mean_ttft_ms']:.0f}"
    own = cell.get(demand_only.get(arm, ""))
    return (
        f"| {arm} | {tpot:.1f} | {ttft} | {100 * row['hit_rate']:.0f} % "
        f"| {row['bytes_total'] / 1e9:.0f} | {row['bytes_prefetch_wasted'] / 1e9:.1f} "
        f"| {_change(tpot, own)} | {_change(tpot, cell.get('LRU'))} "
        f"| {_times(tpot, cell.get('Belady'))} |"
    )


def _change(tpot: float, other: Mapping[str, Any] | None) -> str:
    return "" if other is None else f"{100 * (tpot / other['mean_tpot_ms'] - 1):+.0f} %"


def _times(tpot: float, other: Mapping[str, Any] | None) -> str:
    return "" if other is None else f"{tpot / other['mean_tpot_ms']:.2f}x"
