"""Law 2: every demanded expert runs exactly once per layer, or is listed as changed."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import orders, shapes, traces, with_fault

from moesim.simulator import registry
from moesim.simulator.errors import PolicyError
from moesim.simulator.messages import Command, LayerDone, Reroute, Run
from moesim.simulator.policies.base import Demand, Group, SchedulePolicy, View
from moesim.simulator.terms import CPU, GPU
from moesim.simulator.testing import (
    KEEP_AT_RANDOM,
    SPLIT_AT_RANDOM,
    WISH_AT_RANDOM,
    adversarial,
    counted,
    sample_spec,
    seeded,
    small_run,
    tiny_trace,
)


@pytest.mark.parametrize("name", registry.names("schedule"))
def test_every_schedule_runs_each_expert_once(name: str) -> None:
    """Each schedule runs what is demanded, once, with the tokens it serves."""
    for seed in range(8):
        run = small_run(
            tiny_trace(),
            cache=KEEP_AT_RANDOM,
            prefetch=WISH_AT_RANDOM,
            schedule=sample_spec("schedule", name),
            slots=5,
            seed=seed,
        )
        adversarial(run, seeded(seed)).run()


@given(st.data(), shapes(experts=6, top_k=3), orders())
def test_waves_run_each_expert_once(data: st.DataObject, shape, choose) -> None:
    """A prompt that needs more than there is room for runs in waves, each expert once."""
    trace = data.draw(traces(shape, prompt_tokens=6, decode_tokens=1))
    run = small_run(trace, schedule=SPLIT_AT_RANDOM, slots=shape.top_k)
    adversarial(run, choose).run()


class _Plan(SchedulePolicy):
    """Plans wrongly, in a way that a subclass says."""

    def wrong(self, demand: Demand) -> Sequence[Group]:
        raise NotImplementedError

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        return self.wrong(demand)


class OneTwice(_Plan):
    def wrong(self, demand: Demand) -> Sequence[Group]:
        first, *rest = demand.experts
        return [Group(GPU, (first, *rest, first))]


class OneOnBoth(_Plan):
    def wrong(self, demand: Demand) -> Sequence[Group]:
        return [Group(GPU, tuple(demand.experts)), Group(CPU, tuple(demand.experts[:1]))]


class OneForAnother(_Plan):
    def wrong(self, demand: Demand) -> Sequence[Group]:
        first, *rest = demand.experts
        return [Group(GPU, (first, *rest[1:], first))]


class OneOnBothForAnother(_Plan):
    def wrong(self, demand: Demand) -> Sequence[Group]:
        first, *rest = demand.experts
        return [Group(GPU, (first, *rest[1:])), Group(CPU, (first,))]


class OneMissing(_Plan):
    def wrong(self, demand: Demand) -> Sequence[Group]:
        return [Group(GPU, tuple(demand.experts[1:]))]


class OneStranger(_Plan):
    def wrong(self, demand: Demand) -> Sequence[Group]:
        known = set(demand.experts)
        stranger = next(e for e in range(self.run.experts) if e not in known)
        return [Group(GPU, (*demand.experts, stranger))]


class StrangerOnCpu(_Plan):
    def wrong(self, demand: Demand) -> Sequence[Group]:
        known = set(demand.experts)
        stranger = next(e for e in range(self.run.experts) if e not in known)
        return [Group(GPU, tuple(demand.experts)), Group(CPU, (stranger,))]


@pytest.mark.parametrize(
    "plan",
    [
        OneTwice,
        OneOnBoth,
        OneForAnother,
        OneOnBothForAnother,
        OneMissing,
        OneStranger,
        StrangerOnCpu,
    ],
)
def test_a_plan_that_is_no_partition_is_refused(plan: type[SchedulePolicy]) -> None:
    """A plan with an expert twice, on two devices, missing or too many is a PolicyError."""
    with pytest.raises(PolicyError, match=plan.__name__):
        counted(small_run(tiny_trace(prompt_tokens=0), schedule=plan, slots=6))


def test_running_twice_is_caught() -> None:
    """A controller that hands a run over again fails law 2."""

    def again(commands: list[Command]) -> list[Command]:
        runs = [command for command in commands if isinstance(command, Run)]
        return [*commands, *(run._replace(n=run.n + 1) for run in runs[-1:])]

    with pytest.raises(AssertionError, match=r"law 2: .* which has run or is not needed"):
        with_fault(small_run(tiny_trace(prompt_tokens=0)), again).run()


def test_forgetting_an_expert_is_caught() -> None:
    """A controller that calls a layer done before all has run fails law 2."""

    def forget(commands: list[Command]) -> list[Command]:
        runs = [command for command in commands if isinstance(command, Run)]
        return [command for command in commands if command not in runs[-1:]]

    with pytest.raises(AssertionError, match="law 2: layer 0 is done without"):
        with_fault(small_run(tiny_trace(), slots=9), forget).run()


def test_every_lossy_schedule_lists_what_it_changes() -> None:
    """What runs is what the router chose, but for the changes that were listed before."""
    for schedule in ("fallback/resident_first", "fallback:miss=skip/cpu_on_miss"):
        for seed in range(8):
            run = small_run(
                tiny_trace(),
                cache=KEEP_AT_RANDOM,
                prefetch=WISH_AT_RANDOM,
                schedule=schedule,
                slots=5,
                seed=seed,
            )
            adversarial(run, seeded(seed)).run()


def test_changing_the_demand_without_saying_so_is_caught() -> None:
    """A controller that drops its reroutes fails law 2: what runs is not what was chosen."""

    def hush(commands: list[Command]) -> list[Command]:
        return [command for command in commands if not isinstance(command, Reroute)]

    run = small_run(tiny_trace(), schedule="fallback/resident_first", slots=5)
    with pytest.raises(AssertionError, match="law 2: "):
        with_fault(run, hush).run()


def test_rerouting_by_a_system_that_is_not_lossy_is_caught() -> None:
    """A reroute under policies that do not declare it fails law 2."""

    def lose(commands: list[Command]) -> list[Command]:
        return [
            Reroute(command.layer, ((0, None),)) if isinstance(command, LayerDone) else command
            for command in commands
        ]

    with pytest.raises(AssertionError, match="rerouted by policies that do not say so"):
        with_fault(small_run(tiny_trace(), slots=9), lose).run()


def test_rerouting_after_the_runs_is_caught() -> None:
    """A reroute that comes when its layer has begun to run fails law 2."""

    def late(commands: list[Command]) -> list[Command]:
        first = [command for command in commands if not isinstance(command, Reroute)]
        done = [command for command in first if isinstance(command, LayerDone)]
        changed = [command for command in commands if isinstance(command, Reroute)]
        return [*(c for c in first if c not in done), *changed, *done]

    run = small_run(tiny_trace(), schedule="fallback/resident_first", slots=5)
    with pytest.raises(AssertionError, match=r"law 2: (Run|Reroute)"):
        with_fault(run, late).run()
