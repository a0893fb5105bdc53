"""Whose time it is: of experts, what no copy hides; of that, what copies beside them cost.

A run that a copy overlaps costs a transfer-bound token nothing. So the time of a run of experts is
counted where no copy ran; the rest of it is the link's.
"""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.messages import Copy, Run
from moesim.validation.machine import Span

LEAST_SAMPLES = 5
"""Runs of equal work, beside copies and alone, without which the two are not compared."""


class Exposed(NamedTuple):
    """In ns: experts while no copy ran, and how much of that copies beside them caused."""

    experts: int
    contention: int


class _Took(NamedTuple):
    """How long a run took, and how much of it no copy hides."""

    whole_ns: int
    bare_ns: int


def exposed(spans: Sequence[Span]) -> Exposed:
    """Return the time of experts that no copy hides.

    Contention is by how much a run is longer than the median of equal work (experts and tokens of
    each) alone, as far as its own time lies bare.
    """
    runs = _by_work(spans)
    experts_ns = sum(took.bare_ns for equal in runs for took in equal)
    contention_ns = sum(min(max(lost_ns, 0), took.bare_ns) for took, lost_ns in _losses(runs))
    return Exposed(experts_ns, round(contention_ns))


def lost_ns(spans: Sequence[Span]) -> int:
    """Return by how much runs of experts are longer than equal work alone, hidden or bare."""
    return round(sum(lost_ns for _, lost_ns in _losses(_by_work(spans))))


def _by_work(spans: Sequence[Span]) -> list[list[_Took]]:
    """Return the runs, those of equal work together."""
    begins, ends, before = _copying(spans)

    def copied_until(time_ns: int) -> int:
        at = int(np.searchsorted(begins, time_ns, "right")) - 1
        if at < 0:
            return 0
        return int(before[at] + min(time_ns, ends[at]) - begins[at])

    found: dict[tuple[int, ...], list[_Took]] = {}
    for _, label, begin, end in spans:
        if isinstance(label, Run):
            hidden = copied_until(end) - copied_until(begin)
            work = (len(label.experts), *sorted(label.tokens))
            found.setdefault(work, []).append(_Took(end - begin, end - begin - hidden))
    return [*found.values()]


def _losses(runs: Sequence[Sequence[_Took]]) -> Iterator[tuple[_Took, float]]:
    """Yield the runs beside copies that can be compared, and what each is longer than alone."""
    for equal in runs:
        alone = [took for took in equal if took.whole_ns == took.bare_ns]
        beside = [took for took in equal if took.whole_ns > took.bare_ns]
        if min(len(alone), len(beside)) >= LEAST_SAMPLES:
            usual_ns = median(took.whole_ns for took in alone)
            for took in beside:
                yield took, took.whole_ns - usual_ns


def _copying(
    spans: Sequence[Span],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return when copying begins and ends, and how long copies ran before each beginning."""
    joined: list[list[int]] = []
    for begin, end in sorted((s[2], s[3]) for s in spans if isinstance(s[1], Copy)):
        if joined and begin <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    times = np.array(joined, np.int64).reshape(-1, 2)
    lengths = times[:, 1] - times[:, 0]
    return times[:, 0], times[:, 1], np.cumsum(lengths) - lengths
