"""How alike the experts of neighbouring layers and requests are, beside what chance would give.

eMoE (arXiv 2503.06823 section 2.2) finds a correlation of about 0.5 between the experts of
consecutive layers, and 0.4 to 0.95 between those of consecutive prompts, and does not say of which
numbers. Here it is Pearson's, between the sorted ids of one set and of the other, as its digits
would be written; a request's set of a layer are the k experts that it chose most often, the lowest
ids among equals. Sorted ids correlate even where sets are independent, since the first is always
small and the last large: for sets of k among E drawn alike often,

    corr = (E + 1) (k - 1) / ((E - 1) (k + 1)),

the variance of the means of the sorted ids over that of all ids, 0.43 for 2 of 8.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.checks import blocks
from moesim.traces.schema import RoutingTrace

# R requests, L MoE layers, E experts of a layer, K chosen.
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Correlation:
    """Pearson's between sorted ids.

    Attributes:
        layers: Of a layer's set and the next layer's, same request; None without two of them.
        requests: Of a request's set and the next request's, same layer; likewise.
        independent: Of two sets of experts drawn without regard to each other.
    """

    layers: float | None
    requests: float | None
    independent: float


def correlation(uses: Iterable[NDArray[np.number]], top_k: int, experts: int) -> Correlation:
    """Measure the sets of requests as they follow each other.

    Args:
        uses: Of each request how much it used every expert, ``[L, E]``; a layer without any use
            has no set.
        top_k: k.
        experts: E.
    """
    layers, requests = _Pairs(), _Pairs()
    before: tuple[Array, Array] | None = None
    for use_LE in uses:
        ids_LK: Array = np.sort(np.argsort(-use_LE, axis=1, kind="stable")[:, :top_k], axis=1)
        known_L: Array = np.asarray(use_LE.any(axis=1))
        both_L = known_L[:-1] & known_L[1:]
        layers.add(ids_LK[:-1][both_L], ids_LK[1:][both_L])
        if before is not None:
            both_L = before[1] & known_L
            requests.add(before[0][both_L], ids_LK[both_L])
        before = ids_LK, known_L
    chance = (experts + 1) * (top_k - 1) / max((experts - 1) * (top_k + 1), 1)
    return Correlation(layers.pearson(), requests.pearson(), chance)


def uses_of(trace: RoutingTrace) -> Iterator[NDArray[np.int64]]:
    """Yield how often each request chose every expert, ``[L, E]``, few rows at a time."""
    cells, offset_L = trace.layers * trace.experts, np.arange(trace.layers)[:, None] * trace.experts
    starts = trace.row_starts()
    for request in range(trace.requests):
        count = np.zeros(cells, np.int64)
        first, last = int(starts[request]), int(starts[request + 1])
        for rows in blocks(last - first, trace.layers * trace.top_k):
            chosen_TLK = trace.expert_TLK[first + rows.start : first + rows.stop]
            place_TLK = offset_L + chosen_TLK
            count += np.bincount(place_TLK[chosen_TLK >= 0], minlength=cells)
        yield count.reshape(trace.layers, trace.experts)


class _Pairs:
    """Sums over pairs of ids, from which Pearson's correlation follows exactly."""

    def __init__(self) -> None:
        self._sums_6 = np.zeros(6, np.int64)

    def add(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Take note of pairs: arrays of equal shape."""
        x, y = one.ravel(), other.ravel()
        self._sums_6 += [len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y]

    def pearson(self) -> float | None:
        """Return the correlation; None if one side does not vary, as where there are no pairs."""
        n, x, y, xx, yy, xy = map(int, self._sums_6)
        spread = (n * xx - x * x) * (n * yy - y * y)
        return (n * xy - x * y) / spread**0.5 if spread else None
