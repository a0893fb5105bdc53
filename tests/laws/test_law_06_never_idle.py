"""Law 6: the run is never idle while a layer waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import orders, shapes, traces, with_fault

from moesim.simulator import registry
from moesim.simulator.messages import Command, FormStep, LayerDone, Run
from moesim.simulator.testing import (
    SPLIT_AT_RANDOM,
    WISH_AT_RANDOM,
    Witness,
    adversarial,
    engine,
    sample_spec,
    seeded,
    small_run,
    tiny_trace,
)


@given(st.data(), shapes(), orders())
def test_a_layer_that_waits_has_something_under_way(data: st.DataObject, shape, choose) -> None:
    """Until a layer is done something is under way whose end the controller will be told of."""
    trace = data.draw(traces(shape))
    run = small_run(trace, prefetch=WISH_AT_RANDOM, schedule=SPLIT_AT_RANDOM, slots=shape.top_k)
    adversarial(run, choose).run()


@pytest.mark.parametrize("name", registry.names("schedule"))
def test_every_schedule_finishes_on_the_engine(name: str) -> None:
    """No layer hangs on the engine either, whose host sleeps until something ends."""
    run = small_run(
        tiny_trace(), prefetch=WISH_AT_RANDOM, schedule=sample_spec("schedule", name), slots=5
    )
    witness = Witness(run.controller())
    engine(run, witness).run()
    witness.close()


def test_a_layer_that_is_never_done_is_caught() -> None:
    """A controller that forgets to say that a layer is done fails law 6."""

    def forget(commands: list[Command]) -> list[Command]:
        return [command for command in commands if not isinstance(command, LayerDone)]

    with pytest.raises(AssertionError, match="law 6: layer 0 waits for nothing"):
        with_fault(small_run(tiny_trace()), forget).run()


def test_a_layer_done_too_early_is_caught() -> None:
    """A controller that does not wait for its CPU runs is caught."""

    def hurry(commands: list[Command]) -> list[Command]:
        runs = [c for c in commands if isinstance(c, Run) and c.device.kind == "cpu"]
        waits = runs and not any(isinstance(c, LayerDone) for c in commands)
        return [*commands, LayerDone(runs[0].experts[0] // 6)] if waits else commands

    with pytest.raises(AssertionError, match="layer 0 is done before CPU runs"):
        with_fault(small_run(tiny_trace(), schedule="cpu_on_miss", slots=9), hurry).run()


def test_a_run_that_stops_between_steps_is_caught() -> None:
    """A controller that calls for no step while requests wait fails law 6."""
    seen = 0

    def stop(commands: list[Command]) -> list[Command]:
        nonlocal seen
        seen += any(isinstance(command, FormStep) for command in commands)
        return [c for c in commands if seen < 3 or not isinstance(c, FormStep)]

    with pytest.raises(AssertionError, match="law 6: a step ended, and neither another nor a wait"):
        with_fault(small_run(tiny_trace()), stop).run()


def test_the_adversary_cannot_stop_by_itself() -> None:
    """A run that ends has served every step of every request."""
    trace = tiny_trace()
    driver = adversarial(small_run(trace), seeded(0))
    driver.run()
    assert driver.witness.controller.counts.steps == 18
    assert driver.witness.controller.counts.output_tokens == 18
