"""HybriMoE's running score of each expert, from the router's probabilities.

Of a layer just routed, the p experts of the highest probability s get alpha s + (1 - alpha) S, all
others of the layer (1 - alpha) S (MRS, arXiv 2504.05897 section 4.3). A step of many tokens counts
by the mean of its tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import RunInfo

# T tokens, L MoE layers, E experts of a layer.
SIGNAL = "router_probs_TLE"


class RouterScores:
    """The scores.

    Args:
        run: The run.
        alpha: Weight of the newest probability, above 0 and at most 1.
        best: Experts of a layer that get it; None takes twice the top-k, as the paper.
        owner: Policy that the options belong to, for messages.

    Attributes:
        of_LE: The scores.
    """

    def __init__(self, run: RunInfo, alpha: float, best: int | None, owner: str) -> None:
        if not 0 < alpha <= 1:
            raise InputError(f"{owner}: option alpha={alpha:g}: expected above 0 and at most 1")
        if best is not None and best < 1:
            raise InputError(f"{owner}: option best={best}: expected at least 1")
        self.of_LE: NDArray[np.float64] = np.zeros((run.layers, run.experts))
        self._alpha = alpha
        self._best = min(run.experts, 2 * run.top_k if best is None else best)

    def learn(self, layer: int, probs_TE: Sequence[Sequence[float]]) -> None:
        """Take in what the router of a layer said."""
        probs_E = np.asarray(probs_TE, np.float64).mean(axis=0)
        ranked = np.argsort(-probs_E, kind="stable")[: self._best]
        self.of_LE[layer] *= 1 - self._alpha
        self.of_LE[layer, ranked] += self._alpha * probs_E[ranked]
