"""eMoE's held set: when it changes, what it holds, what that moves."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from moesim.simulator.engines.counts import count
from moesim.simulator.errors import BudgetError, CapabilityError, InputError, PolicyError
from moesim.simulator.ledger import Counts
from moesim.simulator.messages import Command, Copy
from moesim.simulator.policies.base import CachePolicy, View
from moesim.simulator.policies.exchanges import paying
from moesim.simulator.runs import Prepared
from moesim.simulator.terms import Cause
from moesim.simulator.testing import small_run, trace_of
from moesim.traces import RoutingTrace, SignalSpec

EXPERTS = 6
BYTES = 1_000_000


def prompts(
    sets: Sequence[Sequence[int]], *, tokens: int = 4, tasks: Sequence[str] | None = None
) -> RoutingTrace:
    """Return decode-only prompts of one layer, each of which uses one pair of experts all along."""
    return trace_of([([], [[list(pair)]] * tokens) for pair in sets], experts=EXPERTS, tasks=tasks)


def with_signal(trace: RoutingTrace, name: str, array: np.ndarray) -> RoutingTrace:
    """Return the trace with one signal by request."""
    spec = SignalSpec(tap="told", known_at="request_arrived", producer="predictor:test")
    header = trace.header.model_copy(update={"signals": {**trace.header.signals, name: spec}})
    return replace(trace, header=header, signals={**trace.signals, name: array.astype(np.float16)})


def perfect(trace: RoutingTrace) -> RoutingTrace:
    """Return the trace with what each request uses, told beforehand."""
    use_RLE = np.zeros((trace.requests, trace.layers, EXPERTS))
    np.add.at(use_RLE, (trace.request_T[:, None, None], 0, trace.expert_TLK), 1)
    return with_signal(trace, "predicted_use_RLE", use_RLE)


def served(
    trace: RoutingTrace,
    options: str,
    *,
    slots: int = 4,
    profile: RoutingTrace | None = None,
) -> tuple[Counts, list[Copy]]:
    """Return what a run with this held set did, in two slots beside the two of staging."""
    run = small_run(
        trace,
        cache=f"periodic:{options}",
        prefetch="none",
        schedule="resident_first",
        slots=slots,
    )
    if profile is not None:
        run.spec = replace(run.spec, profile_trace=profile)
    controller = run.controller(keep_log=True)
    count(controller, run.workload(), budget_bytes=run.memory.expert_bytes)
    controller.residency.check()
    assert controller.log is not None
    commands: list[Command] = [command for _, _, given in controller.log for command in given]
    return controller.counts, [command for command in commands if isinstance(command, Copy)]


DRIFT = [(0, 1), (2, 3), (4, 5), (0, 1)]


def test_told_before_every_prompt_the_set_never_misses() -> None:
    """At p = 1 and told the truth each prompt finds its two experts; three changes move two."""
    counts, copies = served(perfect(prompts(DRIFT)), "period=1,predictor=signal")
    assert counts.misses == 0
    assert counts.bytes_rebalance == 3 * 2 * BYTES
    assert {copy.cause for copy in copies} == {Cause.REBALANCE}
    assert counts.bytes_total == counts.bytes_rebalance


def test_a_set_is_held_for_p_prompts() -> None:
    """At p = 2 the second and fourth prompt miss all, as they are served with the other's set."""
    counts, _ = served(perfect(prompts(DRIFT)), "period=2,predictor=signal")
    assert counts.hits == 2 * 4 * 2
    assert counts.misses == 2 * 4 * 2
    assert counts.bytes_rebalance == 2 * BYTES


def test_with_room_for_all_nothing_moves() -> None:
    """L = E: every demand is a hit, and no set differs from another."""
    counts, copies = served(prompts(DRIFT), "period=1", slots=EXPERTS + 2)
    assert counts.hits == counts.demands
    assert copies == []


def test_misses_pass_through_and_leave_the_set_alone() -> None:
    """A prompt that uses others is served from staging; the first set is still there after it."""
    counts, copies = served(prompts([(4, 5), (0, 1)]), "period=40")
    assert counts.misses == 4 * 2
    assert counts.hits == 4 * 2
    assert [copy.expert for copy in copies] == [4, 5] * 4


def test_recent_prompts_are_what_is_expected() -> None:
    """Nothing is known of the first prompt; from the second on the set is that of the one before.

    The window of one sees only the last.
    """
    counts, copies = served(prompts([(4, 5)] * 3), "period=1,window=1")
    assert counts.bytes_rebalance == 2 * BYTES
    assert counts.misses == 4 * 2
    assert [copy.expert for copy in copies if copy.cause is Cause.REBALANCE] == [4, 5]


def test_a_change_that_does_not_pay_is_not_made() -> None:
    """With one token a prompt a change saves at most its own copies in one prompt, not in three."""
    trace = prompts([(2, 3)] * 4, tokens=1)
    assert served(trace, "period=1,window=1,adapt=true")[0].bytes_rebalance == 0
    assert served(trace, "period=3,window=1,adapt=true")[0].bytes_rebalance == 2 * BYTES


def test_the_adaptive_set_follows_drift_before_its_period_is_over() -> None:
    """After the prompts change, the next one finds its experts, where p = 40 never looks again."""
    trace = prompts([(0, 1)] * 4 + [(4, 5)] * 8)
    fixed, _ = served(trace, "period=40,window=1")
    adaptive, _ = served(trace, "period=40,window=1,adapt=true")
    assert fixed.misses == 8 * 4 * 2
    assert adaptive.misses == 1 * 4 * 2


def test_only_the_exchanges_that_pay_are_made() -> None:
    """Of two predicted experts one is used three times a prompt and comes, the other once."""
    once = [[4, 2], [4, 3], [4, 5]]
    trace = trace_of([([], [[pair] for pair in once])] * 4, experts=EXPERTS)
    _, copies = served(trace, "period=1,window=1,adapt=true")
    assert [copy.expert for copy in copies if copy.cause is Cause.REBALANCE] == [4]
    _, copies = served(trace, "period=2,window=1,adapt=true")
    assert [copy.expert for copy in copies if copy.cause is Cause.REBALANCE] == [4, 2]


def test_a_larger_expert_takes_nobodys_place() -> None:
    """Sizes differ between layers: in one room for all the exchange is left out."""
    two_layers = trace_of([([], [[[0], [0]]])], experts=2)
    run = replace(small_run(two_layers, slots=2).controller()._cache.run, expert_bytes_L=(10, 20))
    demands = [0.0, 5.0, 0.0, 5.0]
    assert paying(run, [1], [2], demands, prompts=1, scope="global") == {1: 2}
    assert paying(run, [3], [0], demands, prompts=1, scope="global") == {}


def test_an_exchange_is_weighed_by_what_is_predicted_for_the_prompt_that_comes() -> None:
    """Told that the next prompt uses others, the set changes before any prompt has used them."""
    trace = perfect(prompts([(0, 1)] * 2 + [(4, 5)]))
    counts, copies = served(trace, "period=1,predictor=signal,adapt=true")
    assert counts.misses == 0
    assert [copy.expert for copy in copies] == [4, 5]


def test_the_best_window_is_the_longest_where_prompts_alternate() -> None:
    """Among prompts that do not follow each other, all that came before says more than the last.

    Five prompts of (2, 3) and (4, 5) in turn with (2, 3) half as often again: the mean of all
    prompts keeps (2, 3) from then on.
    """
    trace = prompts([(2, 3), (4, 5), (2, 3)] * 6)
    last, _ = served(trace, "period=1,window=1")
    best, _ = served(trace, "period=1,predictor=best_window")
    assert best.misses < last.misses
    assert best.bytes_rebalance < last.bytes_rebalance


def test_tasks_are_weighed_by_their_tokens() -> None:
    """A prompt of a task gets what that task used in the profile trace."""
    profile = prompts([(0, 1), (4, 5)], tasks=["old", "new"])
    trace = prompts([(4, 5), (0, 1), (4, 5)], tasks=["new", "old", "new"])
    counts, _ = served(trace, "period=1,predictor=task", profile=profile)
    assert counts.misses == 0
    assert counts.bytes_rebalance == 3 * 2 * BYTES


def test_the_light_mixture_knows_a_task_that_comes_back() -> None:
    """Fitted where tasks decide, it has each prompt's experts there before the prompt begins."""
    sets, tasks = [(0, 1), (4, 5), (2, 3)] * 6, ["a", "b", "c"] * 6
    profile = prompts(sets, tasks=tasks)
    counts, _ = served(
        prompts(sets[:4], tasks=tasks[:4]), "period=1,predictor=light", profile=profile
    )
    assert counts.misses == 0


def test_the_light_mixture_learns_what_the_profile_lacked() -> None:
    """A new task is foretold as all are at its first prompt, and by itself from its second on."""
    sets, tasks = [(0, 1), (2, 3)] * 6, ["a", "b"] * 6
    counts, _ = served(
        prompts([(4, 5), (0, 1), (4, 5)], tasks=["new", "a", "new"]),
        "period=1,predictor=light",
        profile=prompts(sets, tasks=tasks),
    )
    assert counts.misses == 4 * 2


def test_a_layer_that_matters_to_nobody_keeps_its_experts() -> None:
    """Sensitivity 0 leaves the set of the layer as it is, 1 lets it change."""
    trace = perfect(prompts(DRIFT))
    for matters, moved in ((0.0, 0), (1.0, 3 * 2 * BYTES)):
        told = with_signal(trace, "matters_RL", np.full((4, 1), matters))
        counts, _ = served(told, "period=1,predictor=signal,sensitivity=matters_RL")
        assert counts.bytes_rebalance == moved


def test_the_most_used_of_all_layers_share_one_room() -> None:
    """With a global scope a layer that is used more holds more."""
    trace = trace_of([([], [[[0, 1], [0, 1]]] * 2)] * 2, experts=EXPERTS)
    use_RLE = np.zeros((2, 2, EXPERTS))
    use_RLE[:, 1, :3] = 1
    use_RLE[:, 0, 0] = 0.5
    told = with_signal(trace, "predicted_use_RLE", use_RLE)
    _, copies = served(told, "period=1,predictor=signal,scope=global", slots=6)
    assert [c.expert for c in copies if c.cause is Cause.REBALANCE] == [6, 7, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("period=0", "period=0: expected at least 1"),
        ("window=0", "window=0: expected at least 1"),
        ("sensitivity=matters_RL,scope=global", "sensitivity needs scope=per_layer"),
    ],
)
def test_an_option_out_of_range_is_refused(options: str, message: str) -> None:
    """The line names policy, option and what would do."""
    trace = with_signal(prompts(DRIFT), "matters_RL", np.ones((4, 1)))
    with pytest.raises(InputError, match=message):
        served(trace, options)


class Brings(CachePolicy):
    """Brings one expert in with each step, and gives up the oldest."""

    def __init__(self, run: object, expert: int) -> None:
        super().__init__(run)
        self.expert = expert

    def rebalance(self, view: View) -> Sequence[int]:
        """Return the expert."""
        return [self.expert]

    def choose_victim(self, evictable: object, view: View) -> int:
        """Return the lowest id."""
        return min(evictable)


@pytest.mark.parametrize(("expert", "fails"), [(3, False), (99, True)])
def test_what_a_cache_policy_brings_in_exists(*, expert: int, fails: bool) -> None:
    """A known expert comes once and counts as rebalancing; an unknown one is the policy's fault."""
    run = small_run(
        prompts([(0, 1)]), cache="lru", prefetch="none", schedule="resident_first", slots=4
    )
    controller = run.controller()
    policy = Brings(controller._cache.run, expert)
    controller._cache = policy
    controller._rebalances = True
    if fails:
        with pytest.raises(PolicyError, match="brings in expert 99; no such expert"):
            count(controller, run.workload(), budget_bytes=run.memory.expert_bytes)
    else:
        count(controller, run.workload(), budget_bytes=run.memory.expert_bytes)
        assert controller.counts.bytes_rebalance == BYTES
        assert controller.counts.bytes_demand == 2 * BYTES


def skipping(trace: RoutingTrace, options: str, slots: int) -> Prepared:
    """Return a run whose absent choices are skipped."""
    spec = SignalSpec(tap="told", known_at="layer_routed", producer="router")
    header = trace.header.model_copy(update={"signals": {"router_top_TLM": spec}})
    told = replace(trace, header=header, signals={"router_top_TLM": trace.expert_TLK})
    return small_run(
        told,
        cache=f"periodic:{options},staging=0",
        schedule="fallback:miss=skip,ranking=top/resident_first",
        slots=slots,
    )


def test_all_experts_at_first_then_the_predicted_ones() -> None:
    """At p = 2 two prompts find all six experts; from then on two are held, the last two's.

    The peak is all six, which the result reports; the set is copied when the pools are cut.
    """
    run = skipping(prompts([(0, 1), (4, 5), (4, 5), (0, 1)]), "period=2,first=all,held=2", EXPERTS)
    result = run.replay()
    counts = result.counts
    assert counts.peak_expert_bytes == EXPERTS * BYTES
    assert counts.bytes_rebalance == 2 * BYTES
    assert counts.skipped == 4 * 2, "0 and 1 come first among equals, so the third prompt misses"
    assert "at the end 2 of a layer's 6 experts had room" in str(result.row)


@pytest.mark.parametrize(
    ("options", "slots", "message"),
    [
        ("first=all,held=2", 5, "first=all holds 6000000 bytes .* give --slots 100%"),
        ("first=all", 6, "first=all and held=N.* go together"),
        ("held=2", 6, "first=all and held=N.* go together"),
        ("first=all,held=1", 6, "option held=1: expected 2 to 6"),
        ("first=all,held=2,scope=global", 6, "needs scope=per_layer and staging=0"),
    ],
)
def test_all_experts_at_first_need_room_for_all(options: str, slots: int, message: str) -> None:
    """One line says what is in the way: the budget, or an option that the beginning needs."""
    with pytest.raises((BudgetError, InputError), match=message):
        skipping(prompts([(0, 1)]), options, slots).replay()


def test_without_staging_a_miss_takes_the_room_of_the_least_used() -> None:
    """Experts 0 and 1 of three held are used once more; 2, used never, gives its room to 5."""
    trace = prompts([(0, 1), (0, 1), (0, 5)], tokens=2)
    counts, copies = served(trace, "period=1,window=1,staging=0", slots=3)
    assert [copy.expert for copy in copies if copy.cause is Cause.DEMAND] == [5]
    assert counts.misses == 1


def asked(ask_ns: int) -> int:
    """Return the misses of three prompts, of which the second changes its experts."""
    run = small_run(
        prompts([(0, 1), (4, 5), (4, 5)]),
        cache="periodic:period=1,window=1,ask=true",
        schedule="resident_first",
        slots=4,
        ask_ns={"predict_use": ask_ns},
    )
    return run.replay().counts.misses


def test_an_asked_prediction_comes_when_its_time_is_over() -> None:
    """One that takes no time is held from the third prompt's second step; a slow one comes late."""
    assert asked(1) < asked(10**12)


def test_a_prediction_without_a_known_cost_is_refused() -> None:
    """The run names the ask whose time nobody gave."""
    run = small_run(prompts([(0, 1)] * 3), cache="periodic:period=1,window=1,ask=true", slots=4)
    with pytest.raises(CapabilityError, match="asks for 'predict_use'.* --ask predict_use=380ms"):
        run.replay()


def test_a_network_without_a_file_is_refused() -> None:
    """The line says which command writes one."""
    with pytest.raises(InputError, match=r"needs file=PATH; moesim train-predictor TRACE -o PATH"):
        served(prompts(DRIFT), "predictor=network")
