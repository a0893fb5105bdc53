"""Built-in cache policies against caches written the plain way, on small random streams."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import SCORES, copies, fewest_copies

from moesim.simulator.messages import Copy
from moesim.simulator.testing import counted, logged, small_run, trace_of
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace, synthetic


@st.composite
def small_traces(
    draw: st.DrawFn, *, layers: int = 2, experts: int = 5, tokens: int = 8
) -> RoutingTrace:
    """Draw one or two requests with prompts of several tokens, so that choices repeat."""
    top_k = draw(st.integers(1, 2))
    choice = st.lists(st.integers(0, experts - 1), min_size=top_k, max_size=top_k, unique=True)
    row = st.lists(choice, min_size=layers, max_size=layers)
    request = st.tuples(st.lists(row, max_size=3), st.lists(row, min_size=1, max_size=tokens))
    return trace_of(draw(st.lists(request, min_size=1, max_size=2)), experts=experts)


def _largest_event(trace: RoutingTrace) -> int:
    return max(len(set(choices)) for choices in Workload(trace).events())


@pytest.mark.parametrize("policy", SCORES)
@given(data=st.data())
def test_every_copy_is_that_of_the_plain_cache(policy: str, data: st.DataObject) -> None:
    """The same experts are copied in the same order, whatever is hit, repeated or tied."""
    trace = data.draw(small_traces(tokens=12))
    slots = _largest_event(trace) + data.draw(st.integers(0, 5))
    expected = copies(list(Workload(trace).events()), slots, SCORES[policy])
    controller = counted(small_run(trace, cache=policy, slots=slots))
    actual = [command.expert for command in logged(controller) if isinstance(command, Copy)]
    assert expected == actual


@pytest.mark.parametrize("policy", SCORES)
def test_every_copy_of_a_long_run_is_that_of_the_plain_cache(policy: str) -> None:
    """The same over thousands of events, where counts grow large and old scores are forgotten."""
    trace = synthetic.zipf(
        seed=7, layers=2, experts=24, top_k=2, requests=3, prompt_tokens=6, decode_tokens=500
    )
    slots = 20
    assert slots >= _largest_event(trace)
    expected = copies(list(Workload(trace).events()), slots, SCORES[policy])
    controller = counted(small_run(trace, cache=policy, slots=slots))
    actual = [command.expert for command in logged(controller) if isinstance(command, Copy)]
    assert len(expected) > 1_000
    assert expected == actual


@given(data=st.data())
def test_forced_belady_copies_as_little_as_any_choice_of_victims(data: st.DataObject) -> None:
    """No sequence of victims beats it where every expert that is copied stays."""
    trace = data.draw(small_traces(layers=1, experts=5, tokens=9))
    slots = _largest_event(trace) + data.draw(st.integers(0, 2))
    expected = fewest_copies(list(Workload(trace).events()), slots, bypass=False)
    actual = counted(small_run(trace, cache="belady", slots=slots)).counts.copies
    assert expected == actual


@given(data=st.data())
def test_belady_with_bypass_copies_as_little_as_any_choice(data: st.DataObject) -> None:
    """No choice of victims and of what to let pass beats it, with staging for a whole event."""
    trace = data.draw(small_traces(layers=2, experts=4, tokens=7))
    staging = _largest_event(trace)
    slots = data.draw(st.integers(1, staging + 2))
    expected = fewest_copies(list(Workload(trace).events()), slots, bypass=True)
    policy = f"belady:admit=bypass,staging={staging}"
    actual = counted(small_run(trace, cache=policy, slots=slots + staging)).counts.copies
    assert expected == actual


@settings(max_examples=25)
@given(data=st.data())
def test_no_policy_copies_less_than_belady(data: st.DataObject) -> None:
    """Forced Belady is a lower bound for every cache that keeps what it copies, at equal room."""
    trace = data.draw(small_traces(tokens=12))
    slots = _largest_event(trace) + data.draw(st.integers(0, 5))
    least = counted(small_run(trace, cache="belady", slots=slots)).counts.copies
    for policy in SCORES:
        assert least <= counted(small_run(trace, cache=policy, slots=slots)).counts.copies
