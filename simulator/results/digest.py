"""Mean and percentiles of a stream of times: exact while few, within 1/8192 once they are many.

The first four million values are kept. From there on they are counted in bins whose width is at
most 1/4096 of what they hold, so that a percentile, taken from the middle of its bin, is off by at
most 1/8192 of itself (0.012 %). Count and sum are integers and stay exact.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# N values, B bins.
Ints = NDArray[np.int64]

MOST_EXACT = 4_000_000
"""Values kept, 8 bytes each."""

_BITS = 13
_FINE = 1 << _BITS


class Digest:
    """Integers of at least 0, added in any portions.

    >>> digest = Digest()
    >>> digest.add(np.array([1, 2, 3, 10]))
    >>> digest.mean(), digest.percentile(50)
    (4.0, 2.5)
    """

    def __init__(self, most_exact: int = MOST_EXACT) -> None:
        self._most_exact = most_exact
        self._kept: list[Ints] = []
        self._bins_B: Ints | None = None
        self.count = 0
        self.sum = 0

    def __len__(self) -> int:
        return self.count

    @property
    def is_exact(self) -> bool:
        """Whether percentiles are those of numpy over all values."""
        return self._bins_B is None

    def add(self, values: NDArray[Any]) -> None:
        """Add values."""
        added: Ints = np.array(values, np.int64)
        self.count += len(added)
        self.sum += int(added.sum())
        if self._bins_B is None:
            self._kept.append(added)
            if self.count > self._most_exact:
                self._bins_B = np.zeros(64 * _FINE, np.int64)
                for kept in self._kept:
                    self._enter(kept)
                self._kept = []
        else:
            self._enter(added)

    def mean(self) -> float:
        """Return the mean."""
        return self.sum / self.count

    def percentile(self, percent: float) -> float:
        """Return a percentile, interpolated linearly between the two values about its rank."""
        if self._bins_B is None:
            return float(np.percentile(np.concatenate(self._kept), percent))
        rank = percent / 100 * (self.count - 1)
        below = int(rank)
        up_to_B = np.cumsum(self._bins_B)
        bins = np.searchsorted(up_to_B, [below, min(below + 1, self.count - 1)], side="right")
        low, high = (_middle(int(number)) for number in bins)
        return low + (rank - below) * (high - low)

    def _enter(self, values: Ints) -> None:
        assert self._bins_B is not None
        np.add.at(self._bins_B, _bin_of(values), 1)


def _bin_of(values: Ints) -> Ints:
    """Return the bin of each: values below `_FINE` have one each, every doubling above as many."""
    exponent = np.frexp(values.astype(np.float64))[1].astype(np.int64)
    doublings = np.maximum(exponent - _BITS, 0)
    within = values >> doublings
    bins: Ints = np.where(doublings > 0, doublings * (_FINE // 2) + within, within)
    return bins


def _middle(number: int) -> float:
    """Return the middle of a bin."""
    if number < _FINE:
        return float(number)
    doublings = (number - _FINE // 2) // (_FINE // 2)
    within = number - doublings * (_FINE // 2)
    first = within << doublings
    return first + ((1 << doublings) - 1) / 2
