"""Samples spread over a whole run: no constant rests on one burst in a noisy minute.

A probe takes one sample at a time. All probes take turns, round after round until the time is over,
so that each constant is the median over the run and its spread is what the run really saw.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

FEWEST_ROUNDS = 3
_OUTER_TENTHS = (10, 90)


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing to measure.

    Attributes:
        name: Unique in a run.
        sample: Takes one sample and returns it, in `unit`.
        unit: Of the samples.
        every: Sampled in every n-th round only, for probes that take long.
    """

    name: str
    sample: Callable[[], float]
    unit: str = "ns"
    every: int = 1


@dataclass(frozen=True, slots=True)
class Summary:
    """What the samples of one probe say.

    Attributes:
        median: Of all samples.
        spread: Half the distance between the 10th and the 90th percentile, over the median.
        samples: How many there are.
    """

    median: float
    spread: float
    samples: int


def summarise(values: Sequence[float]) -> Summary:
    """Return median and spread.

    >>> summarise([10.0] * 9 + [500.0]).median
    10.0
    """
    median = float(np.median(values))
    low, high = np.percentile(values, _OUTER_TENTHS)
    spread = float(high - low) / 2 / abs(median) if median else 0.0
    return Summary(median, spread, len(values))


def interleave(
    probes: Sequence[Probe],
    seconds: float,
    *,
    clock_s: Callable[[], float] = perf_counter,
    on_round: Callable[[float], None] | None = None,
) -> dict[str, list[float]]:
    """Return the samples of all probes, taken in turn until the time is over.

    Each probe is called once before, to warm it. At least `FEWEST_ROUNDS` rounds are made, and a
    probe that takes part in few of them has a sample of the first.

    Args:
        probes: In the order of a round.
        seconds: No round begins after this.
        clock_s: The time; tests have their own.
        on_round: Called after each round with the share of the time that is over.

    Raises:
        ValueError: Two probes have one name.
    """
    taken: dict[str, list[float]] = {probe.name: [] for probe in probes}
    if len(taken) != len(probes):
        raise ValueError("two probes have one name")
    begun_s = clock_s()
    for probe in probes:
        probe.sample()
    number = 0
    while number < FEWEST_ROUNDS or clock_s() - begun_s < seconds:
        for probe in probes:
            if number % probe.every == 0:
                taken[probe.name].append(probe.sample())
        number += 1
        if on_round is not None:
            on_round(min(1.0, (clock_s() - begun_s) / seconds) if seconds else 1.0)
    return taken


Samples = Mapping[str, Sequence[float]]
"""Samples by name of the probe."""
