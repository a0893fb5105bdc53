"""The compiled replay without a clock counts what ``engine_counts`` counts."""

import pytest

from moesim.simulator.errors import CapabilityError
from moesim.simulator.testing import counted, small_run, tiny_trace

pytest.importorskip("numba")

CACHES = [
    "lru",
    "lru:scope=per_layer",
    "fifo",
    "lfu",
    "lfu:count=lifetime",
    "lfru",
    "belady",
    "lcp:omega=4",
    "static:order=uniform",
    "transient",
]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("slots", [6, 7, 9, 12])
def test_counts_are_those_of_the_controller(cache: str, slots: int) -> None:
    """Demands, hits, misses, evictions and bytes equal those of the controller's own replay."""
    from moesim.simulator.engines.compiled.counting import count  # noqa: PLC0415  after importorskip

    for seed in range(4):
        run = small_run(tiny_trace(seed=seed), cache=cache, slots=slots)
        expected = counted(run).counts
        actual = count(run)
        assert actual.misses > 0
        for name in ("demands", "hits", "misses", "decode_hits", "evictions", "bytes_demand"):
            assert getattr(expected, name) == getattr(actual, name), name


def test_a_prefetch_is_refused() -> None:
    """Without a clock nothing is copied ahead; the run is refused by the policy's name."""
    from moesim.simulator.engines.compiled.counting import count  # noqa: PLC0415  after importorskip

    with pytest.raises(CapabilityError, match="prefetch oracle"):
        count(small_run(tiny_trace(), prefetch="oracle", slots=9))
