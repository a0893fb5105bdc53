"""Law 1: slots and bytes are conserved after every fact."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import orders, shapes, traces

from moesim.simulator import registry
from moesim.simulator.control.residency import Pool
from moesim.simulator.terms import Place
from moesim.simulator.testing import (
    SPLIT_AT_RANDOM,
    WISH_AT_RANDOM,
    adversarial,
    counted,
    sample_spec,
    seeded,
    small_run,
    tiny_trace,
)


@pytest.mark.parametrize("name", registry.names("cache"))
@pytest.mark.parametrize("sizes", ["equal", "unequal"])
def test_every_cache_policy_conserves_room(name: str, sizes: str) -> None:
    """Room is conserved under a driver that ends work in any order, by slots and by bytes."""
    trace = tiny_trace()
    sizes_L = [1_000_000] * 3 if sizes == "equal" else [1_000_000, 700_000, 900_000]
    for seed in range(8):
        run = small_run(
            trace,
            cache=sample_spec("cache", name),
            prefetch=WISH_AT_RANDOM,
            schedule=SPLIT_AT_RANDOM,
            slots=8,
            expert_bytes_L=sizes_L,
            seed=seed,
        )
        adversarial(run, seeded(seed)).run()


@given(st.data(), shapes(), orders())
def test_any_trace_conserves_room(data: st.DataObject, shape, choose) -> None:
    """Room is conserved on any small trace, down to room for the experts of one token."""
    trace = data.draw(traces(shape))
    slots = data.draw(st.integers(shape.top_k, shape.top_k + 4))
    run = small_run(trace, prefetch=WISH_AT_RANDOM, schedule=SPLIT_AT_RANDOM, slots=slots)
    adversarial(run, choose).run()


@given(st.data(), shapes())
def test_whoever_came_and_is_not_here_was_evicted(data: st.DataObject, shape) -> None:
    """Copies into the cache are evictions and those still here at the end, to a unit."""
    trace = data.draw(traces(shape))
    run = small_run(trace, slots=data.draw(st.integers(shape.top_k, shape.top_k + 4)))
    controller = counted(run)
    counts = controller.counts
    left = sum(len(pool.rooms) for pool in controller.residency.caches)
    assert counts.copies == counts.evictions + left


def test_lost_bytes_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that keeps the bytes of who left fails law 1."""

    def release(self: Pool, expert: int, size: int) -> Place:
        place = self.rooms.pop(expert)
        self.free_bytes += size - 1
        self._free.append(place)
        return place

    monkeypatch.setattr(Pool, "release", release)
    with pytest.raises(AssertionError, match="law 1: pool 0 lost bytes"):
        adversarial(small_run(tiny_trace(), slots=5), seeded(0)).run()


def test_a_place_given_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that gives the place of somebody who is still there fails law 1."""
    take = Pool.take

    def take_again(self: Pool, expert: int, size: int) -> Place:
        place = take(self, expert, size)
        if self.rooms:
            place = self.rooms[expert] = next(iter(self.rooms.values()))
        return place

    monkeypatch.setattr(Pool, "take", take_again)
    with pytest.raises(AssertionError, match="law [134]"):
        adversarial(small_run(tiny_trace(), slots=9), seeded(0)).run()
