"""MoEpic's rules on traces short enough to follow: what is copied, what runs, what stays."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.simulator import systems
from moesim.simulator.controller import Controller
from moesim.simulator.errors import BudgetError
from moesim.simulator.ledger import check
from moesim.simulator.messages import Ask, Command, Copy, Run, StepBegan
from moesim.simulator.policies.base import Demand, PrefetchPolicy, View, Wish
from moesim.simulator.terms import Cause
from moesim.simulator.testing import (
    adversarial,
    counted,
    decisions,
    engine,
    logged,
    seeded,
    small_run,
    tiny_trace,
    trace_of,
)
from moesim.traces import RoutingTrace, load

TOP, BOTTOM = 0, 1
PAIR = ("moepic", "moepic-static")
AT_ONCE = systems.load("moepic").cache.replace("ask=true", "ask=false")
MEGABYTE = 1_000_000
"""Of an expert of the small runs; half of it is a part."""


def served(trace: RoutingTrace, cache: str, **options: Any) -> Controller:
    """Return a controller that has served a trace, misses run last and one by one."""
    return counted(small_run(trace, cache=cache, **options))


def moved(controller: Controller) -> list[tuple[int, int]]:
    """Return (expert, part) of every copy."""
    return [(c.expert, c.part) for c in logged(controller) if isinstance(c, Copy)]


def one_layer(*tokens: Sequence[int]) -> RoutingTrace:
    """Return a trace of decode steps of a layer of six experts."""
    return trace_of([([], [[list(token)] for token in tokens])], experts=6)


def test_a_miss_brings_all_and_its_top_stays() -> None:
    """First top and bottom of expert 3 come, each run after its copy; then the bottom alone."""
    controller = served(one_layer([3], [3]), "split:theta=0.5/lcp", slots=3)
    sent = [c for c in logged(controller) if isinstance(c, Copy | Run)]
    expected = [
        ("copy", 1, 3, TOP, ()),
        ("copy", 2, 3, BOTTOM, ()),
        ("run", 3, 3, TOP, (1,)),
        ("run", 4, 3, BOTTOM, (2,)),
        ("copy", 5, 3, BOTTOM, ()),
        ("run", 6, 3, TOP, ()),
        ("run", 7, 3, BOTTOM, (5,)),
    ]
    found = [
        ("copy", c.n, c.expert, c.part, c.after)
        if isinstance(c, Copy)
        else ("run", c.n, *c.experts, c.part, c.after)
        for c in sent
    ]
    assert expected == found
    counts = controller.counts
    assert (counts.misses, counts.partial_hits, counts.hits) == (1, 1, 0)
    assert counts.bytes_demand == 3 * MEGABYTE // 2


def test_tops_that_are_here_run_first_and_together() -> None:
    """Of three experts two have their tops here: one launch for those, the rest as it comes."""
    trace = trace_of([([], [[[0, 1, 2]], [[3, 1, 0]]])], experts=6)
    controller = served(trace, "split:theta=0.5/lcp", slots=6)
    runs = [(c.experts, c.part) for c in logged(controller) if isinstance(c, Run)][6:]
    expected = [
        ((1, 0), TOP),
        ((1,), BOTTOM),
        ((0,), BOTTOM),
        ((3,), TOP),
        ((3,), BOTTOM),
    ]
    assert expected == runs


def test_as_many_tops_are_kept_as_the_budget_holds() -> None:
    """One expert's room is the buffer, that of two others holds four halves; the least goes."""
    trace = one_layer([0], [1], [2], [3], [0], [4], [1])
    controller = served(trace, "split:theta=0.5/lcp:rho=1", slots=3)
    tops = [expert for expert, part in moved(controller) if part == TOP]
    assert tops == [0, 1, 2, 3, 4, 1]  # 1, the oldest of the less used, gave way to 4
    assert controller.counts.partial_hits == 1
    assert controller.residency.staging.capacity_bytes == MEGABYTE


def test_without_a_top_nothing_is_kept() -> None:
    """At theta = 0 every demand is a miss of a whole expert, and nothing is ever evicted."""
    trace = tiny_trace()
    counts = served(trace, "split:theta=0/lcp", slots=8).counts
    assert counts.misses == counts.demands > 0
    assert counts.bytes_demand == counts.demands * MEGABYTE
    assert counts.evictions == 0


def test_whole_tops_without_fading_are_lifetime_lfu() -> None:
    """At theta = 1, rho = 1 and without prefetch every decision is lifetime LFU's."""
    rng = np.random.default_rng(3)
    rows = [[rng.permutation(6)[:2].tolist() for _ in range(2)] for _ in range(60)]
    trace = trace_of([([], rows[:30]), ([], rows[30:])], experts=6)
    ours = served(trace, "split:theta=1/lcp:rho=1", slots=6)
    theirs = served(trace, "lfu:count=lifetime,scope=per_layer", slots=6)
    assert decisions(logged(theirs)) == decisions(logged(ours))
    assert ours.residency.staging.capacity_bytes == 0


class Foretell(PrefetchPolicy):
    """Wishes for experts 7 and 6 of the second layer, in this order, once the first was routed."""

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        """Return them."""
        return [Wish(7), Wish(6)] if demand is not None and demand.layer == 0 else []


def two_layers(*tokens: tuple[Sequence[int], Sequence[int]]) -> RoutingTrace:
    """Return a trace of decode steps of two layers of six experts, numbered within their layer."""
    return trace_of([([], [[list(first), list(second)] for first, second in tokens])], experts=6)


def test_a_prefetch_brings_what_lacks_in_rank_order() -> None:
    """First both parts of 7, then of 6; in the next token, their tops here, the bottoms alone."""
    trace = two_layers(([0, 1], [1, 0]), ([0, 1], [1, 0]))
    controller = served(trace, "split:theta=0.5/lcp", prefetch=Foretell, slots=6)
    fetched = [
        (c.expert, c.part)
        for c in logged(controller)
        if isinstance(c, Copy) and c.cause is Cause.PREFETCH
    ]
    assert fetched == [(7, TOP), (7, BOTTOM), (6, TOP), (6, BOTTOM), (7, BOTTOM), (6, BOTTOM)]
    counts = controller.counts
    assert (counts.hits, counts.partial_hits, counts.misses) == (4, 2, 2)
    assert counts.bytes_prefetch_useful == 3 * MEGABYTE


def test_a_prefetch_takes_the_slot_of_a_bottom_that_has_been_handed_over() -> None:
    """The buffer's two slots hold what layer 0 runs; bottoms of layer 1 wait for those runs."""
    trace = two_layers(([0, 1], [1, 0]))
    controller = served(trace, "split:theta=0.25/lcp", prefetch=Foretell, slots=4)
    commands = logged(controller)
    bottoms = [c.n for c in commands if isinstance(c, Run) and c.part == BOTTOM][:2]
    after = [
        c.after
        for c in commands
        if isinstance(c, Copy) and c.cause is Cause.PREFETCH and c.part == BOTTOM
    ]
    assert [(n,) for n in bottoms] == after
    assert controller.counts.hits == 2


def test_a_bottom_fetched_in_vain_leaves_as_its_layer_is_routed() -> None:
    """Expert 7 is not chosen: its bottom is gone, its top stays, both are wasted in the end."""
    trace = two_layers(([0, 1], [0, 2]))
    controller = served(trace, "split:theta=0.5/lcp", prefetch=Foretell, slots=6)
    assert controller.counts.bytes_prefetch_wasted == MEGABYTE
    assert controller.residency.has_room(7)
    assert not controller.residency.has_all(7)


def test_more_experts_than_tops_and_slots_run_in_waves() -> None:
    """A prompt that uses all six experts of a layer runs every part of each once."""
    trace = trace_of([([[[0, 1]], [[2, 3]], [[4, 5]]], [])], experts=6)
    controller = served(trace, "split:theta=0.25/lcp", slots=3)
    assert controller.counts.waves > 0
    runs = [(e, c.part) for c in logged(controller) if isinstance(c, Run) for e in c.experts]
    assert sorted(runs) == [(expert, part) for expert in range(6) for part in (TOP, BOTTOM)]


def test_a_token_that_does_not_fit_is_refused() -> None:
    """Two tops and a buffer of two experts are the least; the line says what is needed."""
    with pytest.raises(BudgetError, match=r"2 experts of one token need 488.3KiB and 1.4MiB"):
        served(tiny_trace(), "split:theta=0.25/lcp", slots=3)


def test_a_cpu_computes_whole_experts() -> None:
    """Misses are computed there as a whole, without a copy; experts partly here on the GPU."""
    trace = one_layer([3], [3])
    controller = served(trace, "split:theta=0.5/lcp", schedule="cpu_on_miss", slots=3)
    assert moved(controller) == []
    assert controller.counts.cpu_experts == controller.counts.misses == 2


# The configurator


def bundle(name: str) -> dict[str, str]:
    """Return a system's policies."""
    system = systems.load(name)
    return {"cache": system.cache, "prefetch": system.prefetch, "schedule": system.schedule}


@pytest.fixture(scope="module")
def sample() -> RoutingTrace:
    """Return two requests with every signal, twice: the second asks, the third finds new pools."""
    two = tiny_trace(layers=4, experts=12, top_k=2, decode_tokens=12)
    return two.select_requests([0, 1, 0, 1])


def test_pools_are_cut_as_a_step_begins_with_no_request_in_service(sample: RoutingTrace) -> None:
    """The second request's first step asks, the third's cuts, and what fills pools is counted."""
    controller = counted(small_run(sample, **bundle("moepic"), slots=24))
    steps = [
        next(fact.step for fact in facts if isinstance(fact, StepBegan))
        for facts, _, commands in controller.log or ()
        if any(isinstance(c, Copy) and c.cause is Cause.REBALANCE for c in commands)
    ]
    assert steps == [26]  # each request has a prompt and 12 tokens
    asked = [
        next(fact.step for fact in facts if isinstance(fact, StepBegan))
        for facts, _, commands in controller.log or ()
        if any(isinstance(c, Ask) for c in commands)
    ]
    assert asked == [13]  # and no more: 5,000 tokens have not passed
    copies = [c for c in logged(controller) if isinstance(c, Copy) and c.cause is Cause.REBALANCE]
    assert {TOP} == {copy.part for copy in copies}
    assert controller.counts.bytes_rebalance > 0


def test_a_search_takes_its_time(sample: RoutingTrace) -> None:
    """An answer that comes after the third request has begun waits for the fourth."""

    def cut_at(ask_ns: int) -> list[int]:
        run = small_run(sample, **bundle("moepic"), slots=24, ask_ns={"split_search": ask_ns})
        controller = run.controller(keep_log=True)
        engine(run, controller).run()
        return [
            next(fact.step for fact in facts if isinstance(fact, StepBegan))
            for facts, _, commands in controller.log or ()
            if any(isinstance(c, Copy) and c.cause is Cause.REBALANCE for c in commands)
        ]

    run = small_run(sample, **bundle("moepic"), slots=24)
    requests = engine(run, run.controller()).run().requests
    second_ns = requests[2].began_ns - requests[1].began_ns
    assert cut_at(second_ns // 2) == [26]
    assert cut_at(second_ns + second_ns // 2) == [39]
    assert cut_at(10 * second_ns) == []


def test_without_an_ask_a_search_takes_no_time(sample: RoutingTrace) -> None:
    """It finds what is asked for, a request earlier."""
    policies = bundle("moepic")
    at_once = counted(small_run(sample, **(policies | {"cache": AT_ONCE}), slots=24))
    steps = [
        next(fact.step for fact in facts if isinstance(fact, StepBegan))
        for facts, _, commands in at_once.log or ()
        if any(isinstance(c, Copy) and c.cause is Cause.REBALANCE for c in commands)
    ]
    assert steps == [13]


def test_its_search_is_refreshed_every_5000_tokens(shared_data: Path) -> None:
    """On 13,000 tokens that were recorded it searches thrice: once to begin with, then twice.

    Each time it does so as a request begins, the first for which so many tokens have passed; the
    next one finds pools cut anew, and the bytes that fill them are those of the tops.
    """
    recorded = load(shared_data / "traces" / "gpt-oss-20b")
    trace = recorded.head(requests=44)
    starts = trace.row_starts()
    cache = "adaptive_split:foresees=false,refresh=5000,ask=true/lcp"
    controller = counted(small_run(trace, cache=cache, slots=24 * 8))
    begun = [
        (next(fact.step for fact in facts if isinstance(fact, StepBegan)), commands)
        for facts, _, commands in controller.log or ()
        if any(isinstance(fact, StepBegan) for fact in facts)
    ]
    asked = [step for step, commands in begun if any(isinstance(c, Ask) for c in commands)]
    first = int(starts[1])
    second = int(starts[starts >= first + 5000][0])
    third = int(starts[starts >= second + 5000][0])
    assert asked == [first, second, third]
    cut = [step for step, commands in begun if any(_is_rebalancing(c) for c in commands)]
    assert cut == [int(starts[starts > step][0]) for step in asked]
    moved = sum(any(map(_is_rebalancing, [c])) for _, commands in begun for c in commands)
    assert controller.counts.bytes_rebalance == moved * MEGABYTE  # whole tops: nothing is foreseen


def _is_rebalancing(command: Command) -> bool:
    return isinstance(command, Copy) and command.cause is Cause.REBALANCE


def test_the_bytes_of_a_rebalancing_take_their_time(sample: RoutingTrace) -> None:
    """Both engines charge them to the link, to the same nanosecond."""
    soon_ns = {"split_search": 1_000}
    run = small_run(sample, **bundle("moepic"), slots=24, window_bytes=3 * MEGABYTE, ask_ns=soon_ns)
    found = []
    for name in ("clock", "simpy"):
        controller = run.controller()
        timings = engine(run, controller, name=name).run()
        controller.close()
        check(controller.counts, timings)
        found.append((timings.span_ns, timings.link_busy_ns, controller.counts))
    assert found[0] == found[1]
    assert found[0][2].bytes_rebalance > 0


def test_results_say_how_experts_were_split(sample: RoutingTrace) -> None:
    """A row's notes name the share of a top and how many each layer kept."""
    row = small_run(sample, **bundle("moepic-static"), slots=24).replay().row
    expected = "at the end 11 of a layer's 12 experts had room for their tops, 50 % of an expert"
    assert expected in str(row["notes"])


@pytest.mark.parametrize("name", ["moepic", "moepic-static"])
@pytest.mark.parametrize("slots", [9, 24])
def test_it_keeps_the_laws_in_any_order_of_ends(
    sample: RoutingTrace, name: str, slots: int
) -> None:
    """Under the adversarial driver the witness finds every part run once, with its weights."""
    for seed in range(4):
        window_bytes = 1 if seed % 2 else None
        run = small_run(sample, **bundle(name), slots=slots, window_bytes=window_bytes)
        driver = adversarial(run, seeded(seed))
        driver.run()
        assert driver.witness.controller.counts.partial_hits > 0


def test_where_only_the_split_differs_so_do_decisions(sample: RoutingTrace) -> None:
    """With and without its configurator it begins alike, and parts at the third request."""
    logs = [logged(counted(small_run(sample, **bundle(name), slots=24))) for name in PAIR]
    alike = next(at for at, (a, b) in enumerate(zip(*logs, strict=False)) if a != b)
    assert alike > 100
