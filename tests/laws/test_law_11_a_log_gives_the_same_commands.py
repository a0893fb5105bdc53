"""Law 11: a fact log fed to a fresh controller gives the same commands, whoever drove."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import orders, shapes, traces

from moesim.simulator import registry
from moesim.simulator.controller import Controller
from moesim.simulator.registry import Axis
from moesim.simulator.testing import (
    KEEP_AT_RANDOM,
    SPLIT_AT_RANDOM,
    WISH_AT_RANDOM,
    adversarial,
    counted,
    decisions,
    engine,
    logged,
    sample_spec,
    small_run,
    tiny_trace,
)

BUILT_IN = [(axis, name) for axis in registry.AXES for name in registry.names(axis)]


def assert_again(driven: Controller, fresh: Controller) -> None:
    """Assert that a fresh controller answers a log as the one that wrote it did."""
    assert driven.log
    fresh.initial()
    for facts, now_ns, commands in driven.log:
        assert fresh.handle(facts, now_ns) == commands


@given(st.data(), shapes(), orders())
def test_whatever_ends_first_the_log_tells_all(data: st.DataObject, shape, choose) -> None:
    """Policies that choose at random from their own stream give the same commands again."""
    run = small_run(
        data.draw(traces(shape)),
        cache=KEEP_AT_RANDOM,
        prefetch=WISH_AT_RANDOM,
        schedule=SPLIT_AT_RANDOM,
        slots=2 * shape.top_k,
    )
    driven = run.controller(keep_log=True)
    adversarial(run, choose, controller=driven).run()
    assert_again(driven, run.controller())


@pytest.mark.parametrize(("axis", "name"), BUILT_IN)
def test_every_policy_answers_the_engine_s_log_again(axis: Axis, name: str) -> None:
    """The log of a run on the reference engine gives the same commands again."""
    options = {axis: sample_spec(axis, name)}
    run = small_run(tiny_trace(), slots=10, **options)
    driven = run.controller(keep_log=True)
    engine(run, driven).run()
    assert_again(driven, run.controller())


@pytest.mark.parametrize(
    ("axis", "name"), [pair for pair in BUILT_IN if sample_spec(*pair).timing_free]
)
def test_timing_free_policies_decide_alike_whoever_drives(axis: Axis, name: str) -> None:
    """Without prefetch or clock, engine, counts and adversary are given the same decisions."""
    options = {axis: sample_spec(axis, name)}
    run = small_run(tiny_trace(), slots=10, **options)
    expected = decisions(logged(counted(run)))
    on_engine = run.controller(keep_log=True)
    engine(run, on_engine).run()
    assert decisions(logged(on_engine)) == expected


def test_a_controller_with_a_hidden_input_is_caught() -> None:
    """A policy that answers by something it was not told does not answer its log again."""
    run = small_run(tiny_trace(), cache=KEEP_AT_RANDOM, slots=10)
    driven = run.controller(keep_log=True)
    engine(run, driven).run()
    other = small_run(tiny_trace(), cache=KEEP_AT_RANDOM, slots=10, seed=1)
    with pytest.raises(AssertionError):
        assert_again(driven, other.controller())
