"""Hypothesis strategies: small shapes, the traces that fit them, and orders in which work ends.

Beside them, what seeds a fault into a run, so that each law is seen to fail.
"""

from collections.abc import Callable
from typing import NamedTuple

from hypothesis import strategies as st

from moesim.simulator.controller import Controller
from moesim.simulator.messages import Command, Fact
from moesim.simulator.runs import Prepared
from moesim.simulator.testing import AdversarialDriver, Choose, adversarial, seeded, trace_of
from moesim.traces import RoutingTrace

LONGEST_TAPE = 60


class Shape(NamedTuple):
    """Size of a model: MoE layers, experts of each, experts that a token uses."""

    layers: int
    experts: int
    top_k: int


@st.composite
def shapes(draw: st.DrawFn, *, layers: int = 3, experts: int = 5, top_k: int = 2) -> Shape:
    """Draw a shape of at most this size."""
    some_experts = draw(st.integers(1, experts))
    return Shape(
        draw(st.integers(1, layers)),
        some_experts,
        draw(st.integers(1, min(top_k, some_experts))),
    )


@st.composite
def traces(
    draw: st.DrawFn,
    shape: Shape,
    *,
    requests: int = 2,
    prompt_tokens: int = 3,
    decode_tokens: int = 4,
) -> RoutingTrace:
    """Draw a trace of at most this many requests and tokens; each request has a token at least."""
    choice = st.lists(
        st.integers(0, shape.experts - 1),
        min_size=shape.top_k,
        max_size=shape.top_k,
        unique=True,
    )
    row = st.lists(choice, min_size=shape.layers, max_size=shape.layers)
    several = []
    for _ in range(draw(st.integers(1, requests))):
        prompt = draw(st.lists(row, max_size=prompt_tokens))
        least = 0 if prompt else 1
        decode = draw(st.lists(row, min_size=least, max_size=max(least, decode_tokens)))
        several.append((prompt, decode))
    return trace_of(several, experts=shape.experts)


@st.composite
def orders(draw: st.DrawFn) -> Choose:
    """Draw choices for an adversarial driver: a tape of numbers that starts again at its end."""
    tape = draw(st.lists(st.integers(0, 11), min_size=1, max_size=LONGEST_TAPE))
    at = -1

    def choose(n: int) -> int:
        nonlocal at
        at = (at + 1) % len(tape)
        return tape[at] % n

    return choose


def with_fault(
    run: Prepared,
    change: Callable[[list[Command]], list[Command]],
    controller: Controller | None = None,
    seed: int = 0,
) -> AdversarialDriver:
    """Return an adversarial driver of a controller whose every answer is changed."""
    faulty = controller or run.controller()
    handle = faulty.handle

    def changed(facts: list[Fact], now_ns: int) -> list[Command]:
        return change(handle(facts, now_ns))

    faulty.handle = changed
    return adversarial(run, seeded(seed), controller=faulty)
