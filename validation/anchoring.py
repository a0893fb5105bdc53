"""Small pieces of work by which a machine is known again."""

import platform
from collections.abc import Callable
from importlib.metadata import version
from statistics import median
from time import perf_counter_ns

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
