"""A chart for each question: who is fast, does prefetch pay, does order matter, MoEpic's split."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from comparison_tables import by_cell
from matplotlib.figure import Figure

LOSSY = ("cache-prior", "emoe", "emoe-skip", "emoe-task")
COLOURS = ("#3b8ed0", "#2fa57a", "#e3a008", "#d6553f", "#a56cc1")
FOUND = ("finemoe-demo, selector mended",)


def draw(result: Mapping[str, Any], folder: Path) -> None:
    """Write the four charts."""
    cells = by_cell(result)
    charts = {
        "systems.png": _systems(cells),
        "prefetch.png": _prefetch(cells, result["demand_only"]),
        "order.png": _order(cells),
    }
    if result["moepic"] is not None:
        charts["moepic.png"] = _moepic(result["moepic"])
    for name, figure in charts.items():
        figure.savefig(folder / name, dpi=110, metadata={"Software": None})


def _systems(cells: Mapping[Any, Mapping[str, Any]]) -> Figure:
    """TPOT over Belady's, by budget, mixed order; each dot is a trace on a machine."""
    names = sorted({arm for cell in cells.values() for arm in cell if ", no " not in arm})
    figure = Figure(figsize=(9, 9), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    medians = {name: _median_over(cells, name, 50) for name in names}
    names.sort(key=medians.__getitem__, reverse=True)
    traces = list(dict.fromkeys(key[0] for key in cells))
    for panel, share in zip(axes, (25, 50, 75), strict=True):
        for key, cell in cells.items():
            if key[1] != "mixed" or key[3] != share:
                continue
            ratios = [_over(cell, name) for name in names]
            marker = "o" if key[2].startswith("h100") else "x"
            colour = COLOURS[traces.index(key[0])]
            panel.plot(ratios, names, marker, color=colour, markersize=4)
        panel.set(xscale="log", title=f"{share} % of expert bytes")
        panel.axvline(1, color="#8b949e", linewidth=0.8)
        panel.grid(axis="y", color="#d0d7de", linewidth=0.4)
    for name, colour in zip(traces, COLOURS, strict=False):
        axes[0].plot([], [], "o", color=colour, label=name)
    axes[0].plot([], [], "x", color="black", label="rtx3090 (o: h100)")
    axes[0].legend(fontsize=7)
    figure.supxlabel("mean TPOT over Belady's without prefetch, same VRAM")
    return figure


def _over(cell: Mapping[str, Any], name: str) -> float:
    if name not in cell:
        return float("nan")
    return float(cell[name]["mean_tpot_ms"] / cell["Belady"]["mean_tpot_ms"])


def _median_over(cells: Mapping[Any, Mapping[str, Any]], name: str, share: int) -> float:
    found = [_over(cell, name) for key, cell in cells.items() if key[3] == share and name in cell]
    return float(np.median(found)) if found else 0.0


def _prefetch(cells: Mapping[Any, Mapping[str, Any]], demand_only: Mapping[str, str]) -> Figure:
    """What prefetching changes in TPOT, against the share of moved bytes that were wasted."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    marks = "osD^vP*X<>hpd"
    for number, (name, own) in enumerate(demand_only.items()):
        points = [
            (
                100 * cell[name]["bytes_prefetch_wasted"] / max(1, cell[name]["bytes_total"]),
                100 * (cell[name]["mean_tpot_ms"] / cell[own]["mean_tpot_ms"] - 1),
            )
            for cell in cells.values()
            if name in cell and own in cell
        ]
        x, y = zip(*points, strict=True)
        axes.plot(
            x, y, marks[number % len(marks)], color=COLOURS[number % 5], markersize=4, label=name,
            linestyle="none", alpha=0.8,
        )  # fmt: skip
    axes.axhline(0, color="#8b949e", linewidth=0.8)
    axes.set(
        xlabel="wasted, % of all bytes moved",
        ylabel="TPOT against the same cache without prefetch, %",
        title="Does prefetching pay? Below the line it does",
    )
    axes.legend(fontsize=7, ncols=2)
    return figure


def _order(cells: Mapping[Any, Mapping[str, Any]]) -> Figure:
    """What grouping prompts by task changes, against mixed order."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots()
    pairs = [
        (key[0], cell, cells[(key[0], "mixed", *key[2:])])
        for key, cell in cells.items()
        if key[1] == "grouped"
    ]
    names = sorted({arm for _, cell, _ in pairs for arm in cell if ", no " not in arm})
    traces = list(dict.fromkeys(trace for trace, _, _ in pairs))
    for trace, grouped, mixed in pairs:
        changes = [_percent(grouped, mixed, name) for name in names]
        axes.plot(changes, names, "o", color=COLOURS[traces.index(trace)], markersize=4)
    for trace, colour in zip(traces, COLOURS, strict=False):
        axes.plot([], [], "o", color=colour, label=trace)
    axes.axvline(0, color="#8b949e", linewidth=0.8)
    axes.grid(axis="y", color="#d0d7de", linewidth=0.4)
    axes.set(
        xlabel="TPOT in grouped against mixed order, %", title="What the order of prompts does"
    )
    axes.legend(fontsize=8)
    return figure


def _percent(grouped: Mapping[str, Any], mixed: Mapping[str, Any], name: str) -> float:
    if name not in grouped or name not in mixed:
        return float("nan")
    return float(100 * (grouped[name]["mean_tpot_ms"] / mixed[name]["mean_tpot_ms"] - 1))


def _moepic(found: Mapping[str, Any]) -> Figure:
    """TPOT by the top's share, with and without prefetch; and the paper's table beside ours."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (slots, by_theta), colour in zip(found["qwen_by_theta"].items(), COLOURS, strict=False):
        for suffix, line in (("", "-o"), (", no prefetch", "--o")):
            values = [
                (float(label.split(",")[0]), figures["tpot_ms"])
                for label, figures in by_theta.items()
                if label.endswith("prefetch") == bool(suffix)
            ]
            left.plot(
                *zip(*values, strict=True), line, color=colour, label=f"{slots} experts{suffix}"
            )
    left.set(xlabel="the top's share of an expert, theta", ylabel="TPOT, ms", ylim=(0, None))
    left.set_title("Qwen1.5-MoE's shape at the paper's speeds")
    left.legend(fontsize=7)
    paper = found["paper_ms"]["mixtral tpot, 160 experts"]
    _bars(right, paper, {name: found["mixtral_int4"][name]["tpot_ms"] for name in paper})
    right.set(title="Mixtral int4, 160 of 256 experts, A6000", ylabel="TPOT, ms")
    return figure


def _bars(axes: Any, paper: Mapping[str, float], ours: Mapping[str, float]) -> None:  # noqa: ANN401  matplotlib
    places = np.arange(len(paper))
    axes.bar(places - 0.2, list(paper.values()), 0.4, color=COLOURS[0], label="paper")
    axes.bar(places + 0.2, list(ours.values()), 0.4, color=COLOURS[2], label="replayed")
    axes.set_xticks(places, _short(paper), rotation=20, fontsize=8)
    axes.legend(fontsize=8)


def _short(names: Iterable[str]) -> list[str]:
    return [name.replace("mixtral-offloading-paper", "mixtral-offl.") for name in names]
