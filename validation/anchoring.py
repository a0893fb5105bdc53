"""Small pieces of work by which a machine is known again."""

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from statistics import median
from time import perf_counter_ns

MOVED = 0.03
"""By so much an anchor may move in any case."""
FIRST = 6
"""So many readings tell how far an anchor moves by itself."""
COPY, COPY_BYTES = "copy 64MiB", 64 * 2**20
SAMPLES = 9
LOOP_TURNS = 50_000


def median_ns(work: Callable[[], object], samples: int = SAMPLES) -> int:
    """Return the median time of some work on the host's clock, after it ran once."""
    work()
    times = []
    for _ in range(samples):
        began_ns = perf_counter_ns()
        work()
        times.append(perf_counter_ns() - began_ns)
    return max(1, round(median(times)))


def host_loop() -> None:
    """Add up some numbers, as the interpreter does it."""
    total = 0
    for turn in range(LOOP_TURNS):
        total += turn


def versions_of(*names: str) -> dict[str, str]:
    """Return the versions of Python and of some packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in names}


class Anchors:
    """Tells whether anchors moved by more than they move by themselves.

    On a shared host an interpreter's loop may take twice as long from one reading to the next,
    whatever runs. An anchor may move by as much as its first readings of a session lie apart, and
    by 3 % in any case: what never holds still tells nothing of an execution.

    Attributes:
        last_ns: The latest reading.
    """

    def __init__(self) -> None:
        self.last_ns: dict[str, int] = {}
        self._first: list[dict[str, int]] = []

    def take(self, reading_ns: dict[str, int]) -> bool:
        """Return whether a reading is no further from the latest than it may be, and keep it."""
        is_still = all(
            apart([reading_ns[name], before_ns]) <= self.allowance(name)
            for name, before_ns in self.last_ns.items()
        )
        self.last_ns = reading_ns
        if len(self._first) < FIRST:
            self._first.append(reading_ns)
        return is_still

    def allowance(self, name: str) -> float:
        """Return by which share an anchor may move from one reading to the next."""
        return max(MOVED, apart([first_ns[name] for first_ns in self._first]))


def apart(times_ns: Sequence[int]) -> float:
    """Return how much longer the longest is than the shortest, as a share of that."""
    return max(times_ns) / min(times_ns) - 1
