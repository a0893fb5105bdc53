"""The charts of ``validation/accuracy.py``: loss against memory, and against eMoE's period p."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.simulator.results.plot_panels import AMBER, BLUE, GREEN, GREY, PURPLE, RED
from moesim.simulator.results.plots import save
from moesim.validation.accuracy_published import EMOE, FORMATS, METRIC, Published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
PERIODS_IN = (7.2, 4.2)
MEMORY_IN = (11.0, 4.6)
COLOURS = (BLUE, AMBER, GREEN, RED, PURPLE, GREY)
MARKERS, LINES = "os^v", ("-", "--", ":", "-.")
NOTED = {"cache-prior": "cache-prior (leaves prompts alone)"}
"""Arms whose loss over a whole text says less than it seems."""
PERPLEXITIES = (3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200)
SMALL = 8


def plot(documents: Sequence[Row], path: Path) -> None:
    """Draw what was measured: against p where there is a sweep of it, else against memory."""
    draw = plot_periods if any(one["by_period"] for one in documents) else plot_memory
    draw(documents, path)


def plot_periods(documents: Sequence[Row], path: Path, *, dark: bool = False) -> None:
    """Draw perplexity with its interval, and latency, against p: one panel for each document."""
    swept = [one for one in documents if one["by_period"]]
    save(partial(_periods, documents=swept), path, dark=dark, size_in=PERIODS_IN)


def plot_memory(documents: Sequence[Row], path: Path, *, dark: bool = False) -> None:
    """Draw loss against the expert memory that is saved, with the paper's figures beside ours."""
    rows = [row for one in documents for row in one["rows"]]
    save(partial(_memory, rows=rows), path, dark=dark, size_in=MEMORY_IN)


def _periods(figure: "Figure", /, *, documents: Sequence[Row], theme: Mapping[str, str]) -> None:
    share = documents[0]["by_period"][0]["share"]
    _title(
        figure,
        f"eMoE with {share:.0%} of the experts: 95 % of resampled texts, dots are single orders",
        theme,
    )
    panels = figure.subplots(1, len(documents), squeeze=False, sharey=True)[0]
    for left, document in zip(panels, documents, strict=True):
        rows = document["by_period"]
        periods = [row["period"] for row in rows]
        means = [row["perplexity"] for row in rows]
        bars = _bars(rows, "perplexity")
        left.errorbar(periods, means, yerr=bars, color=BLUE, marker="o", capsize=3)
        for row in rows:
            single = row["perplexity_by_order"]
            left.plot([row["period"]] * len(single), single, ".", color=BLUE, alpha=0.5)
        right = left.twinx()
        times_ms = [row["mean_ttft_ms"] for row in rows]
        right.plot(periods, times_ms, color=AMBER, marker="s")
        right.set_ylim(0, 1.25 * max(times_ms))
        right.set_ylabel("mean TTFT, ms (replayed)", color=AMBER)
        left.set_ylim(0, 1.6 * max(row["perplexity_95"][1] for row in rows))
        left.set_title(f"{document['order']}, {document['scored_texts']} texts", fontsize=10)
        left.set_ylabel("perplexity of a byte", color=BLUE)
        left.set_xlabel("p: prompts between predictions")
        left.set_xticks(periods, [str(period) for period in periods])
        left.grid()


def _memory(figure: "Figure", /, *, rows: Sequence[Row], theme: Mapping[str, str]) -> None:
    _title(figure, "What saved expert memory costs: three measures, which no scale joins", theme)
    ours, agreed, theirs = figure.subplots(1, 3)
    by_arm: dict[str, list[Row]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], []).append(row)
    for at, (name, of_arm) in enumerate(by_arm.items()):
        placed = sorted(of_arm, key=lambda row: row["saved"])
        saved = [100 * row["saved"] for row in placed]
        looks = {
            "color": COLOURS[at % len(COLOURS)],
            "marker": MARKERS[at // len(COLOURS) % len(MARKERS)],
            "markersize": 5,
            "capsize": 3,
            "linewidth": 1.2,
            "linestyle": LINES[at // len(COLOURS) % len(LINES)],
            "label": NOTED.get(name, name),
        }
        for axes, figure_name, scale in ((ours, "perplexity", 1), (agreed, "agreement", 100)):
            means = [scale * row[figure_name] for row in placed]
            axes.errorbar(saved, means, yerr=_bars(placed, figure_name, scale), **looks)
    ours.set_yscale("log")
    ours.minorticks_off()
    shown = [one for one in PERPLEXITIES if one <= max(row["perplexity_95"][1] for row in rows)]
    ours.set_yticks(shown, [str(one) for one in shown])
    _name(ours, "here: perplexity", "perplexity of a byte")
    _name(agreed, "here: next byte as with every expert", "top-1 agreement, %")
    agreed.set_ylim(0, 102)
    _published(theirs, EMOE, BLUE, "o")
    _published(theirs, FORMATS, GREY, "s")
    _name(theirs, "the paper: Mixtral, OpenMoE", METRIC)
    theirs.set_ylim(90, 100.3)
    figure.legend(
        *ours.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=SMALL
    )


def _published(axes: "Axes", figures: Sequence[Published], colour: str, marker: str) -> None:
    for one in figures:
        middle = (one.low_percent + one.high_percent) / 2
        axes.errorbar(
            100 * one.saved,
            middle,
            yerr=one.high_percent - middle,
            color=colour,
            marker=marker,
            capsize=3,
            markerfacecolor=colour if one.is_placed else "none",
        )
        noted = one.name if one.is_placed else f"{one.name}, memory not said"
        axes.annotate(
            noted,
            (100 * one.saved, middle),
            xytext=(0, -15),
            textcoords="offset points",
            ha="right" if one.saved > 0.7 else "center",  # noqa: PLR2004  keeps it on the paper
            fontsize=SMALL,
        )


def _name(axes: "Axes", title: str, measure: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("expert memory saved, %")
    axes.set_ylabel(measure)
    axes.set_xlim(-4, 86)
    axes.grid()


def _title(figure: "Figure", text: str, theme: Mapping[str, str]) -> None:
    figure.suptitle(text, x=0.01, ha="left", color=theme["ink"], fontsize=11)


def _bars(rows: Sequence[Row], name: str, scale: float = 1) -> list[list[float]]:
    """Return how far intervals reach below and above the means."""
    return [
        [scale * (row[name] - row[f"{name}_95"][0]) for row in rows],
        [scale * (row[f"{name}_95"][1] - row[name]) for row in rows],
    ]
