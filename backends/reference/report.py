"""The gates of the reference model as tables, beside the untrained model's figures.

``python -m moesim.backends.reference.report`` prints what the committed reports say: of
``scratch``, whose weights ship, of ``upcycled``, which one command rebuilds, and of how well the
next experts of ``scratch`` are foretold. ``--into README.md`` also puts the tables between that
file's two marks. A gate that is missed is shown as missed, and the exit code is then 1.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights"
SCRATCH = WEIGHTS / "report.json"
UPCYCLED = FOLDER / "upcycled.json"
RECALL = FOLDER / "recall.json"
REBUILD = {
    SCRATCH: "train CORPORA... -o DIR, and put its folder there",
    UPCYCLED: "train CORPORA... -o DIR --upcycle, and put its report.json there",
    RECALL: "foretelling",
}
START, END = "<!-- gates: start -->", "<!-- gates: end -->"
MISSED = "**missed**"
MOST_BITS = {"german": 1.8, "computing_dictionary": 2.0, "python": 1.65}
LEAST_RANDOM_COST_BITS = 2.0
MOST_RANDOM_COST_SHARE = 0.5
MOST_HALF_RATIO = 0.5
LEAST_LOAD = 0.25
Figures = Mapping[str, float]
Row = tuple[str, ...]


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


def gates(report: Mapping[str, Any], scratch: Mapping[str, Any]) -> list[Row]:
    """Return rows of gate, what is wanted, trained, untrained, and whether the trained passes.

    The halves are no gate of an upcycled model, where either costs next to nothing.

    Args:
        report: What is judged.
        scratch: The report of the model that was a MoE from the start, whose random routing an
            upcycled one has to undercut.
    """
    trained, untrained = report["trained"]["overall"], report["untrained"]
    rows: list[Row] = []
    for task, most in MOST_BITS.items():
        if task in report["trained"]["tasks"]:
            bits = report["trained"]["tasks"][task]["bits_per_byte"]
            name = f"bits per byte, {task.replace('_', ' ')}"
            rows.append((name, f"≤ {most}", f"{bits:.2f}", "", _verdict(passed=bits <= most)))
    cost = random_cost(trained)
    is_upcycled = report["provenance"]["upcycled"]
    if is_upcycled:
        most_cost = MOST_RANDOM_COST_SHARE * random_cost(scratch["trained"]["overall"])
        wanted, passed = f"≤ {most_cost:.2f}, half of scratch's", cost <= most_cost
    else:
        wanted, passed = f"≥ {LEAST_RANDOM_COST_BITS}", cost >= LEAST_RANDOM_COST_BITS
    ratio, least = half_ratio(trained), trained["least_load_over_even"]
    rows += [
        (
            "random routing costs, bits per byte",
            wanted,
            f"{cost:.2f}",
            f"{random_cost(untrained):.2f}",
            _verdict(passed=passed),
        ),
        (
            "cost of a task's own half over the global half",
            "" if is_upcycled else f"≤ {MOST_HALF_RATIO}",
            _number(ratio),
            _number(half_ratio(untrained)),
            "" if is_upcycled else _verdict(passed=ratio is not None and ratio <= MOST_HALF_RATIO),
        ),
        (
            "least load of an expert over its even share",
            f"≥ {LEAST_LOAD}",
            f"{least:.2f}",
            f"{untrained['least_load_over_even']:.2f}",
            _verdict(passed=least >= LEAST_LOAD),
        ),
    ]
    for key, name in (
        ("bits_per_byte", "bits per byte, mean of the tasks"),
        ("load_entropy", "entropy of the load over the greatest"),
        ("reuse_at_lag_1", "reuse by the next token"),
        ("reuse_if_independent", "reuse if drawn independently in each task"),
    ):
        rows.append((name, "", f"{trained[key]:.3f}", f"{untrained[key]:.3f}", ""))
    return rows


def render(name: str, report: Mapping[str, Any], scratch: Mapping[str, Any]) -> str:
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
        f"`{name}`, bits per byte (uniform: 8)", "model", "bigram", "gzip", "random routing",
        "own half", "global half",
    )  # fmt: skip
    return f"{_table(head, gates(report, scratch))}\n\n{_table(task_head, tasks)}"


def render_recall(recall: Mapping[str, Any]) -> str:
    """Return the table of how well the experts of the next layers are foretold."""
    names = {
        "popular": "its most popular experts",
        "table": "a transition table",
        "look_in": "look-ahead from the layer's input",
        "look_out": "look-ahead from the layer's output",
    }
    head = ("`scratch`, recall of the layer's experts", "layers ahead", "trained", "untrained")
    rows = [
        (name, "any" if key == "popular" else str(ahead), _number(trained), _number(untrained))
        for key, name in names.items()
        for ahead, (trained, untrained) in enumerate(
            zip(recall["trained"][key], recall["untrained"][key], strict=True), start=1
        )
    ]
    return _table(head, rows)


def _verdict(*, passed: bool) -> str:
    return "passes" if passed else MISSED


def _number(value: float | None) -> str:
    return "costs nothing" if value is None else f"{value:.3f}"


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


def read_and_render() -> str:
    """Return all tables of the committed reports.

    Raises:
        FileNotFoundError: A report is not there; the message names it and what makes it.
    """
    scratch, upcycled = _read(SCRATCH), _read(UPCYCLED)
    tables = [
        render("scratch", scratch, scratch),
        render("upcycled", upcycled, scratch),
        render_recall(_read(RECALL)),
    ]
    return "\n\n".join(tables)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not there; make it with: python -m moesim.backends.reference.{REBUILD[path]}"
        )
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> int:
    """Print the tables; return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description="Print the gates of the reference model.")
    parser.add_argument("--into", type=Path, help="a file that has the two marks")
    options = parser.parse_args()
    try:
        tables = read_and_render()
        if options.into is not None:
            options.into.write_text(put_into(options.into.read_text(), tables))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - what the command is for
        return 1
    print(tables)  # noqa: T201 - what the command is for
    return int(MISSED in tables)


if __name__ == "__main__":
    sys.exit(main())
