"""What single prefetch policies wish for, asked directly."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from moesim.simulator import registry
from moesim.simulator.policies.base import (
    Demand,
    PrefetchPolicy,
    Question,
    RunInfo,
    View,
    Wish,
)
from moesim.simulator.policies.prefetch.byte_budget import ByteBudget
from moesim.simulator.terms import Phase
from moesim.simulator.testing import counted, small_run, trace_of
from moesim.simulator.workload.foresight import RecordedFuture
from moesim.traces import RoutingTrace

MakeRun = Callable[..., RunInfo]
MakeView = Callable[..., View]
MakeDemand = Callable[..., Demand]


def wishes(policy: PrefetchPolicy, demand: Demand | None, view: View) -> list[tuple[int, float]]:
    """Return (expert, priority) of each wish."""
    return [(wish.expert, wish.priority) for wish in policy.wants(demand, view)]


def next_gate(run: RunInfo, options: str) -> PrefetchPolicy:
    """Return the look-ahead policy with these options."""
    policy: PrefetchPolicy = registry.parse("prefetch", f"next_gate:{options}").build(run)
    return policy


def look(*rows_THM: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return signals in which each token looks ahead like this."""
    return {"look_in_TLHM": [[list(row) for row in row_HM] for row_HM in rows_THM]}


def test_next_gate_wishes_nearer_layers_first_and_best_first(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """Two layers ahead, two experts each, in the router's order; after the last layer comes 0."""
    run = make_run()
    view = make_view(run, event=7, layer=1, signals=look([[3, 1, 0], [2, 0, 1]]))
    policy = next_gate(run, "horizon=2,width=2")
    assert wishes(policy, demand(1, hits=[4, 5]), view) == [(11, 8), (9, 8), (2, 9), (0, 9)]


def test_next_gate_skips_what_is_there_and_what_is_unknown(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """Residents are not wished for, nor are the places of a signal that say -1."""
    run = make_run()
    view = make_view(run, [7], event=0, layer=0, signals=look([[3, -1, 0, 1]]))
    assert wishes(next_gate(run, "width=3"), demand(0, hits=[0, 1]), view) == [(4, 1)]


def test_next_gate_takes_only_the_first_missing(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """AdapMoE's rule: of each token's best, the first that is absent."""
    run = make_run()
    view = make_view(run, [7], event=0, layer=0, signals=look([[3, 0, 1]], [[2, 0, 1]]))
    policy = next_gate(run, "width=3,take=first_missing")
    assert wishes(policy, demand(0, hits=[0, 1]), view) == [(4, 1), (6, 1)]


def test_next_gate_orders_a_batch_by_votes(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """What more tokens promise comes first; equal votes go by token and rank."""
    run = make_run()
    view = make_view(run, event=0, layer=0, signals=look([[0, 1]], [[2, 1]], [[3, 1]]))
    expected = [(5, 1), (4, 1), (6, 1), (7, 1)]
    assert wishes(next_gate(run, "width=2"), demand(0, hits=[0, 1]), view) == expected


def test_next_gate_asks_the_last_prompt_token_for_the_next_step(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """Past the last layer of a prompt only its last token has a next step to promise."""
    run = make_run()
    signals = look([[0, 1]], [[3, 2]])
    prompt = make_view(run, event=2, layer=2, signals=signals, phases=(Phase.PREFILL,))
    decode = make_view(run, event=2, layer=2, signals=signals)
    policy = next_gate(run, "width=2")
    assert wishes(policy, demand(2, hits=[8, 9]), prompt) == [(3, 3), (2, 3)]
    assert [expert for expert, _ in wishes(policy, demand(2, hits=[8]), decode)] == [0, 1, 3, 2]


def test_layer_streaming_wishes_a_whole_layer_and_wraps(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """When a step begins the first layers are wished, then always the one ``step`` ahead."""
    run = make_run()
    policy = registry.parse("prefetch", "layer_streaming:step=2").build(run)
    begin = make_view(run, event=5)
    assert wishes(policy, None, begin) == [(e, 6 + e // 4) for e in range(8)]
    routed = make_view(run, event=7, layer=1)
    assert wishes(policy, demand(1, hits=[4, 5]), routed) == [(e, 9) for e in range(4)]


def test_a_transition_table_scores_by_what_followed(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """An expert that always follows outranks one that follows a popular expert now and then."""
    follows_LEE = np.zeros((3, 4, 4), np.int64)
    follows_LEE[0, 0] = [90, 5, 5, 0]
    follows_LEE[0, 1] = [0, 0, 0, 4]
    run = make_run(follows_LEE=follows_LEE)
    view = make_view(run, event=0, layer=0)
    build = registry.parse("prefetch", "transition_table").build
    assert wishes(build(run), demand(0, hits=[0, 1]), view) == [(7, 1), (4, 1)]
    wide = registry.parse("prefetch", "transition_table:width=4").build(run)
    assert [e for e, _ in wishes(wide, demand(0, hits=[0, 1]), view)] == [7, 4, 5, 6]


def test_an_online_table_learns_from_the_run(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """Nothing is wished before anything was seen; then what followed, over the end of a token."""
    run = make_run(top_k=1)
    policy = registry.parse("prefetch", "transition_table:fit=online").build(run)
    token = [(0, 1), (1, 6), (2, 8)]
    first = []
    for layer, expert in token:
        view = make_view(run, event=layer, layer=layer)
        first += wishes(policy, demand(layer, misses=[expert]), view)
    assert first == []
    list(policy.wants(None, make_view(run, event=2)))
    second = []
    for layer, expert in token:
        view = make_view(run, event=3 + layer, layer=layer)
        second += wishes(policy, demand(layer, hits=[expert]), view)
    assert second == [(6, 4), (8, 5), (1, 6)]


def test_an_online_table_starts_afresh_with_a_prompt(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """The last layer of one request does not lead to the first layer of another."""
    run = make_run(layers=1, expert_bytes_L=(1,), top_k=1)
    policy = registry.parse("prefetch", "transition_table:fit=online").build(run)
    list(policy.wants(demand(0, misses=[1]), make_view(run, event=0, layer=0)))
    list(policy.wants(None, make_view(run, event=0, phases=(Phase.PREFILL,))))
    list(policy.wants(demand(0, misses=[2]), make_view(run, event=1, layer=0)))
    view = make_view(run, event=2, layer=0)
    assert wishes(policy, demand(0, hits=[1]), view) == []


def oracle(run: RunInfo, **options: float) -> PrefetchPolicy:
    """Return the oracle with these options."""
    text = ",".join(f"{name}={value}" for name, value in options.items())
    policy: PrefetchPolicy = registry.parse("prefetch", f"oracle:{text}").build(run)
    return policy


def test_a_perfect_oracle_wishes_exactly_what_comes(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """The next events in order, the first before anything has run, and nothing past the end."""
    run = make_run(future=RecordedFuture([[0, 1], [6, 7], [8]]))
    policy = oracle(run, horizon=2)
    assert wishes(policy, None, make_view(run)) == [(0, 0), (1, 0), (6, 1), (7, 1)]
    view = make_view(run, event=1, layer=1)
    assert wishes(policy, demand(1, hits=[6, 7]), view) == [(8, 2)]


@pytest.mark.parametrize(("recall", "precision"), [(0.5, 1.0), (1.0, 0.5), (0.7, 0.4)])
def test_an_oracle_has_the_recall_and_precision_asked_for(
    make_run: MakeRun, make_view: MakeView, recall: float, precision: float
) -> None:
    """Over 2,000 events of a wide layer both shares come out within five standard errors."""
    events = [[2 * (event % 30), 2 * (event % 30) + 1] for event in range(2_000)]
    run = make_run(
        layers=1, experts=64, expert_bytes_L=(1,), budget_bytes=64, future=RecordedFuture(events)
    )
    policy = oracle(run, recall=recall, precision=precision)
    named = right = 0
    for event in range(len(events)):
        experts = {expert for expert, _ in wishes(policy, None, make_view(run, event=event - 1))}
        named += len(experts)
        right += len(experts & set(events[event]))
    assert right / 4_000 == pytest.approx(recall, abs=5 * (0.25 / 4_000) ** 0.5)
    assert right / named == pytest.approx(precision, abs=0.05)


def test_an_oracle_makes_up_its_mind_once(make_run: MakeRun, make_view: MakeView) -> None:
    """An event in sight of several layers is foreseen the same way each time."""
    run = make_run(future=RecordedFuture([[0, 1], [6, 7], [8, 9], [0, 2]] * 5))
    policy = oracle(run, recall=0.5, horizon=3)
    early = wishes(policy, None, make_view(run, event=3))
    later = wishes(policy, None, make_view(run, event=5))
    assert [wish for wish in early if wish[1] == 6] == [wish for wish in later if wish[1] == 6]


class Wanting(PrefetchPolicy):
    """Wishes for the experts it is told, and asks one question."""

    def __init__(self, run: RunInfo, experts: Sequence[int]) -> None:
        super().__init__(run)
        self.experts = experts

    def wants(self, demand: Demand | None, view: View) -> list[Wish]:
        """Return them all."""
        return [Wish(expert) for expert in self.experts]

    def asks(self, demand: Demand | None, view: View) -> list[Question]:
        """Ask for more."""
        return [Question("more", self.experts)]

    def compute(self, name: str, question: Any) -> Any:
        """Return the question."""
        return question

    def on_answer(self, name: str, answer: Any, view: View) -> list[Wish]:
        """Wish for what was answered."""
        return [Wish(expert) for expert in answer]


def test_a_byte_budget_lets_through_what_the_link_can_move_in_time(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """200 ns of compute until the next layer are two copies of 100 ns, 400 until the one after."""
    run = make_run()
    view = make_view(run, event=0, layer=0, step=5)
    routed = demand(0, hits=[0, 1])
    near = ByteBudget(run, Wanting(run, [4, 5, 6]))
    assert wishes(near, routed, view) == [(4, 0), (5, 0)]
    mixed = ByteBudget(run, Wanting(run, [4, 5, 6, 8, 9, 10]))
    assert wishes(mixed, routed, view) == [(4, 0), (5, 0), (8, 0), (9, 0)]
    half = ByteBudget(run, Wanting(run, [4, 5, 6]), fraction=0.5)
    assert wishes(half, routed, view) == [(4, 0)]


def test_a_byte_budget_charges_what_is_still_under_way(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """A prefetch not yet ended takes its time off the window; the layer's own misses do not."""
    run = make_run()
    guard = ByteBudget(run, Wanting(run, [4, 5, 6]))
    busy = make_view(run, event=0, layer=0, step=5, queued_bytes=3)
    assert wishes(guard, demand(0, misses=[0, 1]), busy) == [(4, 0)]


def test_a_byte_budget_remembers_what_it_let_through(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """A wish that still waits is charged before new ones, and forgotten with its layer."""
    run = make_run()
    inner = Wanting(run, [8, 9])
    guard = ByteBudget(run, inner)
    view = make_view(run, event=0, layer=0, step=5)
    assert wishes(guard, demand(0, hits=[0, 1]), view) == [(8, 0), (9, 0)]
    inner.experts = [10]
    view = make_view(run, event=1, layer=1, step=5)
    assert wishes(guard, demand(1, hits=[4, 5]), view) == []
    inner.experts = [0]
    view = make_view(run, event=2, layer=2, step=5)
    assert wishes(guard, demand(2, hits=[8, 9]), view) == [(0, 0)]


def test_a_byte_budget_is_tight_while_the_cache_is_cold(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """In the first step at most ``cold_limit`` pass, however long the window."""
    run = make_run()
    guard = ByteBudget(run, Wanting(run, [8, 9, 10]), cold_limit=1)
    cold = make_view(run, event=0, layer=0, step=0)
    assert wishes(guard, demand(0, hits=[0, 1]), cold) == [(8, 0)]


def test_a_byte_budget_passes_questions_on(
    make_run: MakeRun, make_view: MakeView, demand: MakeDemand
) -> None:
    """What the guarded policy asks is asked, and its wishes on the answer are budgeted too."""
    run = make_run()
    guard = ByteBudget(run, Wanting(run, []))
    view = make_view(run, event=0, layer=0, step=5)
    list(guard.wants(demand(0, hits=[0, 1]), view))
    assert [question.name for question in guard.asks(None, view)] == ["more"]
    assert guard.compute("more", [4]) == [4]
    assert [wish.expert for wish in guard.on_answer("more", [4, 5, 6], view)] == [4, 5]


def test_a_prefetched_expert_is_a_hit() -> None:
    """With a perfect oracle nothing is missed; the bytes move as prefetch."""
    trace: RoutingTrace = trace_of([([], [[[0], [1]], [[2], [3]], [[1], [0]]])], experts=4)
    counts = counted(small_run(trace, prefetch="oracle", slots=4)).counts
    assert (counts.hits, counts.misses) == (6, 0)
    assert (counts.bytes_demand, counts.bytes_prefetch_useful) == (0, 6_000_000)
