"""What holds for every policy that ships, found by listing them."""

import inspect
from typing import get_args

import pytest

from moesim.simulator import registry
from moesim.simulator.engines.counts import count
from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.ledger import Counts
from moesim.simulator.registry import Axis
from moesim.simulator.testing import check_policy, sample_spec, small_run, tiny_trace

AXES: tuple[Axis, ...] = get_args(Axis)
BUILT_IN = [(axis, name) for axis in AXES for name in registry.names(axis)]
VARIANTS: list[tuple[Axis, str]] = [
    ("cache", "lru:scope=per_layer"),
    ("cache", "fifo:scope=per_layer"),
    ("cache", "lfu:count=lifetime,decay=0.9"),
    ("cache", "lfu:scope=per_layer"),
    ("cache", "lfru:count=lifetime,scope=per_layer"),
    ("cache", "belady:admit=bypass"),
    ("cache", "static:order=uniform"),
    ("cache", "static:order=front,staging_layers=1"),
    ("cache", "static:order=random,scope=per_layer"),
    ("cache", "insert_cap:limit=1/lru:scope=per_layer"),
    ("cache", "static:order=back"),
    ("cache", "static:order=spread,staging_layers=1"),
    ("cache", "likely_use:key=integer"),
    ("cache", "quota_dp/lru:scope=per_layer"),
    ("cache", "router_score:best=1,scope=global"),
    ("cache", "weighted_sum:mask=false"),
    ("cache", "insert_cap:limit=1/belady:admit=bypass"),
    ("cache", "lcp:rho=1"),
    ("cache", "split:theta=0.25/lru"),
    ("cache", "split:theta=0/lcp"),
    ("cache", "split:theta=0.75,buffer=1/lfu:scope=per_layer"),
    ("cache", "adaptive_split:refresh=20,step=0.1,foresees=false/lcp:omega=8"),
    ("cache", "periodic:period=1,predictor=light,first=profile"),
    ("cache", "periodic:period=1,predictor=best_window,adapt=true,scope=global"),
    ("cache", "insert_cap:limit=1/periodic:period=1,predictor=task"),
    ("prefetch", "next_gate:horizon=2,width=3"),
    ("prefetch", "next_gate:take=first_missing"),
    ("prefetch", "expert_map:search=ask,distance=1,capacity=2"),
    ("prefetch", "expert_map:fill=profile,entries=token,crossing=false,enqueue=all"),
    ("prefetch", "expert_map:decay=linear,reach=rest,distance=1,semantic=none"),
    ("prefetch", "activation_matrix:fill=profile,capacity=1"),
    ("prefetch", "adaptive_depth:depth=1"),
    ("prefetch", "router_score_top:width=3,best=1"),
    ("prefetch", "transition_table:fit=online"),
    ("prefetch", "layer_streaming:step=2"),
    ("prefetch", "oracle:recall=0.7,precision=0.5,horizon=3"),
    ("prefetch", "byte_budget:cold_steps=0/oracle:horizon=2"),
    ("schedule", "cheaper:objective=sum"),
    ("schedule", "batch_threshold:tokens=4"),
]


def spec_of(axis: Axis, text: str) -> registry.PolicySpec:
    """Return the spec of a name, or of a variant with options."""
    return sample_spec(axis, text) if text in registry.names(axis) else registry.parse(axis, text)


def served(axis: Axis, text: str, *, slots: int = 10, seed: int = 0) -> Counts:
    """Return what a policy did beside plain ones, after the books were checked."""
    chosen = {"cache": "lru", "prefetch": "none", "schedule": "resident_first"}
    trace = tiny_trace()
    run = small_run(trace, **{**chosen, axis: spec_of(axis, text)}, slots=slots, seed=seed)
    controller = run.controller()
    count(controller, run.workload(), budget_bytes=run.memory.expert_bytes)
    controller.residency.check()
    return controller.counts


@pytest.mark.parametrize(("axis", "text"), [*BUILT_IN, *VARIANTS])
def test_a_policy_serves_a_trace_and_its_books_balance(axis: Axis, text: str) -> None:
    """Every demand is judged once, every byte has a cause, and no room is lost."""
    counts = served(axis, text)
    assert counts.demands > 0
    judged = counts.hits + counts.late_hits + counts.partial_hits + counts.misses
    assert counts.demands == judged
    prefetched = (
        counts.bytes_prefetch_useful + counts.bytes_prefetch_late + counts.bytes_prefetch_wasted
    )
    assert counts.bytes_total == counts.bytes_demand + prefetched + counts.bytes_rebalance
    whole_bytes = counts.copies * 1_000_000
    is_split = "split" in spec_of(axis, text).does
    assert counts.bytes_total == whole_bytes or (is_split and counts.bytes_total < whole_bytes)


@pytest.mark.parametrize(("axis", "text"), [*BUILT_IN, *VARIANTS])
def test_two_fresh_policies_count_alike(axis: Axis, text: str) -> None:
    """The same run gives the same counts, whatever ran before it."""
    first = served(axis, text, seed=3)
    served(axis, text, seed=4)
    assert first == served(axis, text, seed=3)


@pytest.mark.parametrize(("axis", "name"), BUILT_IN)
def test_a_policy_keeps_the_laws_whatever_ends_when(axis: Axis, name: str) -> None:
    """It passes what strangers' policies must pass: adversarial orders, ties by age, no sharing."""
    assert check_policy(sample_spec(axis, name), seeds=2).runs > 0


@pytest.mark.parametrize(("axis", "name"), BUILT_IN)
def test_a_policy_says_what_it_is(axis: Axis, name: str) -> None:
    """Its class is spelled out, has one line for the listing, and explains every option."""
    cls = registry.find(axis, name)
    lines = inspect.getdoc(cls).splitlines()
    assert 1 <= len(lines[0]) <= 90
    assert not cls.__name__.isupper()
    for option, details in registry.options(cls).items():
        assert f"{option}: " in inspect.getdoc(cls)
        assert details.default is not inspect.Parameter.empty


@pytest.mark.parametrize(("axis", "name"), BUILT_IN)
def test_a_source_is_given_for_what_others_defined(axis: Axis, name: str) -> None:
    """Every policy but the absence of prefetch names where its rule comes from."""
    assert registry.find(axis, name).paper or name == "none"


@pytest.mark.parametrize(
    ("axis", "text", "message"),
    [
        ("cache", "lfu:decay=0", "decay=0: expected above 0 and at most 1"),
        ("cache", "lfu:decay=1.5", "decay=1.5: expected above 0 and at most 1"),
        ("cache", "insert_cap:limit=-1/lru", "limit=-1: expected at least 0"),
        ("cache", "static:order=front,staging=0", "staging=0: expected at least 1 slot"),
        ("prefetch", "layer_streaming:step=0", "step=0: expected 1 to 2"),
        ("prefetch", "layer_streaming:step=3", "below the model's 3 MoE layers"),
        ("prefetch", "oracle:recall=1.1", "recall=1.1: expected 0 to 1"),
        ("prefetch", "oracle:precision=0", "precision=0: expected above 0 and at most 1"),
        ("prefetch", "oracle:horizon=0", "horizon=0: expected at least 1"),
        ("prefetch", "transition_table:width=0", "width=0: expected at least 1"),
        ("prefetch", "byte_budget:fraction=0/none", "fraction=0: expected above 0"),
        ("prefetch", "byte_budget:cold_limit=-1/none", "cold_limit=-1: expected at least 0"),
        ("cache", "weighted_sum:lru=-1", "lru=-1: expected at least 0"),
        ("cache", "router_score:alpha=0", "alpha=0: expected above 0 and at most 1"),
        ("prefetch", "router_score_top:best=0", "best=0: expected at least 1"),
        ("prefetch", "router_score_top:width=0", "width=0: expected at least 1"),
        ("prefetch", "expert_map:distance=0", "distance=0: expected at least 1"),
        ("prefetch", "expert_map:capacity=0", "capacity=0: expected at least 1"),
        ("prefetch", "activation_matrix:capacity=0", "capacity=0: expected at least 1"),
        ("prefetch", "adaptive_depth:depth=3", "depth=3: the trace's look_in_TLHM looks 1 to 2"),
        ("schedule", "batch_threshold:tokens=0", "tokens=0: expected at least 1"),
        ("prefetch", "next_gate:horizon=3", "horizon=3: the trace's look_in_TLHM looks 1 to 2"),
        ("prefetch", "next_gate:width=5", "width=5: the trace's look_in_TLHM has the best 4"),
    ],
)
def test_an_option_out_of_range_is_one_clear_line(axis: Axis, text: str, message: str) -> None:
    """The error names policy, option, value and what would do."""
    with pytest.raises(InputError) as caught:
        served(axis, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert text.split(":", maxsplit=1)[0] in str(caught.value) or "staging" in text


@pytest.mark.parametrize(
    ("axis", "text", "message"),
    [
        ("cache", "rrip", "no cache policy 'rrip'; there are: activation_priority, adaptive_split"),
        ("cache", "lru:scop=global", "did you mean 'scope'?"),
        ("cache", "lru:scope=layer", "expected global | per_layer"),
        ("cache", "insert_cap", "guards another; write insert_cap/POLICY"),
        ("cache", "lru/fifo", "guards no other"),
        ("prefetch", "oracle:horizon=two", "expected a whole number"),
        ("schedule", "fiddler", "no schedule policy 'fiddler'"),
    ],
)
def test_a_wrong_name_lists_the_right_ones(axis: Axis, text: str, message: str) -> None:
    """No policy, option or value is guessed or replaced by another."""
    with pytest.raises(InputError) as caught:
        registry.parse(axis, text)
    assert message in str(caught.value)


def test_an_unknown_name_has_its_own_error() -> None:
    """Programs can tell a wrong name from a wrong value."""
    with pytest.raises(UnknownNameError):
        registry.parse("cache", "rrip")


def test_needs_may_depend_on_options() -> None:
    """A table learned online and a placement by position need no profile trace."""
    table = registry.find("prefetch", "transition_table")
    assert table.needs_for({"fit": "profile", "width": None}) == {"transitions"}
    assert table.needs_for({"fit": "online", "width": None}) == frozenset()
    static = registry.find("cache", "static")
    assert static.needs_for({"order": "frequency"}) == {"profile"}
    assert static.needs_for({"order": "front"}) == frozenset()
    assert registry.find("cache", "belady").needs_for({}) == {"future"}


def test_seeds_move_only_policies_that_draw() -> None:
    """Another seed changes a random placement and leaves LRU as it was."""
    random = {served("cache", "static:order=random", seed=seed).hits for seed in range(6)}
    assert len(random) > 1
    assert served("cache", "lru", seed=1) == served("cache", "lru", seed=2)


def test_experts_of_unequal_size_are_counted_in_bytes() -> None:
    """Every cache policy serves a model whose layers differ in expert size within its budget."""
    trace = tiny_trace()
    sizes_L = [700_000, 1_000_000, 500_000]
    for name in registry.names("cache"):
        run = small_run(
            trace,
            cache=sample_spec("cache", name),
            budget_bytes=9_300_000,
            expert_bytes_L=sizes_L,
        )
        controller = run.controller()
        count(controller, run.workload(), budget_bytes=9_300_000)
        controller.residency.check()
        assert 0 < controller.counts.peak_expert_bytes <= 9_300_000
