"""``moesim frontier`` as a user calls it."""

import csv
from pathlib import Path

import pytest

from moesim.simulator.frontier.curves import COLUMNS


def test_it_prints_every_tenth_the_cliff_and_the_useful_region(cli, sample: Path) -> None:
    """Ten lines of hit rates, and where memory begins and ceases to pay."""
    done = cli("frontier", sample, "--requests", 2)
    assert done.code == 0
    assert [line.split()[:3] for line in done.out.splitlines() if " %  " in line[:7]] == [
        [str(10 * tenth), "%", str(round(384 * tenth / 10))] for tenth in range(1, 11)
    ]
    assert "hits nothing in decode up to 44 slots (11.5 %)" in done.out
    assert "useful region of lru:" in done.out


def test_the_csv_equals_a_simulation_and_the_plot_is_drawn(
    cli, simulate, sample: Path, tmp_path: Path
) -> None:
    """A row of the file holds the misses that moesim simulate counts at the same slots."""
    out, plot, runs = tmp_path / "f.csv", tmp_path / "f.svg", tmp_path / "runs.csv"
    pytest.importorskip("matplotlib")
    done = cli("frontier", sample, "--requests", 3, "-o", out, "--plot", plot, "--quiet")
    assert (done.code, done.out) == (0, "")
    assert "LRU cliff: 44 slots" in plot.read_text(encoding="utf-8")
    assert simulate("--slots", 96, "--csv", runs, "--quiet").code == 0
    with out.open(encoding="utf-8") as curve, runs.open(encoding="utf-8") as simulated:
        rows = csv.DictReader(curve)
        assert tuple(rows.fieldnames) == COLUMNS
        (found,) = [r for r in rows if (r["cache"], r["layer"], r["slots"]) == ("lru", "all", "96")]
        (row,) = csv.DictReader(simulated)
    for key in ("demands", "hits", "misses", "decode_hit_rate"):
        assert float(found[key]) == float(row[key])


def test_the_same_trace_gives_the_same_bytes(cli, sample: Path, tmp_path: Path) -> None:
    """Curves and figure do not tell when they were made."""
    pytest.importorskip("matplotlib")
    files = []
    for name in ("a", "b"):
        out, plot = tmp_path / f"{name}.csv", tmp_path / f"{name}.png"
        assert cli("frontier", sample, "--requests", 1, "-o", out, "--plot", plot, "-q").code == 0
        files.append((out.read_bytes(), plot.read_bytes()))
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cache", "fifo"), "cache policy fifo is no stack policy"),
        (("-o", "nowhere/f.csv"), "there is no folder nowhere; make it first"),
        (("--plot", "f.txt"), "a plot ends in one of .png, .svg, .pdf"),
    ],
)
def test_what_cannot_be_done_is_one_line(cli, sample: Path, words, message: str) -> None:
    """Before anything is computed or written."""
    done = cli("frontier", sample, *words)
    assert done.code == 1
    assert message in done.err
    assert done.err.count("\n") == 1
