"""The comparison as Markdown: what all cells say together, then a table for each of them.

A cell is a trace in an order on a machine at a budget.
"""

from collections.abc import Iterable, Mapping
from statistics import median
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
    lines += _summary(by_cell(result), result["demand_only"])
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


def _summary(
    cells: Mapping[Key, Mapping[str, Mapping[str, Any]]], demand_only: Mapping[str, str]
) -> list[str]:
    """Return the median over cells, with the least and the most, of what a line of a cell says."""
    found = [
        "## All cells",
        "",
        "Median over cells (least to most). Faster: in how many cells TPOT falls against the same "
        "cache without prefetch. Grouped: TPOT in grouped order against mixed order.",
        "",
        "| system | cells | against no prefetch | faster | wasted of moved | against LRU "
        "| over Belady | grouped |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines = {}
    for arm in dict.fromkeys(arm for cell in cells.values() for arm in cell):
        of = {key: cell for key, cell in cells.items() if arm in cell}
        own = demand_only.get(arm, "")
        gains = [_gain(cell, arm, own) for cell in of.values() if own in cell]
        faster = f"{sum(gain < 0 for gain in gains)} of {len(gains)}" if gains else ""
        wasted = [
            100 * cell[arm]["bytes_prefetch_wasted"] / max(1, cell[arm]["bytes_total"])
            for cell in of.values()
        ]
        over = [cell[arm]["mean_tpot_ms"] / cell["Belady"]["mean_tpot_ms"] for cell in of.values()]
        grouped = [
            100 * (cell[arm]["mean_tpot_ms"] / of[(key[0], "mixed", *key[2:])][arm]["mean_tpot_ms"])
            - 100
            for key, cell in of.items()
            if key[1] == "grouped"
        ]
        lines[arm] = (
            median(over),
            f"| {arm} | {len(of)} | {_spread(gains, '+.0f', ' %')} | {faster} "
            f"| {_spread(wasted, '.0f', ' %')} "
            f"| {_spread((_gain(cell, arm, 'LRU') for cell in of.values()), '+.0f', ' %')} "
            f"| {_spread(over, '.2f', 'x')} | {_spread(grouped, '+.1f', ' %')} |",
        )
    return [*found, *(line for _, line in sorted(lines.values())), ""]


def _gain(cell: Mapping[str, Mapping[str, Any]], arm: str, other: str) -> float:
    return float(100 * (cell[arm]["mean_tpot_ms"] / cell[other]["mean_tpot_ms"] - 1))


def _spread(values: Iterable[float], form: str, unit: str) -> str:
    """Return the median and in brackets the extremes; nothing of nothing, one figure of equals."""
    known = list(values)
    if not known:
        return ""
    least, middle, most = (format(value, form) for value in (min(known), median(known), max(known)))
    return f"{middle}{unit}" + ("" if least == most else f" ({least} to {most})")


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
