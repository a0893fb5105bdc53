"""The table and the chart of ``validation/accuracy.py``."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.simulator.plot_panels import AMBER, BLUE
from moesim.simulator.plots import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
SIZE_IN = (7.2, 4.2)
HEAD = (
    f"{'arm':<14}{'experts':>8}{'bits':>8}{'perplexity':>12}{'top-1':>8}{'KL bits':>9}"
    f"{'in decode':>10}{'changed':>9}{'TTFT ms':>10}{'TPOT ms':>10}{'drift':>8}{'open loop':>11}\n"
)


def table(rows: Sequence[Row], by_period: Sequence[Row]) -> str:
    """Return both tables as text."""
    text = "".join([HEAD, *map(_line, rows)])
    if not by_period:
        return text
    lines = [f"p = {row['period']:<4}{_line(row)}" for row in by_period]
    return "".join([text, "\n", f"{'':<8}{HEAD}", *lines])


def _line(row: Row) -> str:
    tpot = "none" if row["mean_tpot_ms"] is None else f"{row['mean_tpot_ms']:.2f}"
    decode = "none" if row["decode"] is None else f"{row['decode']['kl_bits']:.3f}"
    opened = row.get("open_loop")
    apart = "" if opened is None else f"{row['drift']:>8.1%}{opened['changed']:>11.1%}"
    return (
        f"{row['arm']:<14}{row['share']:>8.0%}{row['bits']:>8.3f}{row['perplexity']:>12.2f}"
        f"{row['agreement']:>8.1%}{row['kl_bits']:>9.3f}{decode:>10}{row['changed']:>9.1%}"
        f"{row['mean_ttft_ms']:>10.2f}{tpot:>10}{apart}\n"
    )


def plot_periods(by_period: Sequence[Row], path: Path, *, dark: bool = False) -> None:
    """Draw perplexity and latency against p on one chart."""
    save(partial(_paint, by_period=by_period), path, dark=dark, size_in=SIZE_IN)


def _paint(figure: "Figure", /, *, by_period: Sequence[Row], theme: Mapping[str, str]) -> None:
    share = by_period[0]["share"]
    figure.suptitle(
        f"eMoE with {share:.0%} of the experts", x=0.01, ha="left", color=theme["ink"], fontsize=12
    )
    periods = [row["period"] for row in by_period]
    left = figure.subplots()
    right = left.twinx()
    for axes, key, name, colour in (
        (left, "perplexity", "perplexity of a byte", BLUE),
        (right, "mean_ttft_ms", "mean TTFT, ms (replayed)", AMBER),
    ):
        axes.plot(periods, [row[key] for row in by_period], color=colour, marker="o", linewidth=1.6)
        axes.set_ylabel(name, color=colour)
    left.set_xlabel("p: prompts from one prediction to the next")
    left.set_xticks(periods, [str(period) for period in periods])
    left.grid()
