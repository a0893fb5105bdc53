"""The tables of ``validation/accuracy.py``, of one document or of several.

``python -m moesim.validation.accuracy_report FILES`` prints a Markdown table of all of them, and
draws what ``--memory`` and ``--periods`` name.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesim.validation.accuracy_charts import plot_memory, plot_periods

Row = Mapping[str, Any]
HEAD = (
    f"{'arm':<20}{'experts':>8}{'perplexity':>12}{'95 %':>18}{'top-1':>8}{'KL bits':>9}"
    f"{'in decode':>10}{'changed':>9}{'TTFT ms':>10}{'TPOT ms':>10}  bits of a byte against\n"
)
COLUMNS = (
    "order",
    "arm",
    "saved",
    "perplexity [95 %]",
    "top-1, % [95 %]",
    "KL, bits [95 %]",
    "KL in decode [95 %]",
    "changed",
    "TTFT, TPOT ms",
    "bits of a byte against [95 %]",
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
    lines = [_cells(COLUMNS), _cells(["---"] * len(COLUMNS))]
    for document in documents:
        for row in [*document["rows"], *document["by_period"]]:
            name = f"{row['arm']}, p = {row['period']}" if "period" in row else row["arm"]
            decode = row["decode"]
            cells = [
                f"{document['order']} x {row['orders']}",
                name,
                f"{row['saved']:.0%}",
                _within(row, "perplexity", 2),
                _within(row, "agreement", 1, scale=100),
                _within(row, "kl_bits", 3),
                "none" if decode is None else _within(decode, "kl_bits", 3),
                f"{row['changed']:.1%}",
                f"{_time(row['mean_ttft_ms'])}, {_time(row['mean_tpot_ms'])}",
                beside(row),
            ]
            lines.append(_cells(cells))
    return "".join(lines)


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def _within(row: Row, name: str, digits: int, scale: float = 1) -> str:
    """Return a figure with its interval."""
    low, high = (f"{scale * bound:.{digits}f}" for bound in row[f"{name}_95"])
    return f"{scale * row[name]:.{digits}f} [{low}, {high}]"


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of several documents and draw them."""
    parser = argparse.ArgumentParser(prog="python -m moesim.validation.accuracy_report")
    parser.add_argument("files", type=Path, nargs="+", help="JSON of moesim.validation.accuracy")
    parser.add_argument("--memory", type=Path, help="loss against memory, the paper's beside")
    parser.add_argument("--periods", type=Path, help="perplexity and latency against p")
    options = parser.parse_args(arguments)
    documents = [json.loads(path.read_text()) for path in options.files]
    sys.stdout.write(markdown(documents))
    if options.memory is not None:
        plot_memory(documents, options.memory)
    if options.periods is not None:
        plot_periods(documents, options.periods)
    return 0


if __name__ == "__main__":
    sys.exit(main())
