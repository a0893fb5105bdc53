"""Tables and charts of accuracy say every figure with its interval, and whose it is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

mpl = pytest.importorskip("matplotlib.figure", reason="charts need matplotlib")

from moesim.simulator.results.plot_panels import THEMES  # noqa: E402 - after the skip
from moesim.validation import accuracy_charts  # noqa: E402
from moesim.validation.accuracy_published import EMOE, METRIC  # noqa: E402
from moesim.validation.accuracy_report import beside, markdown  # noqa: E402


def row(arm: str, saved: float, perplexity: float, **more: Any) -> dict[str, Any]:
    """Return a row as the tool writes it."""
    figures = {"perplexity": perplexity, "agreement": 0.9 - saved / 2, "kl_bits": saved}
    bounds = {f"{name}_95": [value * 0.9, value * 1.1] for name, value in figures.items()}
    fixed = {
        "arm": arm,
        "saved": saved,
        "share": 1 - saved,
        "orders": 2,
        "perplexity_by_order": [perplexity],
        "decode": None,
        "changed": 0.25,
        "mean_ttft_ms": 31.0,
        "mean_tpot_ms": None,
    }
    return figures | bounds | fixed | more


def document(**more: Any) -> dict[str, Any]:
    """Return a document of two arms and two shares."""
    rows = [row(arm, saved, 3 + 9 * saved) for arm in ("emoe", "fp8") for saved in (0.2, 0.4)]
    return {"order": "mixed", "scored_texts": 10, "rows": rows, "by_period": [], **more}


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that gives the figure which would have been written."""

    def paint(draw: Callable[..., None], *documents: Mapping[str, Any]) -> Any:
        figure = mpl.Figure(layout="constrained")

        def keep(fill: Callable[..., None], _path: Path, *, dark: bool, size_in: object) -> None:
            del size_in
            fill(figure, theme=THEMES[dark])

        monkeypatch.setattr(accuracy_charts, "save", keep)
        draw(documents, Path("chart.png"))
        return figure

    return paint


def test_every_figure_of_the_table_has_its_interval() -> None:
    """Perplexity, agreement, KL and what is beside them; noise is called so."""
    apart = {"arm": "static set", "bits": 0.3, "bits_95": [-0.1, 0.7], "within_noise": True}
    one = row("emoe", 0.4, 8.0, against=apart, decode={"kl_bits": 1, "kl_bits_95": [0.5, 1.5]})
    told = markdown([document(rows=[one])]).splitlines()[-1]
    assert told == (
        "| mixed x 2 | emoe | 40% | 8.00 [7.20, 8.80] | 70.0 [63.0, 77.0] "
        "| 0.400 [0.360, 0.440] "
        "| 1.000 [0.500, 1.500] | 25.0% | 31.00, none "
        "| +0.300 [-0.100, +0.700] static set (noise) |"
    )
    assert beside(row("static set", 0.4, 8.0)) == ""


def test_the_paper_stands_in_a_panel_of_its_own(painted: Callable[..., Any]) -> None:
    """Ours are perplexity and agreement; the paper's likeness is named and on no axis of ours."""
    ours, agreed, theirs = painted(accuracy_charts.plot_memory, document()).axes
    assert (ours.get_ylabel(), agreed.get_ylabel(), theirs.get_ylabel()) == (
        "perplexity of a byte",
        "top-1 agreement, %",
        METRIC,
    )
    shown = {(float(x), float(y)) for line in theirs.lines for x, y in line.get_xydata()}
    middles = {(100 * one.saved, (one.low_percent + one.high_percent) / 2) for one in EMOE}
    assert middles <= shown
    assert [text.get_text() for text in theirs.texts if "not said" in text.get_text()] == [
        "eMoE, memory not said"
    ]


def test_periods_have_perplexity_and_latency_on_one_chart(painted: Callable[..., Any]) -> None:
    """Both axes begin at nothing, so that what does not matter looks so."""
    swept = [row("emoe", 0.4, 8.0 + p / 40, period=p) for p in (1, 40, 80)]
    left, right = painted(accuracy_charts.plot, document(by_period=swept)).axes
    assert (left.get_ylabel(), right.get_ylabel()) == (
        "perplexity of a byte",
        "mean TTFT, ms (replayed)",
    )
    assert [int(tick) for tick in left.get_xticks()] == [1, 40, 80]
    assert (left.get_ylim()[0], right.get_ylim()[0]) == (0, 0)


def test_without_periods_the_chart_is_of_memory(tmp_path: Path) -> None:
    """What was measured decides; equal documents give equal files, below 300 kB."""
    paths = [tmp_path / "one.png", tmp_path / "other.png"]
    for path in paths:
        accuracy_charts.plot([document()], path)
    one, other = (path.read_bytes() for path in paths)
    assert one == other
    assert 10_000 < len(one) < 300_000
