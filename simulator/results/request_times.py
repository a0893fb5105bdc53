"""What requests experienced: queueing apart from service, and what was promised to them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moesim.simulator.ledger import RequestTimes, ServerCounts
from moesim.simulator.results.summaries import STATISTICS, summary
from moesim.simulator.terms import NO_PROMISE, SECOND_NS

__all__ = ["FIELDS", "keeps_promise", "request_fields", "request_lines", "request_tpot_ns"]


_KINDS = {
    "request_tpot": "(E2E - TTFT) / (output tokens - 1) of a request, as in vLLM's benchmark",
    "e2e": "time from arrival to the last token",
    "queue": "time from arrival to the begin of the first step",
    "service": "time from there to the last token",
}

FIELDS: Mapping[str, str] = {
    **{
        f"{statistic}_{kind}_ms": text if statistic == "mean" else f"its {statistic}"
        for kind, text in _KINDS.items()
        for statistic in STATISTICS
    },
    "refused": "requests refused: too long for the KV cache, or too many waited",
    "slo_attainment": "share of all requests to which something was promised that was kept",
    "goodput_per_s": "requests whose promise was kept / span",
    "requests_per_s": "requests served / span",
    "mean_batch": "requests in a step, mean over the steps",
    "most_in_step": "the most",
    "most_waiting": "most requests that waited at a time",
    "peak_kv_bytes": "most bytes of KV cache in use; empty where they are not counted",
}


def request_fields(
    requests: Sequence[RequestTimes], server: ServerCounts, *, steps: int, span_ns: int
) -> dict[str, Any]:
    """Return the fields above.

    Args:
        requests: Those that were served.
        server: What requests did.
        steps: Forward passes.
        span_ns: Of the whole run.
    """
    ended = [request for request in requests if request.token_ends_ns]
    times_ns: dict[str, list[float]] = {
        "request_tpot": [ns for request in ended if (ns := request_tpot_ns(request)) is not None],
        "e2e": [request.token_ends_ns[-1] - request.arrived_ns for request in ended],
        "queue": [request.began_ns - request.arrived_ns for request in requests],
        "service": [request.token_ends_ns[-1] - request.began_ns for request in ended],
    }
    found: dict[str, Any] = {}
    for kind, values in times_ns.items():
        found |= summary(kind, values)
    promised = [request for request in ended if request.slo != NO_PROMISE]
    kept = sum(keeps_promise(request) for request in promised)
    promises = len(promised) + server.refused_promised
    span_s = span_ns / SECOND_NS
    found |= {
        "refused": server.refused,
        "slo_attainment": round(kept / promises, 9) if promises else None,
        "goodput_per_s": round(kept / span_s, 9) if promises and span_ns else None,
        "requests_per_s": round(len(requests) / span_s, 9) if span_ns else None,
        "mean_batch": round(server.requests_in_steps / steps, 9) if steps else None,
        "most_in_step": server.most_in_step,
        "most_waiting": server.most_waiting,
        "peak_kv_bytes": server.most_kv_bytes or None,
    }
    return found


def request_lines(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a person reads of them, each with a name, where requests arrived."""
    served = f"{row['requests']} served, {row['refused']} refused"
    yield "requests", f"{served}; at most {row['most_waiting']} waited ({row['arrivals']})"
    kinds = {
        "TPOT, requests": "request_tpot",
        "E2E": "e2e",
        "queueing": "queue",
        "service": "service",
    }
    for name, kind in kinds.items():
        if row[f"mean_{kind}_ms"] is not None:
            figures = [f"{row[f'{which}_{kind}_ms']:.3f}" for which in ("p50", "p90", "p99")]
            mean_ms = row[f"mean_{kind}_ms"]
            yield name, f"{mean_ms:.3f} ms  (p50 {figures[0]}, p90 {figures[1]}, p99 {figures[2]})"
    if row["slo_attainment"] is not None:
        yield (
            "SLO",
            f"kept for {row['slo_attainment'] * 100:.1f} %, goodput {row['goodput_per_s']:.3f} "
            "requests/s",
        )
    if row["mean_batch"] is not None:
        yield "batch", f"{row['mean_batch']:.2f} requests a step, at most {row['most_in_step']}"


def keeps_promise(request: RequestTimes) -> bool:
    """Return whether a request got everything in the time that was promised."""
    slo, ends_ns = request.slo, request.token_ends_ns
    tpot_ns = request_tpot_ns(request)
    return not (
        (slo.ttft_ns is not None and ends_ns[0] - request.arrived_ns > slo.ttft_ns)
        or (slo.tpot_ns is not None and tpot_ns is not None and tpot_ns > slo.tpot_ns)
        or (slo.e2e_ns is not None and ends_ns[-1] - request.arrived_ns > slo.e2e_ns)
    )


def request_tpot_ns(request: RequestTimes) -> float | None:
    """Return the mean time of the tokens after the first; None if there are none."""
    ends_ns = request.token_ends_ns
    if not request.has_first_token or len(ends_ns) < 2:  # noqa: PLR2004  a first and another
        return None
    return (ends_ns[-1] - ends_ns[0]) / (len(ends_ns) - 1)
