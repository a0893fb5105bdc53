"""How to share a budget among layers and split their experts: MoEpic's divide and conquer.

*Divide*: of one layer's budget, n tops of a share theta of an expert each, such that most of the
experts that a token activates are ready in VRAM when its router has run. *Conquer*: hundredths of
the whole budget move from the layer that would lose least to the layer that gains most, as long as
the token's time falls.

MoEpic's own equations are not public; these are a reconstruction from what is reported of them
(sections 3.1 and 3.4 of arXiv 2509.08342). Three things are worked out more finely than any report
says. Which predicted experts have their tops here is a matter of chance, taken as independent from
rank to rank: without that, no split could beat whole experts, since the bytes that n tops of theta
save fall with n wherever the first tops are the most used. How many experts miss at once is one as
well. And the link serves a layer's prefetches only once the misses of the layer before have come.

Everything here is a pure function of statistics and costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import count
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# L MoE layers, E experts of a layer, K chosen, N = E + 1 numbers of tops, C candidate splits.
Floats = NDArray[np.float64]

SETTLING_ROUNDS = 3
"""How often windows and splits are worked out from one another, from windows without misses."""


@dataclass(frozen=True, slots=True)
class LayerFigures:  # noqa: PLW1641  it holds arrays, which have no hash
    """What the search must know of one layer.

    Attributes:
        hit_N: How often an activated expert is among the n highest priorities, for n of 0 to E.
        right_K: How often the expert predicted at each rank is activated; 0 where none is.
        cached_KN: How often the expert predicted at each rank is among the n highest priorities.
        expert_bytes: Of one expert.
        copy_ns: Of one expert.
        attention_ns: What is computed between the experts before and the layer's router.
        experts_ns: Of the K experts of a token.
    """

    hit_N: Floats
    right_K: Floats
    cached_KN: Floats
    expert_bytes: int
    copy_ns: int
    attention_ns: int
    experts_ns: int

    def __eq__(self, other: object) -> bool:
        """Return whether every figure is the same; what `dataclass` gives cannot compare arrays."""
        if not isinstance(other, LayerFigures):
            return NotImplemented
        names = (field.name for field in fields(self))
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)


class LayerSplit(NamedTuple):
    """What the search found for one layer.

    Attributes:
        pieces: Pieces of an expert that its top has; 0 keeps nothing.
        tops: How many are kept.
        ready: Activated experts that are expected to be in VRAM when the router has run.
        exposed_ns: Time for which the layer waits for copies.
        missing_ns: Time of the link for what was not ready.
    """

    pieces: int
    tops: int
    ready: float
    exposed_ns: float
    missing_ns: float


def split_layer(
    figures: LayerFigures, budget_bytes: int, window_ns: float, pieces: int
) -> LayerSplit:
    """Return the split of one layer that has most activated experts ready.

    Of equals the one that waits least, then the one that copies least: the largest tops.

    Args:
        figures: Of the layer.
        budget_bytes: For its tops.
        window_ns: How long the link is free for the layer before its router has run.
        pieces: Equal pieces that an expert can be cut into.
    """
    experts, top_k = len(figures.hit_N) - 1, len(figures.right_K)
    pieces_C = np.arange(pieces + 1)
    bytes_C = np.maximum(1, figures.expert_bytes * pieces_C // pieces)
    tops_C = np.minimum(experts, budget_bytes // bytes_C)
    tops_C[0] = 0
    fits_C = (tops_C >= top_k) | (pieces_C == 0)
    pieces_C, tops_C = pieces_C[fits_C], tops_C[fits_C]
    theta_C, hit_C = pieces_C / pieces, figures.hit_N[tops_C]
    window = window_ns / figures.copy_ns
    foreseen_C = _foreseen(figures.right_K, figures.cached_KN[:, tops_C], theta_C, window)
    is_whole_C = pieces_C == pieces
    ready_C = foreseen_C + is_whole_C * (top_k - figures.right_K.sum()) * hit_C
    top_C = np.where(is_whole_C, 0.0, hit_C * theta_C)
    missing_C = (top_k - ready_C) * (1 - top_C) * figures.copy_ns
    exposed_C = _exposed(figures, ready_C, top_C)
    at = int(np.lexsort((-pieces_C, exposed_C, -ready_C.round(9)))[0])
    return LayerSplit(
        int(pieces_C[at]),
        int(tops_C[at]),
        float(ready_C[at]),
        float(exposed_C[at]),
        float(missing_C[at]),
    )


def _foreseen(right_K: Floats, cached_KC: Floats, theta_C: Floats, window: float) -> Floats:
    """Return the activated experts that prefetching in rank order has ready within the window.

    ``window`` is in copies of a whole expert. A copy that it cuts short counts by its share.
    """
    top_k = len(right_K)
    ready_C = np.zeros(len(theta_C))
    absent_UC = np.zeros((top_k + 1, len(theta_C)))  # chance that U of the ranks before are absent
    absent_UC[0] = 1
    for rank in range(top_k):
        cached_C = cached_KC[rank]
        for absent in range(rank + 1):
            left_C = window - absent - (rank - absent) * (1 - theta_C)
            bottom_C = 1 - theta_C
            share_C = np.where(
                bottom_C > 0, np.clip(left_C / np.where(bottom_C > 0, bottom_C, 1), 0, 1), 1.0
            )
            whole_C = np.clip(left_C, 0, 1)
            mean_C = cached_C * share_C + (1 - cached_C) * whole_C
            ready_C += right_K[rank] * absent_UC[absent] * mean_C
        arrives_UC = absent_UC * (1 - cached_C)
        absent_UC = absent_UC * cached_C
        absent_UC[1:] += arrives_UC[:-1]
    return ready_C


def _exposed(figures: LayerFigures, ready_C: Floats, top_C: Floats) -> Floats:
    """Return how long the layer is expected to wait for copies.

    How many of the K experts are not ready is a matter of chance, too: a copy in one token of three
    is waited for there, though a third of it would pass while others compute.

    Args:
        figures: Of the layer.
        ready_C: Experts that are ready on average.
        top_C: Share of an expert that is here where it is not ready.
    """
    top_k = len(figures.right_K)
    miss_C = np.clip(1 - ready_C / top_k, 0.0, 1.0)
    exposed_C = np.zeros_like(ready_C)
    for missing in range(1, top_k + 1):
        chance_C = comb(top_k, missing) * miss_C**missing * (1 - miss_C) ** (top_k - missing)
        copies_C = missing * (1 - top_C) * figures.copy_ns
        computed_C = (top_k - missing * (1 - top_C)) / top_k * figures.experts_ns
        exposed_C += chance_C * np.maximum(0.0, copies_C - computed_C)
    return exposed_C


def share_budget(
    layers: Sequence[LayerFigures],
    budget_bytes: int,
    *,
    pieces: int,
    step: float = 0.01,
) -> list[LayerSplit]:
    """Return the split of every layer that a budget for tops allows.

    Even shares stand in the end as well as moved ones, with what whole tops leave of them spent: a
    step of the budget is coarse where a layer has few experts.

    Args:
        layers: Their figures, in order.
        budget_bytes: For the tops of all layers.
        pieces: Equal pieces that an expert can be cut into.
        step: Share of the budget that moves from one layer to another at a time.
    """
    search = _Search(layers, pieces)
    step_bytes = max(1, round(budget_bytes * step))
    bytes_L = [budget_bytes // len(layers)] * len(layers)
    even = best = search.settle(bytes_L)
    for _ in range(round(len(layers) / step)):
        moved = search.moved(bytes_L, best, step_bytes)
        if moved is None:
            break
        tried = search.settle(moved)
        if exposed_ns(tried) >= exposed_ns(best):
            break
        bytes_L, best = moved, tried
    return min((search.spent(each, budget_bytes) for each in (even, best)), key=exposed_ns)


class _Search:
    """The splits of all layers, each worked out once for a budget and a window."""

    def __init__(self, layers: Sequence[LayerFigures], pieces: int) -> None:
        self._layers = layers
        self._pieces = pieces
        self._known: dict[tuple[int, int, float], LayerSplit] = {}

    def settle(self, bytes_L: Sequence[int]) -> list[LayerSplit]:
        """Return the splits of all layers, whose windows depend on one another."""
        splits = [LayerSplit(0, 0, 0.0, 0.0, 0.0)] * len(bytes_L)
        for _ in range(SETTLING_ROUNDS):
            window_L = self._windows(splits)
            splits = [self._split(*each) for each in zip(count(), bytes_L, window_L, strict=False)]
        return splits

    def moved(
        self, bytes_L: Sequence[int], splits: Sequence[LayerSplit], step_bytes: int
    ) -> list[int] | None:
        """Return the budgets after the most promising move of a step; None if there is none."""
        window_L = self._windows(splits)

        def exposed(layer: int, more: int) -> float:
            return self._split(layer, bytes_L[layer] + more, window_L[layer]).exposed_ns

        every = range(len(bytes_L))
        taker = max(every, key=lambda at: splits[at].exposed_ns - exposed(at, step_bytes))
        givers = [at for at in every if at != taker and bytes_L[at] >= step_bytes]
        if not givers:
            return None
        giver = min(givers, key=lambda at: exposed(at, -step_bytes) - splits[at].exposed_ns)
        moved = list(bytes_L)
        moved[taker] += step_bytes
        moved[giver] -= step_bytes
        return moved

    def spent(self, splits: Sequence[LayerSplit], budget_bytes: int) -> list[LayerSplit]:
        """Return the splits once what they leave of the budget has gone, top by top, to the layers.

        Each top goes where it saves most waiting, as long as there is room for one.
        """
        window_L, spent = self._windows(splits), list(splits)
        used_L = [self._used_bytes(layer, split) for layer, split in enumerate(spent)]
        while True:
            spare_bytes = budget_bytes - sum(used_L)
            offers = []
            for layer, split in enumerate(spent):
                top_bytes = self._layers[layer].expert_bytes * split.pieces // self._pieces
                if not 0 < top_bytes <= spare_bytes:
                    continue
                more = self._split(layer, used_L[layer] + top_bytes, window_L[layer])
                if self._used_bytes(layer, more) > used_L[layer]:
                    offers.append((split.exposed_ns - more.exposed_ns, -layer, more))
            if not offers:
                return spent
            _, minus_layer, more = max(offers, key=lambda offer: offer[:2])
            spent[-minus_layer] = more
            used_L[-minus_layer] = self._used_bytes(-minus_layer, more)

    def _used_bytes(self, layer: int, split: LayerSplit) -> int:
        return split.tops * (self._layers[layer].expert_bytes * split.pieces // self._pieces)

    def _windows(self, splits: Sequence[LayerSplit]) -> list[float]:
        """Return each layer's window; the first follows the last layer of the token before."""
        found = []
        for layer, figures in enumerate(self._layers):
            before, its = self._layers[layer - 1], splits[layer - 1]
            busy_ns = its.missing_ns - its.exposed_ns
            window_ns = max(0.0, before.experts_ns + figures.attention_ns - busy_ns)
            found.append(float(round(window_ns, -3)))
        return found

    def _split(self, layer: int, budget_bytes: int, window_ns: float) -> LayerSplit:
        key = layer, budget_bytes, window_ns
        found = self._known.get(key)
        if found is None:
            found = split_layer(self._layers[layer], budget_bytes, window_ns, self._pieces)
            self._known[key] = found
        return found


def exposed_ns(splits: Sequence[LayerSplit]) -> float:
    """Return how long a token waits for copies; the rest of its time no split changes."""
    return sum(split.exposed_ns for split in splits)
