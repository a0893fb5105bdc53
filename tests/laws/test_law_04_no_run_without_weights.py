"""Law 4: nothing runs without its weights, and nothing overwrites weights that are being read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import orders, shapes, traces, with_fault

from moesim.simulator import registry
from moesim.simulator.messages import Command, Copy, Run
from moesim.simulator.testing import (
    SPLIT_AT_RANDOM,
    WISH_AT_RANDOM,
    adversarial,
    sample_spec,
    seeded,
    small_run,
    tiny_trace,
)


@given(st.data(), shapes(layers=2, experts=6, top_k=3), orders())
def test_waves_read_before_they_overwrite(data: st.DataObject, shape, choose) -> None:
    """In a prompt with less room than it needs, runs wait for copies and copies for runs."""
    trace = data.draw(traces(shape, prompt_tokens=6, decode_tokens=2))
    slots = data.draw(st.integers(shape.top_k, shape.top_k + 2))
    adversarial(small_run(trace, slots=slots), choose).run()


@pytest.mark.parametrize("name", registry.names("prefetch"))
def test_what_was_prefetched_is_there_before_it_runs(name: str) -> None:
    """Late hits wait for the copy that brings them, under every prefetch policy."""
    for seed in range(8):
        run = small_run(
            tiny_trace(),
            prefetch=sample_spec("prefetch", name),
            schedule=SPLIT_AT_RANDOM,
            slots=7,
            seed=seed,
        )
        adversarial(run, seeded(seed)).run()


def test_a_run_that_does_not_wait_is_caught() -> None:
    """A run that does not wait for the copy of its expert fails law 4."""

    def hurry(commands: list[Command]) -> list[Command]:
        return [c._replace(after=()) if isinstance(c, Run) else c for c in commands]

    with pytest.raises(AssertionError, match=r"law 4: .* does not wait for copy 1"):
        with_fault(small_run(tiny_trace(), slots=9), hurry).run()


def test_a_copy_that_does_not_wait_is_caught() -> None:
    """A copy of a later wave that does not wait for who reads its place fails law 4."""

    def hurry(commands: list[Command]) -> list[Command]:
        return [c._replace(after=()) if isinstance(c, Copy) else c for c in commands]

    with pytest.raises(AssertionError, match=r"law 4: copy \d+ overwrites expert \d+, which run"):
        with_fault(small_run(tiny_trace(prompt_tokens=6), slots=2), hurry).run()


def test_a_copy_that_is_not_made_is_caught() -> None:
    """A run of an expert that nobody copied fails law 4."""

    def withhold(commands: list[Command]) -> list[Command]:
        copies = [c for c in commands if isinstance(c, Copy)]
        return [c for c in commands if c not in copies[-1:]]

    with pytest.raises(AssertionError, match="law 4: .* without its weights|should be number"):
        with_fault(small_run(tiny_trace(), slots=9), withhold).run()


def test_a_copy_to_another_place_is_caught() -> None:
    """A copy to a place that the residency does not know of fails law 1 or 4."""

    def astray(commands: list[Command]) -> list[Command]:
        return [
            c._replace(dst=c.dst._replace(slot=0, offset_bytes=0)) if isinstance(c, Copy) else c
            for c in commands
        ]

    with pytest.raises(AssertionError, match="law [134]"):
        with_fault(small_run(tiny_trace(), prefetch=WISH_AT_RANDOM, slots=9), astray).run()
