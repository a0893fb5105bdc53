"""What a search for splits must know of a run so far: who is used, by priority, and what foreseen.

All of it follows from three lists of one layer's event: the experts in order of their priority
before it, what had been predicted, best first, and what was activated. An order that does not
depend on how many experts are kept answers for every number of them at once. After few events the
layers differ by chance alone, so that each one's counts are joined by a share of all layers'.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# L MoE layers, E experts of a layer, K chosen, N = E + 1 places in an order of priority.
Floats = NDArray[np.float64]

SHARE_OF_ALL = 0.1
"""What an event of any layer counts for each: 48 layers together five times a layer's own."""


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

    @property
    def is_empty(self) -> bool:
        """Whether nothing was learnt yet."""
        return not self._place_LN.any()

    def hit_N(self, layer: int) -> Floats:
        """Return how often an activated expert was among the first n, for n of 0 to E."""
        return _among_first(_joined(self._place_LN, layer))

    def right_K(self, layer: int) -> Floats:
        """Return how often the prediction of each rank was right; 0 where none was made."""
        tried_LK = np.repeat(self._foreseen_L[:, None], self._top_k, axis=1)
        right_K, tried_K = _joined(self._right_LK, layer), _joined(tried_LK, layer)
        share_K: Floats = right_K / np.maximum(1.0, tried_K)
        return share_K

    def cached_KN(self, layer: int) -> Floats:
        """Return how often the prediction of each rank was among the first n, for n of 0 to E."""
        return _among_first(_joined(self._place_LKN, layer))


def _joined(seen_LX: Floats, layer: int) -> Floats:
    """Return what was counted in a layer and, by a share, in all of them."""
    joined_X: Floats = seen_LX[layer] + SHARE_OF_ALL * seen_LX.sum(axis=0)
    return joined_X


def _among_first(place_XN: Floats) -> Floats:
    """Return the share of what stood at the places before n, for each n."""
    before_XN = np.zeros_like(place_XN)
    np.cumsum(place_XN[..., :-1], axis=-1, out=before_XN[..., 1:])
    share_XN: Floats = before_XN / np.maximum(1.0, place_XN.sum(axis=-1, keepdims=True))
    return share_XN
