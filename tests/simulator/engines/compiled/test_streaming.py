"""A long trace under the compiled engine: served in pieces as the clock serves the whole."""

from collections.abc import Callable

import pytest

from moesim.simulator import long_traces
from moesim.simulator.engines.compiled.engine import replay_compiled
from moesim.simulator.errors import CapabilityError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import Prepared, prepare
from moesim.traces import RoutingTrace, synthetic


@pytest.fixture
def trace() -> RoutingTrace:
    """Return twelve requests with prompts, 4 x 8 top-2."""
    return synthetic.sticky(seed=8, requests=12, prompt_tokens=3, decode_tokens=15)


@pytest.fixture
def prepared(trace: RoutingTrace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Prepared]:
    """Return a function that prepares a run for the compiled engine in pieces of two requests."""
    streaming = pytest.importorskip("moesim.simulator.engines.compiled.streaming")
    monkeypatch.setattr(long_traces, "MOST_DEMANDS", 0)
    monkeypatch.setattr(streaming, "ROWS", 40)

    def of(cache: str, schedule: str = "resident_first") -> Prepared:
        return prepare(
            RunSpec(
                trace=trace,
                trace_name="made up",
                hardware="rtx4090",
                policies={"cache": cache, "prefetch": "none", "schedule": schedule},
                memory=MemorySpec(None, None, "50%"),
                cost_of="mixtral-8x7b",
                weights_format="int4",
            )
        )

    return of


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["lru", "lru:scope=per_layer", "fifo", "transient"])
@pytest.mark.parametrize("schedule", ["resident_first", "on_demand"])
def test_the_compiled_engine_serves_pieces_as_the_clock_serves_the_whole(
    prepared: Callable[..., Prepared], cache: str, schedule: str
) -> None:
    """Counts, times and every percentile agree."""
    run = prepared(cache, schedule)
    by_clock = run.replay()
    controller, timings = replay_compiled(run)
    assert controller.counts == by_clock.counts
    assert timings.streamed is not None
    assert by_clock.timings.streamed is not None
    assert timings.span_ns == by_clock.timings.span_ns
    assert timings.server == by_clock.timings.server
    for name in ("gaps_ns", "first_ns", "e2e_ns", "queue_ns", "service_ns", "request_tpot_ns"):
        one, other = getattr(timings.streamed, name), getattr(by_clock.timings.streamed, name)
        assert (one.count, one.sum) == (other.count, other.sum)
        assert one.percentile(99) == other.percentile(99)


@pytest.mark.parametrize("cache", ["lfu", "belady"])
def test_policies_that_keep_more_are_refused(prepared: Callable[..., Prepared], cache: str) -> None:
    """LFU counts for ever and Belady looks ahead: each is named, with what can be taken."""
    with pytest.raises(CapabilityError, match=f"cache policy {cache} .* take lru, fifo"):
        replay_compiled(prepared(cache))
