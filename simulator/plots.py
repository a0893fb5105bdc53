"""Draws one run as one figure: latency of every token, bytes, outcomes, busy times, way to the bound.

Everything drawn is in a `RunSeries`; `series_of` takes it from a run. matplotlib is imported where
it draws, without its global state: no backend, no style and no figure outlives a call. Equal runs
give equal files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.simulator.distance import split
from moesim.simulator.errors import InputError

if TYPE_CHECKING:
    from moesim.simulator.runs import RunResult

__all__ = ["RunSeries", "draw", "plot_run", "series_of"]

FORMATS = ("png", "svg", "pdf")

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
}


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
        span_s: Parts of the span in seconds: the bound, then what was added to it.
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


def plot_run(result: "RunResult", path: Path, *, dark: bool = False) -> None:
    """Draw a run into a file; see `draw`."""
    draw(series_of(result), path, dark=dark)


def series_of(result: "RunResult") -> RunSeries:
    """Return what is drawn of a run."""
    row, limit, timings = result.row, result.bounds, result.timings
    gaps = bool(result.tokens.gaps_ns)
    latency_ns = result.tokens.gaps_ns or result.tokens.first_ns
    name = "TPOT" if gaps else "TTFT"
    mean_ms = float(np.mean(latency_ns)) / 1e6 if latency_ns else 0.0
    tokens = max(1, row["tokens"])
    distance = split(timings, limit)
    causes = {
        "demand": "bytes_demand",
        "prefetch, useful": "bytes_prefetch_useful",
        "prefetch, late": "bytes_prefetch_late",
        "prefetch, wasted": "bytes_prefetch_wasted",
        "rebalance": "bytes_rebalance",
    }
    outcomes = {"hit": "hits", "late": "late_hits", "partial": "partial_hits", "miss": "misses"}
    busy = {"link": "link", "GPU": "gpu", "host": "host", "CPU experts": "cpu"}
    policies = f"cache {row['cache']}, prefetch {row['prefetch']}, schedule {row['schedule']}"
    return RunSeries(
        title=f"{row['model']} on {row['hardware']}: {mean_ms:.3g} ms mean {name} "
        f"± {row['band']:.0%}",
        subtitles=(
            f"trace {row['trace']} ({row['trace_evidence']}) · runtime {row['runtime']} · "
            f"{row['slots']} slots · {row['evidence']} figures",
            f"system {row['system']}: {policies}",
        ),
        latencies_ms=[ns / 1e6 for ns in latency_ns],
        latency_name="time of each token, ms" if gaps else "time to first token, ms",
        sample_name="output token" if gaps else "request",
        bound_ms=limit.tpot_ns / 1e6 if gaps and limit.tpot_ns is not None else None,
        bytes_per_token={cause: row[key] / tokens for cause, key in causes.items()},
        least_bytes_per_token=limit.bytes_min / tokens,
        outcomes={outcome: [row[key]] for outcome, key in outcomes.items()},
        busy={
            name: row[f"{key}_busy_ns"] / max(1, timings.span_ns)
            for name, key in busy.items()
            if key != "cpu" or row["cpu_experts"]
        },
        span_s={
            "bound": limit.span_ns / 1e9,
            "more bytes": distance.transfer_ns / 1e9,
            "host": distance.host_ns / 1e9,
            "contention": distance.contention_ns / 1e9,
            "waiting": distance.waiting_ns / 1e9,
        },
    )


def draw(series: RunSeries, path: Path, *, dark: bool = False) -> None:
    """Draw a run into a file, whole or not at all.

    Args:
        series: What to show.
        path: Its suffix is the format: .png, .svg or .pdf.
        dark: Whether the paper is dark.

    Raises:
        InputError: The format is not one of those, the place cannot be written, or matplotlib is
            not installed.
    """
    file_format = path.suffix.removeprefix(".").lower()
    if file_format not in FORMATS:
        raise InputError(f"{path}: a plot ends in one of {', '.join('.' + f for f in FORMATS)}")
    try:
        import matplotlib as mpl  # noqa: PLC0415  an extra, and slow to import
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError:
        raise InputError(
            f"{path}: plots need matplotlib; run: pip install 'moesim[validation]'"
        ) from None
    draft = path.with_name(f".{path.name}.draft")
    # What identifies a file is what is in it, not when and by which version it was made.
    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context(_style(THEMES[dark])):
        figure = Figure(figsize=(10, 7.4), layout="constrained")
        _fill(figure, series, THEMES[dark])
        try:
            figure.savefig(draft, format=file_format, dpi=150, metadata=undated[file_format])
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise InputError(f"{path}: {error.strerror}") from None


def _style(theme: Mapping[str, str]) -> dict[str, Any]:
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
        "xtick.color": theme["ink"],
        "ytick.color": theme["ink"],
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "svg.hashsalt": "moesim",
    }


def _fill(figure: Any, series: RunSeries, theme: Mapping[str, str]) -> None:  # noqa: ANN401  a Figure
    head, body = figure.subfigures(2, 1, height_ratios=(0.9, 6.5))
    head.text(0.008, 0.80, series.title, fontsize=13, fontweight="bold", va="center")
    for line, text in enumerate(series.subtitles):
        head.text(0.008, 0.42 - 0.28 * line, text, fontsize=9, va="center")
    rows = body.subplot_mosaic(
        [["latency", "latency"], ["bytes", "outcomes"], ["span", "busy"]],
        height_ratios=(2.4, 1, 1) if _is_single(series) else (2.2, 1.6, 1),
    )
    _draw_latency(rows["latency"], series, theme)
    _draw_bytes(rows["bytes"], series, theme)
    _draw_outcomes(rows["outcomes"], series)
    _draw_span(rows["span"], series)
    _draw_busy(rows["busy"], series)


def _draw_latency(axes: Any, series: RunSeries, theme: Mapping[str, str]) -> None:  # noqa: ANN401
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
        axes.fill_between(middle, low, high, color=BLUE, alpha=0.3, linewidth=0, label="range")
        axes.plot(middle, half, color=BLUE, linewidth=1, label="median")
    mean = float(values.mean())
    axes.axhline(mean, color=theme["ink"], linewidth=1, linestyle="--", label=f"mean {mean:.3g} ms")
    if series.bound_ms is not None:
        axes.axhline(
            series.bound_ms,
            color=GREEN,
            linewidth=1.5,
            label=f"no policy has a mean below {series.bound_ms:.3g} ms",
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


def _draw_bytes(axes: Any, series: RunSeries, theme: Mapping[str, str]) -> None:  # noqa: ANN401
    total = sum(series.bytes_per_token.values())
    scale, unit = _unit(max(total, series.least_bytes_per_token))
    parts = {cause: size / scale for cause, size in series.bytes_per_token.items()}
    axes.set_title("Copied to the GPU")
    axes.set_xlabel(f"{unit} per token")
    _stack(axes, parts)
    least = series.least_bytes_per_token / scale
    axes.axvline(least, color=theme["ink"], linewidth=1.5, linestyle=":")
    axes.annotate(
        f"at least {least:.3g} {unit}",
        (least, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, -1),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
    )


def _draw_outcomes(axes: Any, series: RunSeries) -> None:  # noqa: ANN401
    total = sum(sum(counts) for counts in series.outcomes.values())
    axes.set_title(f"Outcome of {total:,} demands")
    if _is_single(series):
        axes.set_xlabel("% of demands")
        shares = {name: 100 * sum(c) / max(1, total) for name, c in series.outcomes.items()}
        _stack(axes, shares)
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
    axes.set_ylim(0, 100)
    axes.margins(x=0.01)
    _legend_above(axes)


def _draw_span(axes: Any, series: RunSeries) -> None:  # noqa: ANN401
    total = sum(series.span_s.values())
    axes.set_title(f"From the bound to the run's {total:.3g} s")
    axes.set_xlabel("s")
    _stack(axes, dict(series.span_s))


def _draw_busy(axes: Any, series: RunSeries) -> None:  # noqa: ANN401
    names = list(series.busy)[::-1]
    shares = [100 * series.busy[name] for name in names]
    axes.set_title("In use")
    axes.set_xlabel("% of the run")
    bars = axes.barh(names, shares, 0.62, color=BLUE)
    axes.bar_label(bars, [f"{share:.0f} %" for share in shares], padding=3, fontsize=8.5)
    axes.set_xlim(0, 112)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.tick_params(axis="y", length=0)


def _stack(axes: Any, parts: Mapping[str, float]) -> None:  # noqa: ANN401
    """Draw one horizontal bar of parts, with a legend that gives each its figure."""
    begin = 0.0
    for name, size in parts.items():
        if size > 0:
            axes.barh([0], [size], 0.6, begin, color=COLOURS[name], label=f"{name} {size:.3g}")
            begin += size
    axes.set_yticks([])
    axes.set_ylim(-0.45, 0.75)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, begin * 1.02 or 1)
    _legend_above(axes)


def _legend_above(axes: Any) -> None:  # noqa: ANN401
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=len(handles),
            borderaxespad=0.1,
            handlelength=0.9,
            handletextpad=0.4,
            columnspacing=1,
        )


def _is_single(series: RunSeries) -> bool:
    return all(len(counts) == 1 for counts in series.outcomes.values())


def _unit(size: float) -> tuple[float, str]:
    """Return the decimal unit that suits a number of bytes."""
    units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")]
    return next(((scale, unit) for scale, unit in units if size >= scale), (1.0, "bytes"))
