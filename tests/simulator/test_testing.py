"""What policy authors lean on: the check passes what is right and says what is wrong."""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal, get_args, get_origin

import pytest

from moesim.simulator import registry
from moesim.simulator.errors import (
    CapabilityError,
    InputError,
    MoesimError,
    PolicyError,
    UnknownNameError,
)
from moesim.simulator.policies.base import (
    CachePolicy,
    Demand,
    Evictable,
    Group,
    Policy,
    PrefetchPolicy,
    RunInfo,
    SchedulePolicy,
    View,
    Wish,
)
from moesim.simulator.registry import Axis
from moesim.simulator.terms import GPU
from moesim.simulator.testing import check_policy, sample_spec, seeded, tiny_trace
from moesim.traces import synthetic

EVERY_POLICY = [(axis, name) for axis in registry.AXES for name in registry.names(axis)]


@pytest.mark.parametrize(("axis", "name"), EVERY_POLICY)
def test_every_policy_of_ours_passes(axis: Axis, name: str) -> None:
    """Each built-in policy keeps what is promised of policies, without listing it anywhere."""
    report = check_policy(sample_spec(axis, name), seeds=2)
    assert report.axis == axis
    assert report.runs >= 4
    assert report.us_per_event > 0
    assert name in str(report)


NEED_MORE = {
    "periodic:predictor=network",  # a file; tests/backends/execution/test_live_predictor.py
    "periodic:first=all",  # room for all and held=N; tests/simulator/policies/test_periodic.py
}
"""What no single option can say."""


def variants() -> Iterator[tuple[Axis, str]]:
    """Yield each policy of ours with each value of each option that is one of a few."""
    for axis, name in EVERY_POLICY:
        spec = sample_spec(axis, name)
        for option in registry.options(spec.cls).values():
            for value in get_args(option.kind) if get_origin(option.kind) is Literal else ():
                said = f"{name}:{option.name}={value}"
                if value != option.default and said not in NEED_MORE:
                    inner = f"/{spec.inner.text}" if spec.inner else ""
                    yield axis, f"{said}{inner}"


@pytest.mark.parametrize(("axis", "text"), [*variants()])
def test_every_way_to_set_an_option_passes(axis: Axis, text: str) -> None:
    """So does each built-in policy with another value of any option that has a few."""
    assert check_policy(text, axis, seeds=2).axis == axis


class First(CachePolicy):
    """Give up the expert that came first."""

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self.order: dict[int, None] = {}

    def on_admit(self, expert: int, view: View) -> None:
        self.order[expert] = None

    def on_evict(self, expert: int, view: View) -> None:
        self.order.pop(expert, None)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        return next(expert for expert in self.order if expert in evictable)


class Undocumented(First):
    """Has an option that its docstring does not explain."""

    def __init__(self, run: RunInfo, *, depth: int = 1) -> None:
        super().__init__(run)
        self.depth = depth


class NoDefault(First):
    """Has an option that must be given.

    Args:
        depth: Of what, nobody knows.
    """

    def __init__(self, run: RunInfo, *, depth: int) -> None:
        super().__init__(run)
        self.depth = depth


class Silent(First):
    __doc__ = None


class Shared(First):
    """Keeps its order in the class, where the next object finds it."""

    everybody: ClassVar[dict[int, None]] = {}

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self.order = self.everybody

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        return next((e for e in reversed(self.order) if e in evictable), min(evictable))


class LowestId(CachePolicy):
    """Give up the expert with the lowest id."""

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        return min(evictable)


class ByTheClock(First):
    """Say that times do not matter, and look at them."""

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        offered = [expert for expert in self.order if expert in evictable]
        return offered[view.now_ns % len(offered)]


class Curious(First):
    """Read a signal that it does not declare."""

    def on_touch(self, expert: int, view: View) -> None:
        view.signals.get("router_probs_TLE")


class Peeping(First):
    """Ask for the future without saying that it needs it."""

    def on_touch(self, expert: int, view: View) -> None:
        self.run.future.next_use(expert, view.event)


class Insists(First):
    """Give up what it likes, offered or not."""

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        return next(reversed(self.order))


class Greedy(First):
    """Set twice the budget apart."""

    def staging_bytes(self) -> int:
        return 2 * self.run.budget_bytes


class WishesTooFar(PrefetchPolicy):
    """Wish for an expert that there is not."""

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        return [Wish(self.run.layers * self.run.experts)]


class ForgetsTheLast(SchedulePolicy):
    """Plan all but one."""

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        return [Group(GPU, tuple(demand.experts[:-1]))]


class Unsteady(PrefetchPolicy):
    """Wish by how many objects of its class there have been."""

    made: ClassVar[Iterator[int]] = iter(range(10**6))

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self.number = next(self.made)

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        return [Wish(self.number % (self.run.layers * self.run.experts))]


@pytest.mark.parametrize(
    ("policy", "error", "says"),
    [
        (Undocumented, AssertionError, "option depth is not in the docstring"),
        (NoDefault, AssertionError, "option depth has no default"),
        (Silent, AssertionError, "Silent has no docstring"),
        (Shared, AssertionError, "do not answer alike|share state|times change"),
        (LowestId, AssertionError, "a tie is broken by name, not by age"),
        (ByTheClock, AssertionError, "timing_free, and yet times change its decisions"),
        (Curious, PolicyError, "signal 'router_probs_TLE' is read by a policy without it"),
        (Peeping, PolicyError, "Peeping .* failed with AttributeError"),
        (Insists, PolicyError, "Insists chose expert .*, which it was not offered"),
        (Greedy, PolicyError, "Greedy accepts no budget"),
        (WishesTooFar, PolicyError, "wished for expert 18; no such expert"),
        (ForgetsTheLast, PolicyError, "ForgetsTheLast planned"),
        (Unsteady, AssertionError, "two fresh objects do not answer alike"),
    ],
)
def test_a_policy_with_one_fault_is_found_out(
    policy: type[Policy], error: type[Exception], says: str
) -> None:
    """Each fault gets an error of the right kind, in one line that names it."""
    with pytest.raises(error, match=says) as caught:
        check_policy(policy)
    assert "\n" not in str(caught.value)


def test_the_policy_that_those_derive_from_passes() -> None:
    """Their base has none of the faults, so each is found for its own sake."""
    assert check_policy(First).skipped == ()


def test_a_trace_without_the_signal_is_refused_by_name() -> None:
    """A signal that the trace lacks is no fault of the policy: the error names the signal."""
    trace = synthetic.uniform(seed=0, horizons=0)
    with pytest.raises(CapabilityError, match="look_in_TLHM"):
        check_policy("next_gate", trace=trace)


def test_a_policy_may_be_named_in_any_way() -> None:
    """A class, a spec with options, a guard and module:Class find their axis by themselves."""
    this = f"{__file__}:First"
    for policy in (First, "lfu:count=lifetime", "insert_cap:limit=1/fifo", this):
        assert check_policy(policy, seeds=1).axis == "cache"
    assert check_policy("byte_budget/next_gate", seeds=1).axis == "prefetch"


def test_a_wrong_name_lists_the_right_ones() -> None:
    """An unknown policy is refused with those that there are, a class of no axis by its name."""
    with pytest.raises(UnknownNameError, match=r"no policy 'lruu'; did you mean 'lru'\?"):
        check_policy("lruu")
    with pytest.raises(InputError, match="int derives from none of the bases"):
        check_policy(int)
    with pytest.raises(InputError, match="First is no prefetch policy"):
        check_policy(First, axis="prefetch")


def test_the_tiny_trace_is_what_it_says() -> None:
    """It is valid, always the same, of two tasks, with every signal that our policies read."""
    trace = tiny_trace()
    trace.validate("tiny")
    assert trace.content_hash() == tiny_trace().content_hash()
    assert trace.content_hash() != tiny_trace(seed=1).content_hash()
    assert trace.task_R == ("alpha", "beta")
    assert trace.has_prefill
    assert trace.has_decode
    signals = {n for a, p in EVERY_POLICY for n in sample_spec(a, p).needs if n.endswith("M")}
    assert signals <= trace.header.signals.keys()


def test_seeded_choices_repeat() -> None:
    """The same seed chooses the same, and stays in range."""
    first, again = seeded(4), seeded(4)
    chosen = [first(n) for n in range(1, 50)]
    assert chosen == [again(n) for n in range(1, 50)]
    assert all(0 <= at < n for n, at in enumerate(chosen, start=1))


def test_every_error_of_the_check_is_one_of_ours() -> None:
    """What a policy raises itself becomes a PolicyError that keeps the cause."""
    with pytest.raises(MoesimError) as caught:
        check_policy(Peeping)
    assert isinstance(caught.value.__cause__, AttributeError)
