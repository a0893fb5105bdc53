"""How alike the experts of neighbouring layers and prompts are, beside what chance would give.

eMoE (arXiv 2503.06823 section 2.2) finds a correlation of about 0.5 between the experts of
consecutive layers, and 0.4 to 0.95 between those of consecutive prompts, and does not say of which
numbers. Here it is Pearson's, between the sorted ids of one set and of the other, as its digits
would be written. Sorted ids correlate even where the sets are independent, since the first is
always small and the last large: so the same figure is given for sets drawn at random.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.backends.predictors.uses import Prompts, top_experts

# R requests (prompts), L MoE layers, K chosen.


@dataclass(frozen=True, slots=True)
class Correlation:
    """Pearson's between sorted ids.

    Attributes:
        layers: Of a layer's set and the next layer's, same prompt.
        prompts: Of a prompt's set and the next prompt's, same layer.
        independent: Of two sets of experts drawn without regard to each other.
    """

    layers: float
    prompts: float
    independent: float


def correlation(prompts: Prompts, seed: int) -> Correlation:
    """Measure the sets e_i of all prompts; at least two layers and two prompts."""
    ids_RLK = np.sort(top_experts(prompts.use_RLE, prompts.top_k), axis=2)
    experts = prompts.use_RLE.shape[2]
    noise_RLE = np.random.default_rng(seed).random((*ids_RLK.shape[:2], experts))
    drawn_RLK = np.sort(top_experts(noise_RLE, prompts.top_k), axis=2)
    return Correlation(
        layers=_pearson(ids_RLK[:, :-1], ids_RLK[:, 1:]),
        prompts=_pearson(ids_RLK[:-1], ids_RLK[1:]),
        independent=_pearson(drawn_RLK[:-1], drawn_RLK[1:]),
    )


def _pearson(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    mine, others = one.ravel() - one.mean(), other.ravel() - other.mean()
    spread = float(np.sqrt((mine**2).sum() * (others**2).sum()))
    return float((mine * others).sum()) / spread if spread else 0.0
