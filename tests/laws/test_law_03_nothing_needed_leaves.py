"""Law 3: nothing is evicted between being judged needed and having its run handed over."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import orders, shapes, traces, with_fault

from moesim.simulator.control.residency import Evictable, WholeResidency
from moesim.simulator.errors import PolicyError
from moesim.simulator.messages import (
    Command,
    CopyEnded,
    LayerRouted,
    RequestArrived,
    RunBegan,
    StepBegan,
    StepEnded,
)
from moesim.simulator.policies.base import (
    CachePolicy,
    PrefetchPolicy,
    View,
    Wish,
)
from moesim.simulator.policies.base import (
    Evictable as Offered,
)
from moesim.simulator.terms import Phase, Verdict
from moesim.simulator.testing import (
    KEEP_AT_RANDOM,
    SPLIT_AT_RANDOM,
    WISH_AT_RANDOM,
    Witness,
    adversarial,
    seeded,
    small_run,
    tiny_trace,
    trace_of,
)


@given(st.data(), shapes(), orders())
def test_what_is_needed_stays_until_it_has_run(data: st.DataObject, shape, choose) -> None:
    """Hits and late hits keep their room, in cache and staging, whatever is prefetched."""
    trace = data.draw(traces(shape, prompt_tokens=2, decode_tokens=6))
    slots = shape.top_k + data.draw(st.integers(shape.top_k, shape.top_k + 3))
    run = small_run(
        trace,
        cache=KEEP_AT_RANDOM,
        prefetch=WISH_AT_RANDOM,
        schedule=SPLIT_AT_RANDOM,
        slots=slots,
        window_bytes=data.draw(st.sampled_from([1, 2_000_000, 16_000_000])),
        seed=data.draw(st.integers(0, 99)),
    )
    adversarial(run, choose).run()


@given(st.data(), shapes(), orders())
def test_unequal_experts_stay_until_they_have_run(data: st.DataObject, shape, choose) -> None:
    """The same holds in a pool that counts bytes, where one expert's room may take two to give."""
    trace = data.draw(traces(shape))
    sizes_L = [
        data.draw(st.sampled_from([500_000, 700_000, 1_000_000])) for _ in range(shape.layers)
    ]
    run = small_run(
        trace,
        prefetch=WISH_AT_RANDOM,
        slots=data.draw(st.integers(shape.top_k, shape.top_k + 3)),
        expert_bytes_L=sizes_L,
    )
    adversarial(run, choose).run()


@given(st.data(), shapes(layers=2, experts=4), orders())
def test_prefetches_under_way_never_keep_a_demand_out(data: st.DataObject, shape, choose) -> None:
    """Room that prefetches still on their way have taken is room for what a layer needs."""
    trace = data.draw(traces(shape))
    run = small_run(trace, prefetch=WISH_AT_RANDOM, slots=shape.top_k)
    adversarial(run, choose).run()


class PassOn(CachePolicy):
    """Let everything pass through staging."""

    def staging_bytes(self) -> int:
        return self.run.budget_bytes

    def admit(self, expert: int, view: View) -> Verdict:
        return Verdict.TRANSIENT


class WishOnce(PrefetchPolicy):
    """Wish for expert 2 of the only layer, before the first step."""

    def wants(self, demand, view: View) -> Iterator[Wish]:
        if view.step == 0 and demand is None:
            yield Wish(2)


def test_a_staged_late_hit_keeps_its_room() -> None:
    """An expert staged for a layer that did not want it, still loading when it does, stays."""
    row = [[0]]
    run = small_run(
        trace_of([([], [row, [[2]]])], experts=3), cache=PassOn, prefetch=WishOnce, slots=2
    )
    witness = Witness(run.controller())
    witness.handle([RunBegan(witness.initial(), 2_000_000), RequestArrived(0)], 0)
    witness.handle([StepBegan(0, (0,), (Phase.DECODE,), {})], 0)  # copy 1: expert 2, for nothing
    witness.handle([LayerRouted(0, 0, (0,))], 0)  # copy 2 and run 3: expert 0
    witness.handle([CopyEnded(2), StepEnded(0, (1,))], 0)
    witness.handle([StepBegan(1, (0,), (Phase.DECODE,), {})], 0)
    witness.handle([LayerRouted(1, 0, (2,))], 0)  # late: run 4 waits for copy 1
    witness.handle([CopyEnded(1)], 0)  # and still reads it


def test_evicting_what_is_leased_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A book that offers leased experts as victims fails law 3 once one is taken."""

    def offers(self: Evictable, expert: object) -> bool:
        return expert in self._rooms

    def everyone(self: Evictable) -> Iterator[int]:
        return iter(self._rooms)

    monkeypatch.setattr(Evictable, "__contains__", offers)
    monkeypatch.setattr(Evictable, "__iter__", everyone)
    with pytest.raises(AssertionError, match="law 3"):
        adversarial(small_run(tiny_trace(), slots=2), seeded(0)).run()


def test_leases_cleared_early_are_caught() -> None:
    """A controller that lets go at the hand-over, not when the runs end, fails law 3 or 4."""
    with pytest.raises(AssertionError, match="law [34]"):
        for seed in range(20):
            run = small_run(tiny_trace(), prefetch=WISH_AT_RANDOM, slots=4, seed=seed)
            controller = run.controller()
            leased = controller.residency.leased

            def let_go(commands: list[Command], leased: dict[int, int] = leased) -> list[Command]:
                leased.clear()
                return commands

            with_fault(run, let_go, controller, seed).run()


def test_a_victim_that_was_not_offered_is_refused() -> None:
    """A policy that gives up an expert that is needed gets a PolicyError with its name."""

    class GiveUpTheNewest(CachePolicy):
        def __init__(self, run) -> None:
            super().__init__(run)
            self.newest = -1

        def on_admit(self, expert: int, view: View) -> None:
            self.newest = expert

        def choose_victim(self, evictable: Offered, view: View) -> int:
            return self.newest

    trace = trace_of([([], [[[0, 1]], [[2, 1]], [[3, 2]]])], experts=4)
    with pytest.raises(
        PolicyError, match="GiveUpTheNewest chose expert 2, which it was not offered"
    ):
        adversarial(small_run(trace, cache=GiveUpTheNewest, slots=3), seeded(0)).run()


def test_the_book_itself_says_what_may_leave() -> None:
    """Only what is neither loading nor leased is offered, and can be."""
    residency = WholeResidency([1, 1], 3, 1, 3, None, 0)
    (pool,) = residency.caches
    for expert in (0, 1, 4):
        pool.take(expert, 1)
    residency.loading[0] = 1
    residency.leased[1] = 0
    assert [*residency.evictable[0]] == [4]
    assert residency.can_evict(pool)
    residency.leased[4] = 0
    assert not residency.can_evict(pool)
