"""One token's jobs, predicted and executed side by side, by what they are.

An execution times copies and runs of experts and nothing else. What lies between them is told by
their distances: from a copy to the run that waits for it, from a layer's last run to the next
layer's first job (attention, router, decision, the first call), from one token to the first job of
the next and from the last run to the token.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from moesim.simulator.results.timeline import TRACKS
from moesim.validation.evidence import Job

GPU, LINK = TRACKS["gpu"], TRACKS["h2d"]
FOLLOWS_NS = 20_000
"""A copy that begins so soon after another was handed over with it; a run, at its copy's end."""
_RUN = re.compile(r"run L(?P<layer>\d+) (?P<experts>\d+) experts?")
_COPY = re.compile(r"copy L(?P<layer>\d+) ")


@dataclass(frozen=True, slots=True)
class Kind:
    """All jobs or distances of one kind, both ways.

    Attributes:
        name: What they are.
        predicted: How many were predicted; ``executed`` likewise.
        predicted_ns: Their mean; ``executed_ns`` likewise.
    """

    name: str
    predicted: int
    executed: int
    predicted_ns: float
    executed_ns: float

    @property
    def total_ns(self) -> float:
        """By how much all executed ones together are longer than as many predicted ones."""
        return self.executed * (self.executed_ns - self.predicted_ns)


def compare_jobs(
    predicted: Sequence[Job], executed: Sequence[Job], gaps_ns: tuple[float, float]
) -> list[Kind]:
    """Return the kinds that both timelines have, those that differ the most in sum first.

    Copies and runs overlap: the sums say where to look, they do not add up to the token's time.

    Args:
        predicted: One token's jobs.
        executed: The same token's.
        gaps_ns: How long it took, predicted and executed.
    """
    ours, theirs = (
        dict(_kinds(jobs, gap_ns))
        for jobs, gap_ns in zip((predicted, executed), gaps_ns, strict=True)
    )
    found = [
        Kind(name, len(ours[name]), len(theirs[name]), fmean(ours[name]), fmean(theirs[name]))
        for name in ours.keys() & theirs.keys()
    ]
    return sorted(found, key=lambda kind: (-abs(kind.total_ns), kind.name))


def _kinds(jobs: Sequence[Job], gap_ns: float) -> Iterator[tuple[str, list[float]]]:
    """Yield each kind of job and distance with its lengths."""
    copies = sorted((job for job in jobs if job.track == LINK), key=lambda job: job.begin_ns)
    runs = sorted((job for job in jobs if _RUN.match(job.name)), key=lambda job: job.begin_ns)
    found: dict[str, list[float]] = defaultdict(list)
    for copy in copies:
        found["copy"].append(copy.end_ns - copy.begin_ns)
    for one, other in pairwise(copies):
        if other.begin_ns - one.end_ns < FOLLOWS_NS:
            found["gap between copies"].append(other.begin_ns - one.end_ns)
    for run in runs:
        beside = any(copy.begin_ns < run.end_ns and run.begin_ns < copy.end_ns for copy in copies)
        where = "beside copies" if beside else "alone"
        found[f"run of {_experts(run)}, {where}"].append(run.end_ns - run.begin_ns)
        waited = [run.begin_ns - copy.end_ns for copy in copies if copy.end_ns <= run.begin_ns]
        if waited and min(waited) < FOLLOWS_NS:
            found["run after its copy"].append(min(waited))
    for before, after in _layers([*copies, *runs]):
        found["layer to layer"].append(after - before)
    if runs and copies:
        found["token to first job"].append(min(job.begin_ns for job in (*copies, *runs)))
        found["last run to token"].append(gap_ns - max(run.end_ns for run in runs))
    yield from found.items()


def _experts(run: Job) -> int:
    match = _RUN.match(run.name)
    assert match is not None
    return int(match["experts"])


def _layers(jobs: Iterable[Job]) -> Iterator[tuple[int, int]]:
    """Yield the end of each layer's last run and the begin of the next layer's first."""
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    for job in jobs:
        if match := _RUN.match(job.name):
            layer = int(match["layer"])
            begins[layer] = min(job.begin_ns, begins.get(layer, job.begin_ns))
            ends[layer] = max(job.end_ns, ends.get(layer, job.end_ns))
        elif match := _COPY.match(job.name):
            layer = int(match["layer"])
            if job.name.endswith("(demand)"):
                begins[layer] = min(job.begin_ns, begins.get(layer, job.begin_ns))
    for layer, end_ns in ends.items():
        if layer + 1 in begins and begins[layer + 1] >= end_ns:
            yield end_ns, begins[layer + 1]
