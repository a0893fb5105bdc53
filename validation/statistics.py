"""What a claim may be off by: spread, tolerance, repeatability, rankings that a machine repeats."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

REPEATABLE_SPREAD = 0.03
"""A cell whose executions spread further is not repeatable here; it counts neither way."""


class Limits(NamedTuple):
    """The least and the largest relative tolerance of one figure."""

    least: float
    largest: float


MEAN = Limits(0.03, 0.06)
P99 = Limits(0.05, 0.10)


class Ranking(NamedTuple):
    """Two systems that the machine itself tells apart, and whether the prediction did."""

    faster: str
    slower: str
    predicted_right: bool


def spread(means: Sequence[float]) -> float:
    """Return half the range of the executions' means over their median.

    >>> spread([98.0, 100.0, 104.0])
    0.03
    """
    return (max(means) - min(means)) / 2 / median(means)


def tolerance(spread_: float, limits: Limits = MEAN) -> float:
    """Return by how much a prediction may be off: twice the spread, within the limits.

    >>> [tolerance(0.001), tolerance(0.02), tolerance(0.5)]
    [0.03, 0.04, 0.06]
    """
    return min(max(limits.least, 2 * spread_), limits.largest)


def is_repeatable(spread_: float) -> bool:
    """Return whether the machine repeats itself well enough to judge a prediction."""
    return spread_ <= REPEATABLE_SPREAD


def relative_error(predicted: float, measured: float) -> float:
    """Return by how much a prediction is above the truth, as a share of the truth."""
    return (predicted - measured) / measured


def rankings(
    predicted: Mapping[str, float], measured: Mapping[str, Sequence[float]]
) -> list[Ranking]:
    """Return every pair of systems that the machine tells apart in each of its executions.

    Args:
        predicted: Time by system.
        measured: The executions' times by system. Two whose ranges overlap are a tie.
    """
    found = []
    for one, other in combinations(sorted(measured), 2):
        for fast, slow in ((one, other), (other, one)):
            if max(measured[fast]) < min(measured[slow]):
                found.append(Ranking(fast, slow, predicted[fast] < predicted[slow]))
    return found
