"""Law 14: under independent uniform routing a cache in each layer hits slots / E of the time."""

from math import sqrt

import pytest

from moesim.simulator.testing import counted, small_run
from moesim.traces import synthetic

LAYERS, EXPERTS, TOKENS = 2, 16, 3_000


@pytest.mark.parametrize("cache", ["lru", "lfu", "fifo"])
@pytest.mark.parametrize("slots", [2, 4, 8])
def test_the_hit_rate_is_the_share_of_slots(cache: str, slots: int) -> None:
    """No policy can know better, and none does worse: within four standard errors."""
    trace = synthetic.uniform(
        seed=slots,
        layers=LAYERS,
        experts=EXPERTS,
        top_k=1,
        requests=1,
        prompt_tokens=0,
        decode_tokens=TOKENS,
    )
    run = small_run(trace, cache=f"{cache}:scope=per_layer", slots=slots * LAYERS)
    counts = counted(run).counts
    compulsory = slots * LAYERS
    share = slots / EXPERTS
    demands = counts.demands - compulsory
    error = sqrt(share * (1 - share) / demands)
    assert abs(counts.hits / demands - share) < 4 * error
