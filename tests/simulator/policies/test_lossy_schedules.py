"""Schedules that change the router's choices: which expert stands in, by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from moesim.simulator.errors import CapabilityError, InputError, PolicyError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.messages import Reroute, Run
from moesim.simulator.policies.base import (
    CachePolicy,
    Demand,
    Evictable,
    Group,
    SchedulePolicy,
    View,
)
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import Prepared, prepare
from moesim.simulator.terms import GPU
from moesim.simulator.testing import counted, logged, small_run, tiny_trace, trace_of
from moesim.traces import ClosedLoop, RoutingTrace, SelectionRule, SignalSpec

EXPERTS = 4


def scored(tokens: Sequence[Sequence[float]], *, prompt: int = 0) -> RoutingTrace:
    """Return one request of one layer, top-2 by these probabilities of four experts."""
    probs_TLE = np.array(tokens, np.float32)[:, None]
    expert_TLK = np.argsort(-probs_TLE, axis=2, kind="stable")[..., :2]
    rows = expert_TLK.tolist()
    trace = trace_of([(rows[:prompt], rows[prompt:])], experts=EXPERTS)
    spec = SignalSpec(tap="router", known_at="layer_routed", producer="router")
    signals = {
        "router_probs_TLE": probs_TLE,
        "router_top_TLM": np.argsort(-probs_TLE, axis=2, kind="stable")[..., :3].astype(np.int16),
    }
    header = trace.header.model_copy(
        update={
            "selection": SelectionRule(score="softmax", normalise=True),
            "signals": dict.fromkeys(signals, spec),
        }
    )
    return replace(trace, header=header, signals=signals)


class FirstTwo(CachePolicy):
    """Hold experts 0 and 1, and give up anything that may leave."""

    def initial(self) -> Sequence[int]:
        return (0, 1)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        return min(evictable)


class Notes(FirstTwo):
    """Note who was touched and who is not here."""

    touched: ClassVar[list[int]] = []
    gone: ClassVar[list[int]] = []

    def on_touch(self, expert: int, view: View) -> None:
        self.touched.append(expert)

    def on_evict(self, expert: int, view: View) -> None:
        self.gone.append(expert)


def held(trace: RoutingTrace, schedule: object, cache: object = FirstTwo) -> Prepared:
    """Return a run that begins with experts 0 and 1 in its two slots."""
    return small_run(trace, cache=cache, schedule=schedule, slots=2)


def changes(run: Prepared) -> list[tuple[tuple[int, int | None], ...]]:
    """Return what every reroute of a run changed."""
    return [each.changes for each in logged(counted(run)) if isinstance(each, Reroute)]


def test_an_absent_choice_goes_to_the_next_in_the_ranking_that_is_here() -> None:
    """Of 3, 0, 2, 1 in this order the router chose 3 and 0: 1 stands in for 3, not 2."""
    controller = counted(held(scored([[0.3, 0.1, 0.2, 0.4]]), "fallback/resident_first"))
    commands = [each for each in logged(controller) if isinstance(each, Reroute | Run)]
    assert [type(each) for each in commands] == [Reroute, Run]
    assert commands[0].changes == ((0, 1),)
    assert commands[1].experts == (1, 0)
    counts = controller.counts
    assert (counts.rerouted, counts.skipped, counts.misses, counts.copies) == (1, 0, 0, 0)


def test_each_token_of_a_prompt_is_ranked_by_itself() -> None:
    """Tokens without 2 and 3 are sent elsewhere; the one between them keeps its own."""
    trace = scored([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.2, 0.1, 0.4, 0.3]], prompt=3)
    assert changes(held(trace, "fallback/resident_first")) == [((0, 1), (1, 0), (4, 0), (5, 1))]


def test_beyond_the_best_that_are_known_nobody_stands_in() -> None:
    """With the ids of the three best alone, the last of 3, 2, 0, 1 is not known: 2 is copied."""
    run = held(scored([[0.2, 0.1, 0.3, 0.4]]), "fallback:ranking=top/resident_first")
    assert changes(run) == [((0, 0),)]
    counts = counted(run).counts
    assert (counts.hits, counts.misses, counts.copies) == (1, 1, 1)


def test_skipping_leaves_what_is_here() -> None:
    """Absent choices run nowhere; a token with none here has an event without experts."""
    trace = scored([[0.3, 0.1, 0.2, 0.4], [0.1, 0.2, 0.3, 0.4]])
    run = held(trace, "fallback:miss=skip/resident_first")
    assert changes(run) == [((0, None),), ((0, None), (1, None))]
    counts = counted(run).counts
    assert (counts.rerouted, counts.skipped, counts.demands, counts.copies) == (0, 3, 1, 0)


def test_caches_are_told_of_the_routers_own_choice() -> None:
    """The fallback's substitutes are not touched, and an absent original is said to be gone."""
    Notes.touched, Notes.gone = [], []
    counted(held(scored([[0.3, 0.1, 0.2, 0.4]]), "fallback/resident_first", Notes))
    assert (Notes.touched, Notes.gone) == ([3, 0], [3])


def test_cache_prior_touches_those_that_serve() -> None:
    """Its cache counts what was used: 1, for which the bonus was enough, and not 3."""
    Notes.touched, Notes.gone = [], []
    trace = scored([[0.31, 0.2, 0.17, 0.32]])
    counted(held(trace, "cache_prior:strength=1,sure=0/resident_first", Notes))
    assert (Notes.touched, Notes.gone) == ([1, 0], [3])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("strength=0,sure=0", []),
        ("strength=1,sure=0", [((0, 1),)]),
        ("strength=1,sure=1", []),
        ("strength=0.5,sure=0", []),
    ],
)
def test_cache_prior_gives_a_bonus_of_so_much_of_the_range(options: str, expected: list) -> None:
    """Logits range over ln(0.5 / 0.1) = 1.61; to overtake 3 expert 1 needs ln(0.5 / 0.15) = 1.20.

    Half of the range is not enough, all of it is; the router's best is never let go.
    """
    trace = scored([[0.25, 0.15, 0.1, 0.5]])
    assert changes(held(trace, f"cache_prior:{options}/resident_first")) == expected


def test_cache_prior_leaves_prompts_alone() -> None:
    """A step with prompt tokens is routed as it is."""
    trace = scored([[0.25, 0.15, 0.1, 0.5]], prompt=1)
    assert changes(held(trace, "cache_prior:strength=1,sure=0/resident_first")) == []


@pytest.mark.parametrize("options", ["strength=2", "sure=3", "sure=-1"])
def test_cache_prior_refuses_options_without_sense(options: str) -> None:
    """Lambda lies in [0, 1], and J counts experts of one token."""
    with pytest.raises(InputError, match="schedule policy cache_prior: option"):
        held(scored([[0.25, 0.15, 0.1, 0.5]]), f"cache_prior:{options}/resident_first").controller()


def test_two_that_change_choices_are_refused() -> None:
    """Which of them would be asked first nobody could tell."""
    run = held(tiny_trace(), "cache_prior/fallback/resident_first")
    with pytest.raises(InputError, match="CachePrior and Fallback, which it guards, both change"):
        run.controller()


def test_a_schedule_around_a_lossy_one_leaves_it_its_say() -> None:
    """The SLO scheduler forms steps; what it guards reroutes."""
    run = held(scored([[0.3, 0.1, 0.2, 0.4]]), "slo_first/fallback/resident_first")
    assert changes(run) == [((0, 1),)]


class Wrong(SchedulePolicy):
    """Change choices wrongly, in a way that a subclass says."""

    does = frozenset({"reroute"})
    answer: ClassVar[list[tuple[int, int | None]]] = []

    def reroute(self, chosen: object, gates: object, view: View) -> list[tuple[int, int | None]]:
        return self.answer

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        return [Group(GPU, tuple(demand.experts))]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([(2, 1)], "changes choice 2 of layer 0: there are 2"),
        ([(0, 1), (0, 2)], "each may be changed once"),
        ([(0, 9)], "sends a token of layer 0 to expert 9"),
        ([(0, 0)], "sends token 0 of layer 0 to one expert twice"),
        ([(0, None)], "changes the text and does not say so"),
    ],
)
def test_what_is_no_choice_is_refused(
    answer: list[tuple[int, int | None]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place or expert that is not there, one expert twice, a skip that was not declared."""
    monkeypatch.setattr(Wrong, "answer", answer)
    with pytest.raises(PolicyError, match=message):
        counted(held(scored([[0.3, 0.1, 0.2, 0.4]]), Wrong))


def test_a_trace_without_the_ranking_is_refused() -> None:
    """What all experts scored must have been recorded."""
    trace = trace_of([([], [[[0, 1]]])], experts=EXPERTS)
    with pytest.raises(CapabilityError, match="reads the signal 'router_probs_TLE'"):
        prepare(spec_of(trace))


def test_absent_choices_cannot_be_rerouted() -> None:
    """A layer of which only some tokens were recorded has no row for each choice."""
    trace = scored([[0.3, 0.1, 0.2, 0.4], [0.3, 0.1, 0.2, 0.4]], prompt=2)
    trace.expert_TLK[0] = -1
    with pytest.raises(CapabilityError, match="2 choices and 2 rows"):
        counted(held(trace, "fallback/resident_first"))


def spec_of(
    trace: RoutingTrace, schedule: str = "fallback/resident_first", seed: int = 0
) -> RunSpec:
    """Return a run of eMoE in half the room."""
    return RunSpec(
        trace=trace,
        trace_name="tiny",
        hardware="rtx4090",
        policies={
            "cache": "periodic:period=1,window=1,staging=0",
            "prefetch": "none",
            "schedule": schedule,
        },
        cost_of="olmoe",
        memory=MemorySpec(slots="9"),
        seed=seed,
    )


def bound_to(spec: RunSpec, **other: object) -> RunSpec:
    """Return the same run of a trace that was recorded under it, or nearly so."""
    said = {
        "system": "emoe",
        "policies": dict(spec.policies),
        "budget_bytes": 0,
        "slots": 9,
        "seed": 0,
        "order": spec.trace.order_hash(),
    }
    loop = ClosedLoop(**{**said, **other})
    header = spec.trace.header.model_copy(update={"closed_loop": loop})
    return replace(spec, trace=replace(spec.trace, header=header))


def test_a_row_says_which_loop_it_is() -> None:
    """Open for recorded routes, closed where they were recorded under the run, else nothing."""
    spec = spec_of(tiny_trace())
    row = prepare(spec).replay().row
    assert row["loop"] == "open"
    assert row["rerouted"] > 0
    assert "accuracy is measured by execution alone" in row["notes"]
    assert not {name for name in row if "perplexity" in name or "accuracy" in name}
    assert prepare(bound_to(spec)).replay().row["loop"] == "closed"
    lossless = prepare(spec_of(tiny_trace(), "resident_first")).replay().row
    assert (lossless["loop"], lossless["rerouted"], lossless["skipped"]) == ("", 0, 0)


@pytest.mark.parametrize(
    "other",
    [{"slots": 8}, {"seed": 1}, {"order": "another"}, {"policies": {"cache": "lru"}}],
)
def test_a_closed_loop_of_another_run_is_an_open_one(other: dict[str, object]) -> None:
    """Budget, seed, policies and order of requests all bind, and the row says whose routes."""
    row = prepare(bound_to(spec_of(tiny_trace()), **other)).replay().row
    assert row["loop"] == "open"
    assert "the routes are those of emoe" in row["notes"]


def test_bounds_of_lossy_runs_let_experts_be_free() -> None:
    """A lossy run is held against lossy ones alone: no byte must move, no expert must run."""
    prepared = prepare(spec_of(tiny_trace()))
    result = prepared.replay()
    assert result.bounds is not None
    assert (result.bounds.bytes_kind, result.bounds.bytes_min) == ("lossy", 0)
    assert "choices rerouted or skipped" in result.row["bound_actions"]
    assert result.row["over_bound"] >= 1


def test_both_engines_agree_on_lossy_runs() -> None:
    """SimPy and clock give the same row."""
    rows = []
    for engine in ("clock", "simpy"):
        row = prepare(replace(spec_of(tiny_trace()), engine=engine)).replay().row
        rows.append({key: of for key, of in row.items() if key not in ("engine", "run_id")})
    assert rows[0] == rows[1]
