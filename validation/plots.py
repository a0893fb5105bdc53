"""Two figures of a validation: predicted against measured, and one token's timeline both ways."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moesim.simulator.results.plot_panels import AMBER, BLUE, GREEN, GREY, PURPLE, RED
from moesim.simulator.results.plots import save
from moesim.validation.evidence import Evidence, Job
from moesim.validation.statistics import MEAN
from moesim.validation.tables import verdict_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERDICTS = {"within": GREEN, "out": RED, "noisy": GREY, "decided": PURPLE}
PREFETCH = "(prefetch)"
SIZE_IN = (10, 4.6)


def plot_cells(found: Sequence[Evidence], path: Path, *, dark: bool = False) -> None:
    """Draw every cell's predicted against its measured mean TPOT, and the errors beside."""

    def fill(figure: "Figure", *, theme: Mapping[str, str]) -> None:
        against, errors = figure.subplots(1, 2, width_ratios=(1, 1.1))
        _draw_against(against, found, theme)
        _draw_errors(errors, found, theme)

    save(fill, path, dark=dark, size_in=SIZE_IN)


def plot_timeline(one: Evidence, path: Path, *, dark: bool = False) -> None:
    """Draw one token's jobs as predicted and as executed, on one scale."""

    def fill(figure: "Figure", *, theme: Mapping[str, str]) -> None:
        cell = one.prediction.cell
        figure.suptitle(
            f"{cell.system} at {cell.budget}: decode token {cell.warm_tokens + 1}",
            color=theme["ink"],
            fontsize=11,
        )
        sides = {"predicted": one.prediction.timeline, "executed": one.timeline}
        tracks = list(dict.fromkeys(job.track for jobs in sides.values() for job in jobs))[::-1]
        panels = figure.subplots(2, 1, sharex=True)
        for axes, (title, jobs) in zip(panels, sides.items(), strict=True):
            axes.set_title(title)
            axes.grid(axis="x")
            for job in jobs:
                _draw_job(axes, job, tracks.index(job.track))
            axes.set_yticks(range(len(tracks)), tracks)
            axes.set_ylim(-0.6, len(tracks) - 0.4)
        panels[-1].set_xlabel("ms since the token before")

    save(fill, path, dark=dark, size_in=SIZE_IN)


def _draw_against(axes: "Axes", found: Sequence[Evidence], theme: Mapping[str, str]) -> None:
    axes.set_title("Mean TPOT")
    axes.set_xlabel("measured, ms")
    axes.set_ylabel("predicted, ms")
    axes.grid()
    largest = 1.1 * max(
        max(one.judged.measured.mean_tpot, one.prediction.outcome.times.mean_tpot) for one in found
    )
    line = [0.0, largest]
    axes.plot(line, line, color=theme["ink"], linewidth=1)
    low, high = ([side * x for x in line] for side in (1 - MEAN.least, 1 + MEAN.least))
    axes.fill_between(line, low, high, color=GREEN, alpha=0.2, linewidth=0, label="3 %")
    seen = set()
    for one in found:
        name, measured = verdict_of(one), one.judged.measured.mean_tpot
        axes.errorbar(
            measured,
            one.prediction.outcome.times.mean_tpot,
            xerr=one.judged.spread * measured,
            fmt="o",
            markersize=5,
            color=VERDICTS[name],
            label=None if name in seen else name,
        )
        seen.add(name)
    axes.set_xlim(0, largest)
    axes.set_ylim(0, largest)
    axes.legend(loc="upper left")


def _draw_errors(axes: "Axes", found: Sequence[Evidence], theme: Mapping[str, str]) -> None:
    axes.set_title("Error, and the spread of the executions")
    axes.set_xlabel("% of measured")
    axes.grid(axis="x")
    axes.axvline(0, color=theme["ink"], linewidth=1)
    names = [f"{one.prediction.cell.system}  {one.prediction.cell.budget}" for one in found]
    for row, one in enumerate(found):
        colour = VERDICTS[verdict_of(one)]
        axes.barh(row, 200 * one.judged.spread, 0.7, -100 * one.judged.spread, color=theme["faint"])
        axes.plot(100 * one.judged.error["mean_tpot"], row, "o", color=colour, markersize=5)
    axes.set_yticks(range(len(found)), names)
    axes.invert_yaxis()


def _draw_job(axes: "Axes", job: Job, row: int) -> None:
    if job.name.startswith("copy"):
        colour = BLUE if PREFETCH in job.name else RED
    else:
        colour = GREEN if job.name.startswith("run") else AMBER
    length_ms = (job.end_ns - job.begin_ns) / 1e6
    axes.barh(row, length_ms, 0.7, job.begin_ns / 1e6, color=colour)
