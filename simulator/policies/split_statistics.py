"""What a search for splits must know of a run so far: who is used, by priority, and what foreseen.

All of it follows from three lists of one layer's event: the experts in order of their priority
before it, what had been predicted, best first, and what was activated. An order that does not
depend on how many experts are kept answers for every number of them at once.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# L MoE layers, E experts of a layer, K chosen, N = E + 1 places in an order of priority.
Floats = NDArray[np.float64]


class SplitStatistics:
    """Sums over events of one token.

    Args:
        layers: MoE layers.
        experts: Of each.
        top_k: Chosen of them.
    """

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        self._experts, self._top_k = experts, top_k
        self._place_LN = np.zeros((layers, experts + 1))
        self._foreseen_L = np.zeros(layers)
        self._right_LK = np.zeros((layers, top_k))
        self._place_LKN = np.zeros((layers, top_k, experts + 1))

    def learn(
        self, layer: int, ranked: Sequence[int], activated: Sequence[int], foreseen: Sequence[int]
    ) -> None:
        """Take in one event.

        Args:
            layer: Which.
            ranked: Experts by priority before it, the highest first; those never used are left out.
            activated: Those the token chose.
            foreseen: Those predicted, best first; empty where nothing was.
        """
        place = {expert: at for at, expert in enumerate(ranked)}
        for expert in activated:
            self._place_LN[layer, place.get(expert, self._experts)] += 1
        if not foreseen:
            return
        self._foreseen_L[layer] += 1
        for rank, expert in enumerate(foreseen[: self._top_k]):
            self._right_LK[layer, rank] += expert in activated
            self._place_LKN[layer, rank, place.get(expert, self._experts)] += 1

    def knows(self, layer: int) -> bool:
        """Return whether the layer has been seen at all."""
        return bool(self._place_LN[layer].any())

    def hit_N(self, layer: int) -> Floats:  # noqa: N802  a shape suffix
        """Return how often an activated expert was among the first n, for n of 0 to E."""
        return _among_first(self._place_LN[layer])

    def right_K(self, layer: int) -> Floats:  # noqa: N802  likewise
        """Return how often the prediction of each rank was right; 0 where none was made."""
        share_K: Floats = self._right_LK[layer] / max(1.0, self._foreseen_L[layer])
        return share_K

    def cached_KN(self, layer: int) -> Floats:  # noqa: N802  likewise
        """Return how often the prediction of each rank was among the first n, for n of 0 to E."""
        return np.stack([_among_first(place_N) for place_N in self._place_LKN[layer]])


def _among_first(place_N: Floats) -> Floats:
    """Return the share of what stood at the places before n, for each n."""
    before_N = np.concatenate([[0.0], np.cumsum(place_N[:-1])])
    share_N: Floats = before_N / max(1.0, place_N.sum())
    return share_N
