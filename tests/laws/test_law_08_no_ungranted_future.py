"""Law 8: no policy sees the future unless the run granted it."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

from moesim.simulator import registry
from moesim.simulator.errors import PolicyError
from moesim.simulator.messages import Command, FormStep, StepBegan
from moesim.simulator.policies.base import CachePolicy, View
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.runs import Prepared
from moesim.simulator.testing import (
    adversarial,
    as_spec,
    counted,
    decisions,
    sample_spec,
    seeded,
    small_run,
    tiny_trace,
)
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace, SignalSpec

EVERY_POLICY = [(axis, name) for axis in registry.AXES for name in registry.names(axis)]
KNOWN_STEPS = 5


def with_another_end(trace: RoutingTrace) -> RoutingTrace:
    """Return the trace with other choices from some step of its first request on."""
    row = int(np.flatnonzero(trace.step_T == KNOWN_STEPS)[0])
    expert_TLK = trace.expert_TLK.copy()
    expert_TLK[row:] = (expert_TLK[row:] + 1) % trace.experts
    return replace(trace, expert_TLK=expert_TLK)


def until_the_ends_part(run: Prepared) -> list[tuple[object, ...]]:
    """Return what was decided before the first step that differs had a router's choice."""
    log = counted(run).log
    assert log is not None
    commands: list[Command] = []
    for facts, _, answer in log:
        commands += answer
        if any(isinstance(fact, StepBegan) and fact.step == KNOWN_STEPS for fact in facts):
            break
    return decisions(commands)


def looks_ahead(axis: Axis, spec: PolicySpec) -> bool:
    """Return whether the policy decides otherwise because the trace ends otherwise."""
    trace = tiny_trace()
    first, second = (
        until_the_ends_part(small_run(t, slots=7, seed=1, **{axis: spec}))
        for t in (trace, with_another_end(trace))
    )
    assert first, "nothing was decided before the ends part"
    return first != second


@pytest.mark.parametrize(("axis", "name"), EVERY_POLICY)
def test_another_end_changes_no_beginning(axis: Axis, name: str) -> None:
    """Without the future granted, what comes later changes nothing of what was decided before."""
    spec = sample_spec(axis, name)
    if "future" in spec.needs:
        pytest.skip("the class declares that it needs the future, and results say so")
    assert not looks_ahead(axis, spec)


def test_belady_is_seen_to_look_ahead() -> None:
    """The test above does notice a policy that knows the end."""
    assert looks_ahead("cache", as_spec("cache", "belady"))


@pytest.mark.parametrize(("axis", "name"), EVERY_POLICY)
def test_only_what_is_declared_is_granted(axis: Axis, name: str) -> None:
    """A policy gets the future, or a profile, only if its class says that it needs it."""
    spec = sample_spec(axis, name)
    granted = set()

    class Spy(spec.cls):
        def __init__(self, run, *args: object, **options: object) -> None:
            granted.update(
                need
                for need, value in (
                    ("future", run.future),
                    ("profile", run.popularity_LE),
                    ("transitions", run.follows_LEE),
                )
                if value is not None
            )
            super().__init__(run, *args, **options)

    Spy.__init__.__signature__ = inspect.signature(spec.cls.__init__)  # the options are its own
    Spy.__init__.__annotations__ = spec.cls.__init__.__annotations__
    spied = replace(spec, cls=Spy)
    small_run(tiny_trace(), slots=8, **{axis: spied}).controller()
    assert granted <= spec.needs


def test_a_signal_that_was_not_declared_is_refused() -> None:
    """Reading a signal of the trace without naming it in ``needs`` is a PolicyError."""

    class Curious(CachePolicy):
        def on_touch(self, expert: int, view: View) -> None:
            view.signals.get("look_in_TLHM")

    run = small_run(tiny_trace(), cache=Curious)
    with pytest.raises(PolicyError, match="signal 'look_in_TLHM' is read by a policy without it"):
        adversarial(run, seeded(0)).run()


@pytest.mark.parametrize("known_at", ["layer_end", "step_end"])
def test_a_signal_is_not_told_before_it_is_known(known_at: str) -> None:
    """What is known at a layer's or a step's end is in no fact at or before the router's choice."""
    trace = tiny_trace()
    late = SignalSpec(tap="after the experts", known_at=known_at, producer="router")
    signals = {**trace.header.signals, "look_in_TLHM": late}
    trace = replace(trace, header=trace.header.model_copy(update={"signals": signals}))
    workload = Workload(trace, signals=["look_in_TLHM"])
    step = workload.begin(FormStep((0,), (None,)))
    assert "look_in_TLHM" not in step.signals
    assert "look_in_TLHM" not in step.layer_signals(0)


def test_a_signal_of_a_step_is_told_when_it_begins() -> None:
    """A signal that is known at a step's begin is told then, one value for each of its tokens."""
    trace = tiny_trace()
    spec = SignalSpec(tap="token embeddings", known_at="step_begin", producer="model")
    embedding_TD = np.arange(trace.tokens * 2, dtype=np.float32).reshape(-1, 2)
    trace = replace(
        trace,
        header=trace.header.model_copy(
            update={"signals": {**trace.header.signals, "embedding_TD": spec}}
        ),
        signals={**trace.signals, "embedding_TD": embedding_TD},
    )
    step = Workload(trace, signals=["embedding_TD"]).begin(FormStep((0,), (None,)))
    assert embedding_TD[:4].tolist() == step.signals["embedding_TD"]


def test_a_signal_of_a_request_is_the_request_s_own() -> None:
    """A signal with one row for each request is told by request, not cut by token rows."""
    trace = tiny_trace()
    spec = SignalSpec(tap="prompt embedding", known_at="request_arrived", producer="model")
    prompt_embedding_RD = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    trace = replace(
        trace,
        header=trace.header.model_copy(
            update={"signals": {**trace.header.signals, "prompt_embedding_RD": spec}}
        ),
        signals={**trace.signals, "prompt_embedding_RD": prompt_embedding_RD},
    )
    trace.validate("tiny")
    step = Workload(trace, signals=["prompt_embedding_RD"]).begin(FormStep((1,), (None,)))
    assert step.signals["prompt_embedding_RD"] == [[3.0, 4.0]]
