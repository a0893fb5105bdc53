"""How far a loss may be off: texts resampled, arms compared on the same texts, orders apart.

State runs from text to text, so an arm is served in several orders. The unit that is resampled is
the text, with what it lost in every order; a difference counts as one only if its 95 % interval
leaves out 0 and all orders agree on its sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# O orders, R texts, B resamplings.
Floats = NDArray[np.float64]
Figure = Literal["nats", "kl_nats", "agrees"]
RESAMPLINGS = 2_000
BOUNDS = (2.5, 97.5)
SEED = 20261124


@dataclass(frozen=True, slots=True)
class Losses:
    """What the texts lost under one arm, summed over the tokens of each that count.

    Attributes:
        tokens_R: How many tokens of each text count.
        nats_OR: Of the tokens that the texts have.
        kl_nats_OR: Of the full model's distribution to the arm's.
        agrees_OR: How often both hold the same token likeliest.
    """

    tokens_R: Floats
    nats_OR: Floats
    kl_nats_OR: Floats
    agrees_OR: Floats

    def sums_OR(self, figure: Figure) -> Floats:
        """Return the sums of one figure; an arm that no order touches has one row."""
        return {"nats": self.nats_OR, "kl_nats": self.kl_nats_OR, "agrees": self.agrees_OR}[figure]

    def by_order(self, figure: Figure) -> list[float]:
        """Return the mean of a token, order by order."""
        means_O = self.sums_OR(figure).sum(axis=1) / self.tokens_R.sum()
        return [float(mean) for mean in means_O]


def interval(sums_R: Floats, tokens_R: Floats) -> tuple[float, float]:
    """Return the 95 % interval of a mean over tokens, by resampling texts.

    Args:
        sums_R: Of a figure over the tokens of each text; of a difference too.
        tokens_R: How many tokens that were.
    """
    rng = np.random.default_rng(SEED)
    texts = len(sums_R)
    times_BR = rng.multinomial(texts, np.full(texts, 1 / texts), size=RESAMPLINGS)
    counted_B = times_BR @ tokens_R
    means_B = (times_BR @ sums_R)[counted_B > 0] / counted_B[counted_B > 0]
    low, high = np.percentile(means_B, BOUNDS)
    return float(low), float(high)


def summary(losses: Losses) -> dict[str, Any]:
    """Return means over texts and orders with their intervals, and each order's own."""
    mean, bounds = {}, {}
    figures: Sequence[Figure] = ("nats", "kl_nats", "agrees")
    for figure in figures:
        sums_R = losses.sums_OR(figure).mean(axis=0)
        mean[figure] = float(sums_R.sum() / losses.tokens_R.sum())
        bounds[figure] = interval(sums_R, losses.tokens_R)
    return {
        "tokens": int(losses.tokens_R.sum()),
        "perplexity": exp(mean["nats"]),
        "perplexity_95": [exp(bound) for bound in bounds["nats"]],
        "bits": mean["nats"] / log(2),
        "agreement": mean["agrees"],
        "agreement_95": list(bounds["agrees"]),
        "kl_bits": max(0.0, mean["kl_nats"]) / log(2),
        "kl_bits_95": [max(0.0, bound) / log(2) for bound in bounds["kl_nats"]],
        "perplexity_by_order": [exp(nats) for nats in losses.by_order("nats")],
    }


def against(losses: Losses, other: Losses, name: str) -> dict[str, Any]:
    """Compare two arms on the same texts, order by order: bits of a token, less than 0 if better.

    Args:
        losses: Of the arm that is judged.
        other: Of the one beside it; where one has a single order it stands for all.
        name: The other's.
    """
    apart_OR = losses.nats_OR - other.nats_OR
    total = losses.tokens_R.sum()
    low, high = interval(apart_OR.mean(axis=0), losses.tokens_R)
    by_order = apart_OR.sum(axis=1) / total / log(2)
    is_one_sign = bool(np.all(by_order > 0) or np.all(by_order < 0))
    return {
        "arm": name,
        "bits": float(by_order.mean()),
        "bits_95": [low / log(2), high / log(2)],
        "bits_by_order": by_order.tolist(),
        "within_noise": low <= 0 <= high or not is_one_sign,
    }
