"""Whose time it is: runs behind a copy cost nothing, the bare rest is the experts'."""

from typing import Any

from moesim.simulator.messages import Copy, Run
from moesim.simulator.terms import GPU, RAM, Cause, Place, Tier
from moesim.validation.exposure import LEAST_SAMPLES, exposed, lost_ns

COPY = Copy(1, 3, 0, RAM, Place(Tier.VRAM, slot=2), Cause.DEMAND)
RUN = Run(2, (3,), (1,), GPU, (1,))


def test_what_copies_hide_is_not_counted() -> None:
    """Of runs before, in, across and after two joined copies, 100 + 0 + 30 + 20 lie bare."""
    spans: list[Any] = [
        ("h2d", COPY, 100, 300),
        ("h2d", COPY, 250, 400),
        ("gpu", RUN, 0, 100),
        ("gpu", RUN, 150, 380),
        ("gpu", RUN, 390, 430),
        ("gpu", RUN, 500, 520),
    ]
    assert exposed(spans) == (150, 0)


def test_nothing_copied_and_nothing_run() -> None:
    """Without copies all of a run is bare; without anything there is nothing."""
    assert exposed([("gpu", RUN, 10, 30)]) == (20, 0)
    assert exposed([]) == (0, 0)


def test_contention_is_what_lies_bare_of_a_longer_run() -> None:
    """Runs take 100 alone and 150 beside a copy; 40 of each lie bare, which is less than 50."""
    spans: list[Any] = []
    for n in range(LEAST_SAMPLES):
        at = 1000 * n
        spans += [("gpu", RUN, at, at + 100), ("h2d", COPY, at + 200, at + 350)]
        spans.append(("gpu", RUN, at + 240, at + 390))
    assert exposed(spans) == (LEAST_SAMPLES * (100 + 40), LEAST_SAMPLES * 40)
    assert exposed(spans[:-1]).contention == 0


def test_what_runs_lose_is_all_of_their_lengthening() -> None:
    """Runs take 100 alone and 150 beside a copy: each lost 50, of which 40 lay bare."""
    spans: list[Any] = []
    for n in range(LEAST_SAMPLES):
        at = 1000 * n
        spans += [("gpu", RUN, at, at + 100), ("h2d", COPY, at + 200, at + 350)]
        spans.append(("gpu", RUN, at + 240, at + 390))
    assert lost_ns(spans) == LEAST_SAMPLES * 50
    assert lost_ns(spans[:-1]) == 0
    assert lost_ns([]) == 0
