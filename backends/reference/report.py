"""The gates of the reference model as a table, beside the untrained model's figures.

``python -m moesim.backends.reference.report`` prints what ``report.json`` of each weights folder
says; ``--into README.md`` also puts it between that file's two marks. A gate that is missed is
shown as missed.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"
START, END = "<!-- gates: start -->", "<!-- gates: end -->"
MOST_BITS = {"german": 1.8, "computing_dictionary": 2.0, "python": 1.65}
LEAST_RANDOM_COST_BITS = 2.0
MOST_HALF_RATIO = 0.5
LEAST_LOAD = 0.25
Figures = Mapping[str, float]


def random_cost(overall: Figures) -> float:
    """Return what random routing costs, in bits per byte."""
    return overall["random_routing"] - overall["bits_per_byte"]


def half_ratio(overall: Figures) -> float | None:
    """Return the cost of a task's own half of the experts over that of the global half.

    None where the global half costs nothing worth dividing by.
    """
    own = overall["own_half"] - overall["bits_per_byte"]
    anybodys = overall["global_half"] - overall["bits_per_byte"]
    smallest = 0.01
    return own / anybodys if anybodys > smallest else None


def gates(report: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Return rows of gate, what is wanted, trained, untrained, and whether the trained passes."""
    trained, untrained = report["trained"]["overall"], report["untrained"]
    rows = []
    for task, most in MOST_BITS.items():
        if task in report["trained"]["tasks"]:
            bits = report["trained"]["tasks"][task]["bits_per_byte"]
            name = f"bits per byte, {task.replace('_', ' ')}"
            rows.append((name, f"≤ {most}", f"{bits:.2f}", "", _verdict(passed=bits <= most)))
    cost = random_cost(trained)
    rows.append(
        (
            "random routing costs, bits per byte",
            f"≥ {LEAST_RANDOM_COST_BITS}",
            f"{cost:.2f}",
            f"{random_cost(untrained):.2f}",
            _verdict(passed=cost >= LEAST_RANDOM_COST_BITS),
        )
    )
    ratio = half_ratio(trained)
    rows.append(
        (
            "cost of a task's own half over the global half",
            f"≤ {MOST_HALF_RATIO}",
            _number(ratio, 3),
            _number(half_ratio(untrained), 3),
            _verdict(passed=ratio is not None and ratio <= MOST_HALF_RATIO),
        )
    )
    least = trained["least_load_over_even"]
    rows.append(
        (
            "least load of an expert over its even share",
            f"≥ {LEAST_LOAD}",
            f"{least:.2f}",
            f"{untrained['least_load_over_even']:.2f}",
            _verdict(passed=least >= LEAST_LOAD),
        )
    )
    for key, name in (
        ("bits_per_byte", "bits per byte, mean of the tasks"),
        ("load_entropy", "entropy of the load over the greatest"),
        ("reuse_at_lag_1", "reuse by the next token"),
        ("reuse_if_independent", "reuse if drawn independently in each task"),
    ):
        rows.append((name, "", f"{trained[key]:.3f}", f"{untrained[key]:.3f}", ""))
    return rows


def render(name: str, report: Mapping[str, Any]) -> str:
    """Return two Markdown tables: the gates, and the tasks beside the baselines."""
    head = (f"`{name}`", "gate", "trained", "untrained", "")
    tasks = [
        (
            task.replace("_", " "),
            *(
                f"{figures[key]:.2f}"
                for key in (
                    "bits_per_byte", "bigram", "gzip", "random_routing", "own_half", "global_half",
                )
            ),
        )
        for task, figures in sorted(report["trained"]["tasks"].items())
    ]  # fmt: skip
    task_head = (
        "bits per byte (uniform: 8)", "model", "bigram", "gzip", "random routing",
        "own half", "global half",
    )  # fmt: skip
    return f"{_table(head, gates(report))}\n\n{_table(task_head, tasks)}"


def _verdict(*, passed: bool) -> str:
    return "passes" if passed else "**missed**"


def _number(value: float | None, digits: int) -> str:
    return "costs nothing" if value is None else f"{value:.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def put_into(text: str, table: str) -> str:
    """Return the text with the table between its marks.

    Raises:
        ValueError: The marks are not there.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"no {START} and {END}; put both marks where the table belongs")
    return f"{before}{START}\n{table}\n{END}{after}"


def read_and_render(folders: Sequence[Path]) -> str:
    """Return the tables of the folders' reports."""
    return "\n\n".join(
        render(folder.name, json.loads((folder / "report.json").read_text())) for folder in folders
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Print the gates of the reference model.")
    parser.add_argument("folders", type=Path, nargs="*", help="with a report.json each")
    parser.add_argument("--into", type=Path, help="a file that has the two marks")
    options = parser.parse_args()
    table = read_and_render(options.folders or [WEIGHTS])
    print(table)  # noqa: T201 - what the command is for
    if options.into is not None:
        options.into.write_text(put_into(options.into.read_text(), table))


if __name__ == "__main__":
    main()
