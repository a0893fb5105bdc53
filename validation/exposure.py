"""Whose time it is: of experts, what no copy hides; of that, what copies beside them cost.

A run that a copy overlaps costs a transfer-bound token nothing. So the time of a run of experts is
counted where no copy ran; the rest of it is the link's.
"""

from collections.abc import Sequence
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


def exposed(spans: Sequence[Span]) -> Exposed:
    """Return the time of experts that no copy hides.

    Contention is by how much a run is longer than the median of equal work (experts and tokens of
    each) alone, as far as its own time lies bare.
    """
    begins, ends, before = _copying(spans)

    def copied_until(time_ns: int) -> int:
        at = int(np.searchsorted(begins, time_ns, "right")) - 1
        if at < 0:
            return 0
        return int(before[at] + min(time_ns, ends[at]) - begins[at])

    bare: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for _, label, begin, end in spans:
        if isinstance(label, Run):
            hidden = copied_until(end) - copied_until(begin)
            work = (len(label.experts), *sorted(label.tokens))
            bare.setdefault(work, []).append((end - begin, end - begin - hidden))
    contention = 0.0
    for runs in bare.values():
        alone = [took for took, open_ns in runs if took == open_ns]
        beside = [(took, open_ns) for took, open_ns in runs if took > open_ns]
        if min(len(alone), len(beside)) >= LEAST_SAMPLES:
            usual = median(alone)
            contention += sum(min(max(took - usual, 0), open_ns) for took, open_ns in beside)
    experts = sum(open_ns for runs in bare.values() for _, open_ns in runs)
    return Exposed(experts, round(contention))


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
