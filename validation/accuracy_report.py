"""The tables and charts of ``validation/accuracy.py``, of one document or of several.

``python -m moesim.validation.accuracy_report FILES`` prints a Markdown table of all of them, and
draws what ``--memory`` and ``--periods`` name.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.simulator.results.plot_panels import AMBER, BLUE, GREEN, GREY, PURPLE, RED
from moesim.simulator.results.plots import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
SIZE_IN = (7.2, 4.2)
COLOURS = (BLUE, AMBER, GREEN, RED, PURPLE, GREY)
HEAD = (
    f"{'arm':<20}{'experts':>8}{'perplexity':>12}{'95 %':>18}{'top-1':>8}{'KL bits':>9}"
    f"{'in decode':>10}{'changed':>9}{'TTFT ms':>10}{'TPOT ms':>10}  bits of a byte against\n"
)
MARKDOWN = (
    "| order | arm | saved | perplexity [95 %] | top-1 | KL bits [95 %] | hits "
    "| bits against [95 %] |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n"
)


def table(rows: Sequence[Row], by_period: Sequence[Row]) -> str:
    """Return both tables as text."""
    text = "".join([HEAD, *map(_line, rows)])
    if not by_period:
        return text
    lines = [f"p = {row['period']:<4}{_line(row)}" for row in by_period]
    return "".join([text, "\n", f"{'':<8}{HEAD}", *lines])


def markdown(documents: Sequence[Row]) -> str:
    """Return the rows of several documents as one Markdown table."""
    lines = []
    for document in documents:
        for row in [*document["rows"], *document["by_period"]]:
            name = f"{row['arm']}, p = {row['period']}" if "period" in row else row["arm"]
            low, high = row["perplexity_95"]
            cells = [
                document["order"] + f" x {row['orders']}",
                name,
                f"{row['saved']:.0%}",
                f"{row['perplexity']:.2f} [{low:.2f}, {high:.2f}]",
                f"{row['agreement']:.1%}",
                "{:.3f} [{:.3f}, {:.3f}]".format(row["kl_bits"], *row["kl_bits_95"]),
                f"{1 - row['changed']:.1%}",
                beside(row),
            ]
            lines.append("| " + " | ".join(cells) + " |\n")
    return "".join([MARKDOWN, *lines])


def beside(row: Row) -> str:
    """Return how a row differs from the one that it was compared with, and if that is noise."""
    if "against" not in row:
        return ""
    found = row["against"]
    low, high = found["bits_95"]
    name = f"p = {found['arm']}" if found["arm"].isdigit() else found["arm"]
    noise = " (noise)" if found["within_noise"] else ""
    return f"{found['bits']:+.3f} [{low:+.3f}, {high:+.3f}] {name}{noise}"


def _time(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _line(row: Row) -> str:
    decode = "none" if row["decode"] is None else f"{row['decode']['kl_bits']:.3f}"
    low, high = row["perplexity_95"]
    return (
        f"{row['arm']:<20}{row['share']:>8.0%}{row['perplexity']:>12.2f}"
        f"{f'[{low:.2f}, {high:.2f}]':>18}{row['agreement']:>8.1%}{row['kl_bits']:>9.3f}"
        f"{decode:>10}{row['changed']:>9.1%}{_time(row['mean_ttft_ms']):>10}"
        f"{_time(row['mean_tpot_ms']):>10}  {beside(row)}\n"
    )


def plot_periods(documents: Sequence[Row], path: Path, *, dark: bool = False) -> None:
    """Draw perplexity with its interval, and latency, against p: one panel for each document."""
    save(partial(_periods, documents=documents), path, dark=dark, size_in=SIZE_IN)


def plot_memory(documents: Sequence[Row], path: Path, *, dark: bool = False) -> None:
    """Draw perplexity with its interval against the expert memory that is saved."""
    save(partial(_memory, documents=documents), path, dark=dark, size_in=SIZE_IN)


def _bars(rows: Sequence[Row]) -> list[list[float]]:
    """Return how far intervals reach below and above the means."""
    return [
        [row["perplexity"] - row["perplexity_95"][0] for row in rows],
        [row["perplexity_95"][1] - row["perplexity"] for row in rows],
    ]


def _periods(figure: "Figure", /, *, documents: Sequence[Row], theme: Mapping[str, str]) -> None:
    share = documents[0]["by_period"][0]["share"]
    figure.suptitle(
        f"eMoE with {share:.0%} of the experts: 95 % of resampled texts, dots are single orders",
        x=0.01,
        ha="left",
        color=theme["ink"],
        fontsize=11,
    )
    panels = figure.subplots(1, len(documents), squeeze=False, sharey=True)[0]
    for left, document in zip(panels, documents, strict=True):
        rows = document["by_period"]
        periods = [row["period"] for row in rows]
        means = [row["perplexity"] for row in rows]
        left.errorbar(periods, means, yerr=_bars(rows), color=BLUE, marker="o", capsize=3)
        for row in rows:
            single = row["perplexity_by_order"]
            left.plot([row["period"]] * len(single), single, ".", color=BLUE, alpha=0.5)
        right = left.twinx()
        right.plot(periods, [row["mean_ttft_ms"] for row in rows], color=AMBER, marker="s")
        right.set_ylabel("mean TTFT, ms (replayed)", color=AMBER)
        left.set_title(f"{document['order']}, {document['scored_texts']} texts", fontsize=10)
        left.set_ylabel("perplexity of a byte", color=BLUE)
        left.set_xlabel("p: prompts between predictions")
        left.set_xticks(periods, [str(period) for period in periods])
        left.grid()


def _memory(figure: "Figure", /, *, documents: Sequence[Row], theme: Mapping[str, str]) -> None:
    figure.suptitle(
        "Perplexity against expert memory saved, 95 % of resampled texts",
        x=0.01,
        ha="left",
        color=theme["ink"],
        fontsize=12,
    )
    axes = figure.subplots()
    by_arm: dict[str, list[Row]] = {}
    for document in documents:
        for row in document["rows"]:
            by_arm.setdefault(row["arm"], []).append(row)
    for at, (name, rows) in enumerate(by_arm.items()):
        placed = sorted(rows, key=lambda row: row["saved"])
        saved = [row["saved"] for row in placed]
        means = [row["perplexity"] for row in placed]
        axes.errorbar(
            saved,
            means,
            yerr=_bars(placed),
            color=COLOURS[at % len(COLOURS)],
            marker="os^v"[at // len(COLOURS) % 4],
            capsize=3,
            linewidth=1.2,
            label=name,
        )
    axes.set_yscale("log")
    axes.set_xlabel("share of the expert memory saved")
    axes.set_ylabel("perplexity of a byte")
    axes.legend(fontsize=8)
    axes.grid()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of several documents and draw them."""
    parser = argparse.ArgumentParser(prog="python -m moesim.validation.accuracy_report")
    parser.add_argument("files", type=Path, nargs="+", help="JSON of moesim.validation.accuracy")
    parser.add_argument("--memory", type=Path, help="perplexity against memory")
    parser.add_argument("--periods", type=Path, help="perplexity and latency against p")
    options = parser.parse_args(arguments)
    documents = [json.loads(path.read_text()) for path in options.files]
    sys.stdout.write(markdown(documents))
    if options.memory is not None:
        plot_memory([one for one in documents if one["rows"]], options.memory)
    if options.periods is not None:
        plot_periods([one for one in documents if one["by_period"]], options.periods)
    return 0


if __name__ == "__main__":
    sys.exit(main())
