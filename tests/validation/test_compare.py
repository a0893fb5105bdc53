"""Contention, latencies and decisions, on runs written by hand."""

import pytest

from moesim.simulator.errors import InputError
from moesim.simulator.ledger import Counts, RequestTimes, Timings
from moesim.simulator.messages import Copy, LayerRouted, Run
from moesim.simulator.terms import GPU, RAM, Cause, Place, Tier
from moesim.validation.compare import (
    compare_decisions,
    one_token,
    outcome_of,
    times_of,
)

COPY = Copy(1, 3, 0, RAM, Place(Tier.VRAM, slot=2), Cause.DEMAND)
RUN = Run(2, (3,), (1,), GPU, (1,))
PAIR = Run(4, (3, 4), (1, 1), GPU)


def log_of(*answers):
    """Return a log of one layer event for each list of commands."""
    return [
        ([LayerRouted(0, layer, (0,))], 0, list(commands)) for layer, commands in enumerate(answers)
    ]


def test_equal_decisions_do_not_differ() -> None:
    """A log compared with itself has no first difference."""
    log = log_of([COPY, RUN], [PAIR])
    same = compare_decisions(log, log, exact=True)
    assert (same.events, same.differing, same.first) == (3, 0, None)


def test_the_first_difference_has_a_place() -> None:
    """Another victim's slot is a difference where commands are compared whole, else it is none."""
    other = COPY._replace(dst=Place(Tier.VRAM, slot=5))
    ours, theirs = log_of([RUN], [COPY, RUN]), log_of([RUN], [other, RUN])
    exact = compare_decisions(ours, theirs, exact=True)
    assert exact.differing == 1
    assert exact.first is not None
    assert (exact.first.step, exact.first.layer) == (0, 1)
    assert "slot=2" in str(exact.first.predicted)
    assert "slot=5" in str(exact.first.executed)
    assert compare_decisions(ours, theirs, exact=False).first is None


def test_a_command_too_many_is_a_difference() -> None:
    """Where one side decides nothing more, the other's command stands alone."""
    found = compare_decisions(log_of([RUN]), log_of([RUN, COPY]), exact=False)
    assert found.first is not None
    assert found.first.predicted is None
    assert found.first.executed == "Copy expert 3 (demand)"


def test_times_are_in_ms_over_the_counted_tokens() -> None:
    """Of gaps of 5, 1, 3 and 2 ms the first is warm-up: the mean of the next two is 2."""
    ends = [10_000_000, 15_000_000, 16_000_000, 19_000_000, 21_000_000]
    timings = Timings(requests=[RequestTimes(0, 4_000_000, 4_000_000, 3, ends, True)])
    found = outcome_of(Counts(), timings, [], [], (1, 2))
    assert found.gaps_ms == (1.0, 3.0)
    assert (found.times.mean_tpot, found.times.mean_ttft) == (2.0, 6.0)
    assert found.busy.served == 17_000_000
    with pytest.raises(InputError, match=r"has 4 decode tokens, 1 \+ 9 are asked for"):
        outcome_of(Counts(), timings, [], [], (1, 9))


def test_percentiles_interpolate() -> None:
    """Of 1 to 101 the 99th percentile is 100 and the median 51."""
    found = times_of([float(ms) for ms in range(1, 102)], [])
    assert (found.p50_tpot, found.p99_tpot, found.mean_ttft) == (51.0, 100.0, None)


def test_a_tokens_timeline_begins_at_the_token_before() -> None:
    """Jobs inside the token are kept, counted from its begin."""
    timings = Timings(requests=[RequestTimes(0, 0, 0, 3, [100, 200, 300], True)])
    spans = [("gpu", RUN, 90, 120), ("h2d", COPY, 110, 150), ("gpu", RUN, 150, 190)]
    jobs = one_token(timings, spans, 1, 8)
    assert [(job.track, job.begin_ns, job.end_ns) for job in jobs] == [
        ("GPU compute", 50, 90),
        ("copies host to GPU", 10, 50),
    ]
