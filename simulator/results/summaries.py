"""Mean and percentiles of times, as every row names them."""

from collections.abc import Sequence

import numpy as np

from moesim.simulator.results.digest import Digest

__all__ = ["STATISTICS", "summary"]

_PERCENTILES = {"p50": 50, "p90": 90, "p99": 99}
STATISTICS = ("mean", *_PERCENTILES)


def summary(name: str, times_ns: Sequence[float] | Digest) -> dict[str, float | None]:
    """Return the fields of one kind of time, in ms to the ns; None where there are no times.

    >>> summary("ttft", [1_000_000, 3_000_000])["mean_ttft_ms"]
    2.0
    """
    found: dict[str, float | None] = {f"{statistic}_{name}_ms": None for statistic in STATISTICS}
    if not len(times_ns):
        return found
    if isinstance(times_ns, Digest):
        values_ns = [times_ns.mean(), *map(times_ns.percentile, _PERCENTILES.values())]
    else:
        values_ns = [float(np.mean(times_ns)), *np.percentile(times_ns, [*_PERCENTILES.values()])]
    return {key: _ms(float(ns)) for key, ns in zip(found, values_ns, strict=True)}


def _ms(time_ns: float) -> float:
    return round(time_ns / 1e6, 6)
