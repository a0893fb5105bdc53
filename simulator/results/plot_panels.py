"""The panels of a run's figure: latency, bytes, outcomes, way to the bound, busy times."""

from collections.abc import Mapping
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.simulator.results.run_series import RunSeries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["THEMES", "fill", "style"]

LONG = 600
"""With more tokens than these a line is a blur: ranges and medians of groups are drawn."""

THEMES = {
    False: {"paper": "#ffffff", "ink": "#1f2328", "faint": "#d0d7de"},
    True: {"paper": "#14171c", "ink": "#e6e8eb", "faint": "#3a4049"},
}

BLUE, GREEN, AMBER, RED, PURPLE, GREY = (
    "#3b8ed0",
    "#2fa57a",
    "#e3a008",
    "#d6553f",
    "#a56cc1",
    "#8b949e",
)

COLOURS = {
    "hit": GREEN,
    "late": AMBER,
    "partial": PURPLE,
    "miss": RED,
    "demand": RED,
    "prefetch, useful": BLUE,
    "prefetch, late": AMBER,
    "prefetch, wasted": GREY,
    "rebalance": PURPLE,
    "bound": GREEN,
    "more bytes": RED,
    "host": AMBER,
    "contention": PURPLE,
    "waiting": GREY,
    "queueing": GREY,
    "service": BLUE,
}


def style(theme: Mapping[str, str]) -> dict[Any, Any]:
    """Return what a figure sets beside matplotlib's own defaults."""
    return {
        "figure.facecolor": theme["paper"],
        "savefig.facecolor": theme["paper"],
        "axes.facecolor": theme["paper"],
        "axes.edgecolor": theme["faint"],
        "axes.labelcolor": theme["ink"],
        "axes.titlecolor": theme["ink"],
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": theme["faint"],
        "grid.linewidth": 0.6,
        "text.color": theme["ink"],
        "text.parse_math": False,
        "xtick.color": theme["ink"],
        "ytick.color": theme["ink"],
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.facecolor": theme["paper"],
        "legend.edgecolor": "none",
        "legend.framealpha": 0.85,
        "legend.fontsize": 8.5,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "svg.hashsalt": "moesim",
    }


def fill(figure: "Figure", series: RunSeries, theme: Mapping[str, str]) -> None:
    """Draw every panel of a run's figure."""
    [[head], [body]] = figure.subfigures(2, 1, squeeze=False, height_ratios=(0.9, 6.5))
    title = shorten(series.title, 90, placeholder=" …")
    head.text(0.008, 0.80, title, fontsize=13, fontweight="bold", va="center")
    for line, text in enumerate(series.subtitles):
        shown = shorten(text, 150, placeholder=" …")
        head.text(0.008, 0.42 - 0.28 * line, shown, fontsize=9, va="center")
    rows = body.subplot_mosaic(
        [["latency", "latency"], ["bytes", "outcomes"], ["span", "busy"]],
        height_ratios=(2.4, 1, 1) if _is_single(series) else (2.2, 1.6, 1),
    )
    _draw_latency(rows["latency"], series, theme)
    _draw_bytes(rows["bytes"], series, theme)
    _draw_outcomes(rows["outcomes"], series)
    _draw_span(rows["span"], series)
    _draw_busy(rows["busy"], series)


def _draw_latency(axes: "Axes", series: RunSeries, theme: Mapping[str, str]) -> None:
    values = np.asarray(series.latencies_ms)
    axes.set_title(f"Latency by {series.sample_name}")
    axes.set_xlabel(series.sample_name)
    axes.set_ylabel(series.latency_name)
    axes.grid(axis="y")
    if not len(values):
        axes.text(0.5, 0.5, "no token was generated", transform=axes.transAxes, ha="center")
        return
    number = np.arange(1, len(values) + 1)
    if len(values) <= LONG:
        marker = "o" if len(values) <= 40 else None  # noqa: PLR2004  few enough to see each
        axes.plot(number, values, color=BLUE, linewidth=1, marker=marker, markersize=3)
    else:
        groups = np.array_split(values, LONG // 2)
        middle = [chunk.mean() for chunk in np.array_split(number, LONG // 2)]
        low, half, high = np.transpose([np.percentile(group, (0, 50, 100)) for group in groups])
        label = f"range of {len(groups[0])} {series.sample_name}s"
        axes.fill_between(middle, low, high, color=BLUE, alpha=0.3, linewidth=0, label=label)
        axes.plot(middle, half, color=BLUE, linewidth=1, label="median")
    mean = float(values.mean())
    axes.axhline(mean, color=theme["ink"], linewidth=1, linestyle="--", label=f"mean {mean:.3g} ms")
    if series.bound_ms is not None:
        axes.axhline(
            series.bound_ms,
            color=GREEN,
            linewidth=1.5,
            label=f"bound on the mean {series.bound_ms:.3g} ms",
        )
    top = float(np.percentile(values, 99.5)) * 1.25
    if values.max() > top:
        at = int(values.argmax())
        axes.text(
            1,
            1.02,
            f"beyond the axis: up to {values[at]:.4g} ms ({series.sample_name} {at + 1})",
            transform=axes.transAxes,
            ha="right",
            fontsize=8.5,
        )
    axes.set_ylim(0, max(top, mean * 1.25, 1e-9))
    axes.set_xlim(1 - 0.5, len(values) + 0.5)
    axes.legend(loc="upper right", ncols=4)


def _draw_bytes(axes: "Axes", series: RunSeries, theme: Mapping[str, str]) -> None:
    total = sum(series.bytes_per_token.values())
    scale, unit = _unit(max(total, series.least_bytes_per_token))
    parts = {cause: size / scale for cause, size in series.bytes_per_token.items()}
    axes.set_title("Copied to the GPU")
    axes.set_xlabel(f"{unit} per token")
    least = series.least_bytes_per_token / scale
    label = f"least {least:.3g}"
    if least:
        axes.axvline(least, 0.06, 0.5, color=theme["ink"], linewidth=2, linestyle=":", label=label)
    _stack(axes, parts)


def _draw_outcomes(axes: "Axes", series: RunSeries) -> None:
    total = sum(sum(counts) for counts in series.outcomes.values())
    axes.set_title(f"Outcome of {total:,} demands")
    if _is_single(series):
        axes.set_xlabel("% of demands")
        shares = {name: 100 * sum(c) / max(1, total) for name, c in series.outcomes.items()}
        _stack(axes, shares, " %")
        return
    counts_L = np.array([list(counts) for counts in series.outcomes.values()], float)
    shares_L = 100 * counts_L / np.maximum(1, counts_L.sum(axis=0))
    axes.set_xlabel("MoE layer")
    axes.set_ylabel("% of demands")
    below_L = np.zeros(shares_L.shape[1])
    for name, share_L in zip(series.outcomes, shares_L, strict=True):
        if share_L.any():
            label = f"{name} {100 * sum(series.outcomes[name]) / max(1, total):.1f} %"
            axes.bar(range(len(share_L)), share_L, 0.9, below_L, color=COLOURS[name], label=label)
        below_L += share_L
    axes.set_ylim(0, 130)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.margins(x=0.01)
    _legend_on_top(axes)


def _draw_span(axes: "Axes", series: RunSeries) -> None:
    total = sum(series.span_s.values())
    of_run = f"From the bound to the run's {total:.3g} s"
    axes.set_title(of_run if "bound" in series.span_s else f"A request's mean {total:.3g} s")
    axes.set_xlabel("s")
    _stack(axes, dict(series.span_s))


def _draw_busy(axes: "Axes", series: RunSeries) -> None:
    names = list(series.busy)[::-1]
    shares = [100 * series.busy[name] for name in names]
    axes.set_title("In use")
    axes.set_xlabel("% of the run")
    bars = axes.barh(names, shares, 0.62, color=BLUE)
    axes.bar_label(bars, [f"{share:.0f} %" for share in shares], padding=3, fontsize=8.5)
    axes.set_xlim(0, 112)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.tick_params(axis="y", length=0)


def _stack(axes: "Axes", parts: Mapping[str, float], unit: str = "") -> None:
    """Draw one horizontal bar of parts, below a legend that gives each its figure."""
    begin = 0.0
    for name, size in parts.items():
        if size > 0:
            axes.barh(
                [0], [size], 0.8, begin, color=COLOURS[name], label=f"{name} {size:.3g}{unit}"
            )
            begin += size
    axes.set_yticks([])
    axes.set_ylim(-0.5, 1.8)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, begin * 1.02 or 1)
    _legend_on_top(axes)


def _legend_on_top(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(0, 1),
            ncols=3,
            borderaxespad=0,
            borderpad=0.2,
            handlelength=0.9,
            handletextpad=0.4,
            columnspacing=1.2,
            labelspacing=0.3,
        )


def _is_single(series: RunSeries) -> bool:
    return all(len(counts) == 1 for counts in series.outcomes.values())


def _unit(size: float) -> tuple[float, str]:
    """Return the decimal unit that suits a number of bytes."""
    units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")]
    return next(((scale, unit) for scale, unit in units if size >= scale), (1.0, "bytes"))
