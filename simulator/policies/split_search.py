"""How to share a budget among layers and split their experts: MoEpic's divide and conquer.

*Divide*: of one layer's budget, n tops of a share theta of an expert each, such that most of the
experts that a token activates are ready in VRAM when its router has run. *Conquer*: hundredths of
the whole budget move from the layer that would lose least to the layer that gains most, as long as
the token's time falls.

MoEpic's own equations are not public; these are a reconstruction from what is reported of them
(sections 3.1 and 3.4 of arXiv 2509.08342). Two things are worked out more finely than any report
says. Which predicted experts have their tops here is a matter of chance, taken as independent from
rank to rank: without that, no split could beat whole experts, since the bytes that n tops of theta
save fall with n wherever the first tops are the most used. And the link serves a layer's prefetches
only once the misses of the layer before have come.

Everything here is a pure function of statistics and costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# L MoE layers, E experts of a layer, K chosen, N = E + 1 numbers of tops, C candidate splits.
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LayerFigures:
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
    lacking_C = 1 - np.where(is_whole_C, 0.0, hit_C * theta_C)
    missing_C = (top_k - ready_C) * lacking_C * figures.copy_ns
    here_C = ready_C + np.where(is_whole_C, 0.0, theta_C * hit_C) * (top_k - ready_C)
    exposed_C = np.maximum(0.0, missing_C - figures.experts_ns * here_C / top_k)
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


def share_budget(
    layers: Sequence[LayerFigures],
    budget_bytes: int,
    *,
    pieces: int,
    step: float = 0.01,
    least_bytes: int = 0,
) -> list[LayerSplit]:
    """Return the split of every layer that a budget for tops allows.

    Args:
        layers: Their figures, in order.
        budget_bytes: For the tops of all layers.
        pieces: Equal pieces that an expert can be cut into.
        step: Share of the budget that moves from one layer to another at a time.
        least_bytes: What every layer keeps of the budget.
    """
    count = len(layers)
    step_bytes = max(1, round(budget_bytes * step))

    @cache
    def split(layer: int, layer_bytes: int, window_ns: float) -> LayerSplit:
        return split_layer(layers[layer], layer_bytes, window_ns, pieces)

    def windows(splits: Sequence[LayerSplit]) -> list[float]:
        """Return each layer's window; the first follows the last layer of the token before."""
        found = []
        for layer, figures in enumerate(layers):
            before, its = layers[layer - 1], splits[layer - 1]
            busy_ns = its.missing_ns - its.exposed_ns
            window_ns = max(0.0, before.experts_ns + figures.attention_ns - busy_ns)
            found.append(round(window_ns, -3))
        return found

    def settle(bytes_L: list[int]) -> list[LayerSplit]:
        """Return the splits of all layers, whose windows depend on one another."""
        wide_L = [before.experts_ns + figures.attention_ns for before, figures in chain]
        splits = [split(at, size, wide_L[at]) for at, size in enumerate(bytes_L)]
        for _ in range(2):
            splits = [
                split(at, bytes_L[at], window) for at, window in enumerate(windows(splits))
            ]
        return splits

    chain = [(layers[at - 1], layers[at]) for at in range(count)]
    bytes_L = [budget_bytes // count] * count
    best = settle(bytes_L)
    for _ in range(round(count / step)):
        window_L = windows(best)

        def exposed(layer: int, more: int, window_L: list[float] = window_L) -> float:
            return split(layer, bytes_L[layer] + more, window_L[layer]).exposed_ns

        givers = [at for at in range(count) if bytes_L[at] - step_bytes >= least_bytes]
        if not givers:
            break
        gain_L = [best[at].exposed_ns - exposed(at, step_bytes) for at in range(count)]
        taker = max(range(count), key=gain_L.__getitem__)
        givers = [at for at in givers if at != taker]
        if not givers:
            break
        giver = min(givers, key=lambda at: exposed(at, -step_bytes) - best[at].exposed_ns)
        moved = list(bytes_L)
        moved[taker] += step_bytes
        moved[giver] -= step_bytes
        tried = settle(moved)
        if exposed_ns(tried) >= exposed_ns(best):
            break
        bytes_L, best = moved, tried
    return best


def exposed_ns(splits: Sequence[LayerSplit]) -> float:
    """Return how long a token waits for copies; the rest of its time no split changes."""
    return sum(split.exposed_ns for split in splits)
