"""The figure of a run shows its figures, with units, and equal runs give equal files."""

import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moesim.simulator.errors import InputError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.results.plot_panels import THEMES, fill
from moesim.simulator.results.plots import draw, plot_run
from moesim.simulator.results.run_result import RunResult
from moesim.simulator.results.run_series import RunSeries, series_of
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import prepare
from moesim.simulator.testing.tiny import tiny_trace

SERIES = RunSeries(
    title="a model on a machine: 12 ms mean TPOT ± 9 %",
    subtitles=("trace t (synthetic) · estimated figures", "system s: cache lru"),
    latencies_ms=[10.0, 12.0, 14.0],
    latency_name="time of each token, ms",
    sample_name="output token",
    bound_ms=8.0,
    bytes_per_token={"demand": 3e6, "prefetch, useful": 1e6, "rebalance": 0.0},
    least_bytes_per_token=2.5e6,
    outcomes={"hit": [6], "late": [0], "partial": [0], "miss": [2]},
    busy={"link": 0.96, "GPU": 0.08, "host": 0.01},
    span_s={"bound": 1.0, "more bytes": 0.5, "host": 0.0, "contention": 0.0, "waiting": 0.25},
)


def panels(series: RunSeries, *, dark: bool = False) -> dict[str, Axes]:
    """Return the panels of a figure by their titles."""
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    fill(figure, series, THEMES[dark])
    return {axes.get_title(): axes for axes in figure.axes}


def legend(axes: Axes) -> list[str]:
    """Return what the legend of a panel says."""
    shown = axes.get_legend()
    assert shown is not None
    return [text.get_text() for text in shown.get_texts()]


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    """Titles, axes and legends carry the figures of the series; what is 0 is left out."""
    shown = panels(SERIES)
    assert {title: axes.get_xlabel() for title, axes in shown.items()} == {
        "Latency by output token": "output token",
        "Copied to the GPU": "MB per token",
        "Outcome of 8 demands": "% of demands",
        "From the bound to the run's 1.75 s": "s",
        "In use": "% of the run",
    }
    assert legend(shown["Latency by output token"]) == ["mean 12 ms", "bound on the mean 8 ms"]
    assert legend(shown["Copied to the GPU"]) == ["least 2.5", "demand 3", "prefetch, useful 1"]
    assert legend(shown["Outcome of 8 demands"]) == ["hit 75 %", "miss 25 %"]
    assert legend(shown["From the bound to the run's 1.75 s"]) == [
        "bound 1",
        "more bytes 0.5",
        "waiting 0.25",
    ]
    assert [text.get_text() for text in shown["In use"].texts] == ["1 %", "8 %", "96 %"]


def test_outcomes_are_shown_by_layer_where_they_are_known_by_layer() -> None:
    """Each layer is a column of shares that sum to 100; the legend has the shares of the run."""
    by_layer = {"hit": [6, 0], "late": [0, 0], "partial": [0, 1], "miss": [2, 1]}
    axes = panels(replace(SERIES, outcomes=by_layer))["Outcome of 10 demands"]
    assert axes.get_xlabel() == "MoE layer"
    assert legend(axes) == ["hit 60.0 %", "partial 10.0 %", "miss 30.0 %"]
    tops = [0.0, 0.0]
    for bar in axes.patches:
        column = round(bar.get_x() + bar.get_width() / 2)
        tops[column] = max(tops[column], bar.get_y() + bar.get_height())
    assert tops == [100.0, 100.0]


def test_an_outlier_leaves_the_axis_and_is_told() -> None:
    """A first token 100 times slower does not flatten the others."""
    slow = replace(SERIES, latencies_ms=[1000.0, *[10.0 + n % 3 for n in range(500)]])
    axes = panels(slow)["Latency by output token"]
    assert axes.get_ylim()[1] < 20
    assert [text.get_text() for text in axes.texts] == [
        "beyond the axis: up to 1000 ms (output token 1)"
    ]


def test_many_tokens_are_drawn_as_ranges_and_medians() -> None:
    """Past 600 tokens groups are shown, and the legend says of how many."""
    long = replace(SERIES, latencies_ms=[float(n % 7) for n in range(3000)])
    labels = legend(panels(long)["Latency by output token"])
    assert labels[:2] == ["range of 10 output tokens", "median"]


def test_a_run_without_tokens_says_so() -> None:
    """No latency, no bytes and no demand still give every panel."""
    empty = replace(
        SERIES,
        latencies_ms=[],
        bound_ms=None,
        bytes_per_token={"demand": 0.0},
        least_bytes_per_token=0.0,
        outcomes={"hit": [0], "miss": [0]},
        span_s={"bound": 0.0},
    )
    shown = panels(empty)
    assert len(shown) == 5
    texts = shown["Latency by output token"].texts
    assert [text.get_text() for text in texts] == ["no token was generated"]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_equal_series_give_equal_files(tmp_path: Path, suffix: str) -> None:
    """Two drawings are the same bytes, the dark variant is not, and nothing else is left."""
    paths = [tmp_path / f"{name}.{suffix}" for name in ("one", "two", "dark")]
    for path in paths:
        draw(SERIES, path, dark=path.stem == "dark")
    one, two, dark = (path.read_bytes() for path in paths)
    assert one == two
    assert one != dark
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.name for p in paths)


def test_a_png_is_large_enough_to_read(tmp_path: Path) -> None:
    """The figure is 1500 pixels wide."""
    draw(SERIES, tmp_path / "run.png")
    header = (tmp_path / "run.png").read_bytes()[:24]
    assert struct.unpack(">II", header[16:]) == (1500, 1110)


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    """The message names the file and what would do."""
    with pytest.raises(InputError, match=r"run\.jpg: a plot ends in one of \.png, \.svg, \.pdf"):
        draw(SERIES, tmp_path / "run.jpg")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """One line names the file."""
    with pytest.raises(InputError, match=r"gone/run\.png: No such file or directory"):
        draw(SERIES, tmp_path / "gone" / "run.png")


def test_without_matplotlib_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra that has it is named, and no file is written."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'moesim\[validation\]'"):
        draw(SERIES, tmp_path / "run.png")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def result() -> RunResult:
    """Return a small run at a full-size model's cost."""
    spec = RunSpec(
        trace=tiny_trace(),
        trace_name="tiny",
        hardware="rtx4090",
        policies={"cache": "lru", "prefetch": "none", "schedule": "resident_first"},
        cost_of="mixtral-8x7b",
        memory=MemorySpec(slots="10"),
    )
    return prepare(spec).replay()


def test_a_series_holds_the_figures_of_its_run(result: RunResult) -> None:
    """Gaps, bytes, outcomes and parts of the span are those of the run; the title says of which."""
    series = series_of(result)
    row = result.row
    assert series.latencies_ms == [ns / 1e6 for ns in result.tokens.gaps_ns]
    assert sum(series.bytes_per_token.values()) == pytest.approx(row["bytes_total"] / row["tokens"])
    assert sum(sum(counts) for counts in series.outcomes.values()) == row["demands"]
    assert sum(series.span_s.values()) == pytest.approx(result.timings.span_ns / 1e9)
    assert list(series.busy) == ["link", "GPU", "host"]
    told = " ".join([series.title, *series.subtitles])
    for word in (row["model"], "rtx4090", "tiny", "synthetic", "custom", row["evidence"]):
        assert word in told


def test_a_run_is_drawn(result: RunResult, tmp_path: Path) -> None:
    """The one call that the command line makes writes the figure."""
    plot_run(result, tmp_path / "run.svg", dark=True)
    assert b"<svg" in (tmp_path / "run.svg").read_bytes()
