"""How MoEpic's configurator splits a layer's experts, and shares a budget among layers."""

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.simulator.policies.cache.adaptive_split import SplitQuestion
from moesim.simulator.policies.split_search import (
    LayerFigures,
    exposed_ns,
    share_budget,
    split_layer,
)
from moesim.simulator.policies.split_statistics import SplitStatistics

# N = 17 numbers of tops of 16 experts, K = 4 chosen.
EVEN_N = np.arange(17) / 16
FEW_N = np.minimum(1.0, np.arange(17) / 4)
COPY_NS = 1_000_000


def figures(hit_N: NDArray[np.float64] = EVEN_N, *, right: float = 1.0) -> LayerFigures:
    """Return a layer of experts of 1,600 bytes; predictions are as often cached as uses."""
    return LayerFigures(
        hit_N=hit_N,
        right_K=np.full(4, right),
        cached_KN=np.tile(hit_N, (4, 1)),
        expert_bytes=1600,
        copy_ns=COPY_NS,
        attention_ns=COPY_NS,
        experts_ns=COPY_NS,
    )


def test_questions_of_the_same_figures_are_equal() -> None:
    """Messages that carry them are compared; a single number of an array tells two apart."""
    asked, again = (SplitQuestion([figures()], 1600, 0.01) for _ in range(2))
    assert asked == again
    assert asked != SplitQuestion([figures(EVEN_N / 2)], 1600, 0.01)
    assert figures() != "figures"


def test_where_the_window_takes_all_bottoms_halves_of_all_beat_half_of_the_wholes() -> None:
    """Room for 8 of 16 evenly used experts and a window of 2 copies: 16 halves have all 4 ready."""
    found = split_layer(figures(), 8 * 1600, 2 * COPY_NS, 16)
    assert (found.pieces, found.tops) == (8, 16)
    assert found.ready == pytest.approx(4.0)
    assert found.exposed_ns == 0


def test_without_a_window_experts_stay_whole() -> None:
    """Nothing arrives in time, so only what is here as a whole is ready."""
    found = split_layer(figures(), 8 * 1600, 0, 16)
    assert (found.pieces, found.tops) == (16, 8)
    assert found.ready == pytest.approx(2.0)
    chances = [4, 6, 4, 1]  # of 16, that 1, 2, 3, 4 of the experts miss
    waits = [missing - (4 - missing) / 4 for missing in range(1, 5)]
    expected = sum(c * w for c, w in zip(chances, waits, strict=True)) / 16
    assert found.exposed_ns == pytest.approx(COPY_NS * expected)


def test_where_few_are_used_experts_stay_whole() -> None:
    """Four experts serve everything; tops of others would save nothing."""
    found = split_layer(figures(FEW_N), 4 * 1600, COPY_NS / 2, 16)
    assert (found.pieces, found.tops) == (16, 4)
    assert found.ready == pytest.approx(4.0)


def test_too_small_a_budget_keeps_nothing() -> None:
    """Tops of a piece for every expert of a token do not fit: all are fetched."""
    found = split_layer(figures(), 3 * 100, 10 * COPY_NS, 16)
    assert (found.pieces, found.tops) == (0, 0)
    assert found.ready == pytest.approx(4.0)


def test_more_budget_never_leaves_less_ready() -> None:
    """Of one layer at one window, ready experts grow with the budget."""
    ready = [split_layer(figures(), size, COPY_NS, 16).ready for size in range(0, 25600, 400)]
    assert ready == sorted(ready)


def test_budget_moves_to_the_layer_that_gains() -> None:
    """A layer of four much-used experts gives what it does not need to an evenly used one."""
    layers = [figures(FEW_N, right=0.0), figures(right=0.0)]
    found = share_budget(layers, 16 * 1600, pieces=16, step=0.0625)
    even = [split_layer(layer, 8 * 1600, 2 * COPY_NS, 16) for layer in layers]
    assert [split.tops for split in found] == [4, 12]
    assert exposed_ns(found) < exposed_ns(even)


def test_alike_layers_keep_even_shares() -> None:
    """Nothing is gained by moving budget between equals."""
    found = share_budget([figures()] * 3, 24 * 1600, pieces=16)
    assert len({(split.pieces, split.tops) for split in found}) == 1


def test_nothing_of_a_budget_is_left() -> None:
    """Shares of 4.9 experts hold four whole ones each; what is over is one more for most layers."""
    found = share_budget([figures(right=0.0)] * 10, 49 * 1600, pieces=1)
    assert sum(split.tops for split in found) == 49
    assert {split.pieces for split in found} == {1}


def test_statistics_count_places_in_the_order_of_priority() -> None:
    """Of two uses one stood first, one was unknown; the best prediction was right once in two."""
    known = SplitStatistics(2, 4, 2)
    assert known.is_empty
    for layer in (0, 1):
        known.learn(layer, ranked=[7, 5], activated=[7, 4], foreseen=[7, 5])
        known.learn(layer, ranked=[], activated=[], foreseen=[6, 5])
    assert known.hit_N(1).tolist() == [0.0, 0.5, 0.5, 0.5, 0.5]
    assert known.right_K(1).tolist() == [0.5, 0.0]
    assert known.cached_KN(1).tolist() == [[0.0, 0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5, 0.5]]
    assert not known.is_empty


def test_layers_lend_one_another_what_they_know() -> None:
    """A layer never seen is taken as the mean; one seen often is itself for the most part."""
    known = SplitStatistics(3, 4, 1)
    for _ in range(40):
        known.learn(0, ranked=[1], activated=[1], foreseen=[])
        known.learn(1, ranked=[1], activated=[2], foreseen=[])
    assert known.hit_N(2)[1] == pytest.approx(0.5)
    assert known.hit_N(0)[1] == pytest.approx((40 + 4) / (40 + 8))
    assert known.hit_N(1)[1] == pytest.approx(4 / 48)
