"""What other tools were seen to get wrong, as far as it is about decisions.

Each was reproduced by hand in a published package; the tests about time stand with the engine.
"""

from collections.abc import Callable

import pytest

from moesim.simulator import registry
from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.ledger import Counts
from moesim.simulator.testing import sample_spec, tiny_trace, trace_of
from moesim.traces import RoutingTrace, synthetic

Replay = Callable[..., Counts]

CACHES = registry.names("cache")
SPLITTING = ("adaptive_split", "split")
WITH_STAGING = ("insert_cap", "periodic", "prompts_pass", "static", "transient", *SPLITTING)
# Every layer is given one token's experts, or their tops, at least.
WITH_QUOTAS = ("lcp", "quota_dp", "router_score", *SPLITTING)
ONLINE = ["lru", "fifo", "lfu", "lfu:count=lifetime", "lfu:decay=0.99", "lfru", "lfu:decay=0.5"]


@pytest.fixture(scope="module")
def traces() -> list[RoutingTrace]:
    """Return traces without structure, with popular experts, and with a memory."""
    shape = {"layers": 4, "experts": 16, "top_k": 2, "requests": 3, "decode_tokens": 40}
    makers = (synthetic.uniform, synthetic.zipf, synthetic.sticky)
    return [make(seed=seed, **shape) for make in makers for seed in (0, 1)]


def test_an_expert_is_told_apart_by_its_layer(replay: Replay) -> None:
    """Expert 3 of layer 0 is not expert 3 of layer 5: the first token misses in every layer."""
    token = [[3, 4]] * 6
    trace = trace_of([([], [token, token])], experts=8)
    counts = replay(trace, "lru", slots=12)
    assert (counts.misses, counts.hits) == (12, 12)
    assert replay(trace, "lru", slots=10).hits == 0


def test_a_prefetch_that_is_never_used_costs_bytes(replay: Replay) -> None:
    """Whole layers streamed for two experts each move all the rest in vain."""
    trace = tiny_trace()
    without = replay(trace, "lru", slots=18)
    streamed = replay(trace, "lru", slots=18, prefetch="layer_streaming")
    assert without.bytes_prefetch_wasted == 0
    assert streamed.bytes_prefetch_wasted > 0
    assert streamed.bytes_total > without.bytes_total
    assert streamed.bytes_total == streamed.copies * 1_000_000


def test_a_wrong_prefetch_may_cost_a_hit(replay: Replay) -> None:
    """Where it takes the room of an expert that is needed again, more is missed than without."""
    trace = trace_of([([], [[[0], [0]]] * 4)], experts=4)
    assert replay(trace, "lru", slots=3).misses == 2
    assert replay(trace, "lru", slots=3, prefetch="layer_streaming").misses > 2


def test_the_quality_of_a_prefetch_moves_the_hit_rate(
    traces: list[RoutingTrace], replay: Replay
) -> None:
    """Better recall hits more, and worse precision moves more bytes for the same recall."""
    for trace in traces:
        hits = [
            replay(trace, "lru", slots=16, prefetch=f"oracle:recall={recall}").hits
            for recall in (0.0, 0.3, 0.6, 1.0)
        ]
        assert sorted(set(hits)) == hits
        precise, sloppy = (
            replay(trace, "lru", slots=16, prefetch=f"oracle:precision={precision}")
            for precision in (1.0, 0.5)
        )
        assert precise.bytes_prefetch_wasted < sloppy.bytes_prefetch_wasted
        assert precise.bytes_total < sloppy.bytes_total


def test_no_online_policy_beats_the_offline_optimum(
    traces: list[RoutingTrace], replay: Replay
) -> None:
    """Belady moves the fewest bytes on every trace at every size, among caches that keep all."""
    for trace in traces:
        for slots in (8, 16, 32):
            least = replay(trace, "belady", slots=slots).misses
            worst = max(replay(trace, policy, slots=slots).misses for policy in ONLINE)
            assert least <= min(replay(trace, policy, slots=slots).misses for policy in ONLINE)
            assert least < worst


def test_bypass_never_misses_more_than_forced_admission_in_the_same_cache(
    traces: list[RoutingTrace], replay: Replay
) -> None:
    """With staging beside an equal cache, letting visitors pass only helps."""
    for trace in traces:
        largest = trace.top_k * 8
        for slots in (8, 16, 32):
            forced = replay(trace, "belady", slots=slots).misses
            policy = f"belady:admit=bypass,staging={largest}"
            assert replay(trace, policy, slots=slots + largest).misses <= forced


@pytest.mark.parametrize("name", ["rrip", "drrip", "arc", "LRU", "lru ", ""])
def test_a_policy_that_does_not_exist_is_an_error(name: str) -> None:
    """No unknown name runs as another policy; the message lists those that exist."""
    for axis in registry.AXES:
        with pytest.raises(UnknownNameError, match="there are: "):
            registry.parse(axis, name)


def test_an_option_that_does_not_exist_is_an_error() -> None:
    """A misspelt or misplaced option is refused and not ignored."""
    for text in ("lru:size=4", "belady:horizon=3", "fifo:count=lifetime"):
        with pytest.raises(InputError, match="no option of cache policy"):
            registry.parse("cache", text)


@pytest.mark.parametrize("name", CACHES)
def test_small_capacities_behave(name: str, replay: Replay) -> None:
    """From one token's experts up to the whole model nothing rounds to zero or fails.

    Where everything fits only first uses miss, but for policies that refuse to keep.
    """
    trace = tiny_trace(layers=3, experts=6, top_k=2)
    ever = len(_used(trace))
    spec = sample_spec("cache", name)
    for slots in (8, 17, 18) if name in WITH_QUOTAS else (2, 3, 4, 5, 8, 17, 18):
        counts = replay(trace, spec, slots=slots)
        assert counts.demands == counts.hits + counts.partial_hits + counts.misses
        assert (counts.partial_hits > 0) is (name in SPLITTING)
        assert counts.peak_expert_bytes <= slots * 1_000_000
    if name not in WITH_STAGING:
        assert replay(trace, spec, slots=18).misses == ever


@pytest.mark.parametrize("policy", ["lru", "belady"])
def test_more_room_never_misses_more(
    traces: list[RoutingTrace], replay: Replay, policy: str
) -> None:
    """Misses of LRU and of the optimum fall with every slot, without anomalies."""
    trace = traces[2]
    misses = [replay(trace, policy, slots=slots).misses for slots in range(16, 64, 3)]
    assert sorted(misses, reverse=True) == misses


def test_the_same_seed_gives_the_same_counts(replay: Replay) -> None:
    """Random placement and a random predictor repeat themselves, and differ by seed."""

    def counted(seed: int) -> Counts:
        prefetch = "oracle:recall=0.5,precision=0.5"
        return replay(tiny_trace(), "static:order=random", prefetch=prefetch, slots=10, seed=seed)

    assert counted(1) == counted(1)
    assert counted(1) != counted(2)


def _used(trace: RoutingTrace) -> set[tuple[int, int]]:
    return {
        (layer, int(expert))
        for layer in range(trace.layers)
        for expert in trace.expert_TLK[:, layer].ravel()
    }
