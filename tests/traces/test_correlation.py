"""How alike sorted ids of experts are, by hand and by chance."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.traces import describe, load, synthetic
from moesim.traces.correlation import correlation, uses_of


def test_equal_sets_correlate_fully() -> None:
    """Every layer and every request uses the same experts: 1, whatever chance would give."""
    use_RLE = np.zeros((3, 4, 8))
    use_RLE[..., [2, 7]] = 1
    found = correlation(use_RLE, 2, 8)
    assert (found.layers, found.requests) == (1, 1)


def test_the_figures_are_pearsons_of_the_pairs() -> None:
    """Two requests of two layers, all four pairs of ids written out."""
    use_RLE = np.zeros((2, 2, 4))
    for (request, layer), experts in {(0, 0): [0, 1], (0, 1): [1, 3], (1, 0): [0, 3]}.items():
        use_RLE[request, layer, experts] = 1
    use_RLE[1, 1, [2, 3]] = 1
    found = correlation(use_RLE, 2, 4)
    layers = np.corrcoef([0, 1, 0, 3], [1, 3, 2, 3])[0, 1]
    requests = np.corrcoef([0, 1, 1, 3], [0, 3, 2, 3])[0, 1]
    assert found.layers == pytest.approx(layers)
    assert found.requests == pytest.approx(requests)


@pytest.mark.parametrize(("top_k", "experts"), [(2, 8), (4, 32), (8, 128)])
def test_independent_sets_correlate_as_the_formula_says(top_k: int, experts: int) -> None:
    """Drawn sets come to it within the noise of the draw, 0.43 for 2 of 8."""
    drawn_RLE = np.random.default_rng(0).random((2000, 8, experts))
    found = correlation(drawn_RLE, top_k, experts)
    assert found.independent == pytest.approx(found.layers, abs=0.02)
    assert found.independent == pytest.approx(found.requests, abs=0.02)
    if experts == 8:
        assert round(found.independent, 2) == 0.43


def test_where_nothing_follows_nothing_correlates() -> None:
    """One request of one layer has no neighbour, and absent rows are no set."""
    found = correlation(np.ones((1, 1, 4)), 2, 4)
    assert (found.layers, found.requests) == (None, None)
    trace = synthetic.uniform(seed=0, layers=2, experts=4, top_k=2, requests=2)
    absent = replace(trace, expert_TLK=np.full_like(trace.expert_TLK, -1))
    assert not any(use_LE.any() for use_LE in uses_of(absent))
    assert describe(absent)["id_correlation_layers"] is None


def test_the_uses_of_requests_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted few rows at a time, choices add up to the same."""
    trace = synthetic.zipf(seed=0, requests=3, tasks=2)
    whole = [use_LE.tolist() for use_LE in uses_of(trace)]
    monkeypatch.setattr("moesim.traces.checks.BLOCK_VALUES", 40)
    assert whole == [use_LE.tolist() for use_LE in uses_of(trace)]


def test_what_the_readme_of_emoe_prints(shared_data: Path) -> None:
    """The recording of gpt-oss-20b, in recorded order, as `moesim trace info` shows it."""
    facts = describe(load(shared_data / "traces" / "gpt-oss-20b"))
    names = ("layers", "requests", "independent")
    found = [round(float(facts[f"id_correlation_{name}"] or 0), 2) for name in names]
    assert found == [0.7, 0.76, 0.64]
