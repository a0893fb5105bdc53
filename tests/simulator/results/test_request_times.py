"""What requests experienced, worked by hand."""

import pytest

from moesim.simulator.ledger import RequestTimes, ServerCounts
from moesim.simulator.results.request_times import FIELDS, keeps_promise, request_fields
from moesim.simulator.terms import Slo

MS = 10**6


def times(arrived: int, began: int, *ends: int, **slo: int) -> RequestTimes:
    """Return a request's times, given in ms."""
    promised = Slo(**{f"{name}_ns": ms * MS for name, ms in slo.items()})
    ends_ns = [end * MS for end in ends]
    return RequestTimes(0, arrived * MS, began * MS, 1, ends_ns, has_first_token=True, slo=promised)


def test_queueing_is_apart_from_service() -> None:
    """Queue, service and E2E of two requests; TPOT is by request, not by gap."""
    requests = [times(0, 2, 10, 14, 18), times(0, 4, 10, 20)]
    row = request_fields(requests, ServerCounts(requests_in_steps=6), steps=4, span_ns=20 * MS)
    assert row.keys() == FIELDS.keys()
    assert (row["mean_queue_ms"], row["p50_queue_ms"]) == (3, 3)
    assert (row["mean_service_ms"], row["mean_e2e_ms"]) == (16, 19)
    assert row["mean_request_tpot_ms"] == (4 + 10) / 2
    assert row["mean_batch"] == 1.5
    assert row["requests_per_s"] == 100
    assert (row["slo_attainment"], row["goodput_per_s"]) == (None, None)


@pytest.mark.parametrize(
    ("promise", "kept"),
    [
        ({}, True),
        ({"ttft": 9}, True),
        ({"ttft": 8}, False),
        ({"tpot": 4}, True),
        ({"tpot": 3}, False),
        ({"e2e": 17}, True),
        ({"e2e": 16}, False),
        ({"ttft": 9, "tpot": 4, "e2e": 16}, False),
    ],
)
def test_a_promise_is_kept_at_its_limit(promise: dict[str, int], kept: bool) -> None:
    """TTFT 9, TPOT 4 and E2E 17 ms keep promises of just that."""
    assert kept == keeps_promise(times(1, 2, 10, 14, 18, **promise))


def test_attainment_and_goodput_count_the_refused() -> None:
    """Of three promises one is kept, one broken and one refused."""
    requests = [times(0, 0, 5, ttft=5), times(0, 0, 6, ttft=5), times(0, 0, 6)]
    counts = ServerCounts(refused_queue_full=2, refused_promised=1)
    row = request_fields(requests, counts, steps=3, span_ns=500 * MS)
    assert row["slo_attainment"] == pytest.approx(1 / 3)
    assert row["goodput_per_s"] == 2
    assert row["refused"] == 2


def test_where_all_who_were_promised_something_are_refused_nothing_was_kept() -> None:
    """Attainment and goodput are 0, not unknown."""
    counts = ServerCounts(refused_queue_full=2, refused_promised=2)
    row = request_fields([times(0, 0, 6)], counts, steps=1, span_ns=500 * MS)
    assert (row["slo_attainment"], row["goodput_per_s"]) == (0, 0)
