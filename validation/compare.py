"""A replay beside an execution: decisions one by one, times by cause."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from moesim.simulator.errors import InputError
from moesim.simulator.ledger import Counts, RequestTimes, Timings
from moesim.simulator.messages import Command, Copy, LayerRouted, Move, Run
from moesim.simulator.results.request_times import request_tpot_ns
from moesim.simulator.results.rows import token_times
from moesim.simulator.results.timeline import TRACKS
from moesim.simulator.results.timeline import events as timeline_events
from moesim.validation.evidence import Busy, Decisions, Difference, Guests, Job, Outcome, Times
from moesim.validation.exposure import exposed
from moesim.validation.machine import Log, Span
from moesim.validation.stalls import stall_ms

COUNTS = (
    "demands",
    "hits",
    "late_hits",
    "partial_hits",
    "misses",
    "cpu_experts",
    "evictions",
    "copies",
    "bytes_demand",
    "bytes_prefetch_useful",
    "bytes_prefetch_late",
    "bytes_prefetch_wasted",
)
DECIMALS = 6
Told = tuple[str, object]
Event = tuple[tuple[int, int], list[Command]]
"""Step and layer, and what was commanded from then until the next router had chosen."""


def layer_events(log: Log) -> list[Event]:
    """Return a run's commands by layer event; what precedes the first is of step and layer -1."""
    found: list[Event] = [((-1, -1), [])]
    for facts, _, commands in log:
        found += [((fact.step, fact.layer), []) for fact in facts if isinstance(fact, LayerRouted)]
        found[-1][1].extend(commands)
    return found


def compare_decisions(predicted: Log, executed: Log, *, exact: bool) -> Decisions:
    """Return in how many layer events two runs of the same demands decide differently.

    Args:
        predicted: Of the replay.
        executed: Of the machine.
        exact: Compare commands whole; else what is copied and run, and where, without numbers.
    """
    ours, theirs = layer_events(predicted), layer_events(executed)
    length = max(len(ours), len(theirs))
    nothing: Event = ((-1, -1), [])
    differing, first = 0, None
    for at in range(length):
        (place, mine), (_, other) = (
            (side[at] if at < len(side) else nothing) for side in (ours, theirs)
        )
        a, b = ([_told(command, exact=exact) for command in each] for each in (mine, other))
        if a == b:
            continue
        differing += 1
        if first is None:
            where = place if at < len(ours) else theirs[at][0]
            first = _first(where, a, b)
    return Decisions(exact=exact, events=length, differing=differing, first=first)


def _first(where: tuple[int, int], ours: list[Told], theirs: list[Told]) -> Difference:
    at = next(
        (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    predicted, executed = (
        f"{side[at][0]}{side[at][1]}" if at < len(side) else None for side in (ours, theirs)
    )
    return Difference(step=where[0], layer=where[1], predicted=predicted, executed=executed)


def _told(command: Command, *, exact: bool) -> Told:
    """Return a command's kind and content: all of it, or what no end of a copy changes."""
    name = type(command).__name__
    if exact:
        return name, tuple(command)
    if isinstance(command, Copy | Move):
        cause = f" ({command.cause.name.lower()})" if isinstance(command, Copy) else ""
        return name, f" expert {command.expert}{cause}"
    if isinstance(command, Run):
        return name, f" experts {list(command.experts)} on the {command.device.kind}"
    return name, ""


def outcome_of(
    counts: Counts,
    timings: Timings,
    spans: Sequence[Span],
    log: Log,
    lengths: tuple[int, int],
    *,
    arrived: bool = False,
) -> Outcome:
    """Return what a run came to, over the tokens that count; busy times are of the whole run.

    Args:
        counts: The decisions.
        timings: What was measured.
        spans: Every job.
        log: Every call of the controller.
        lengths: Decode tokens that do not count, and those after them that do.
        arrived: Whether requests arrived by themselves.

    Raises:
        InputError: The trace has too few decode tokens.
    """
    warm, tokens = lengths
    requests = sorted(timings.requests, key=lambda request: request.request)
    all_ns = gaps_in_time(requests)
    gaps_ns = all_ns[warm : warm + tokens]
    if len(gaps_ns) < tokens:
        raise InputError(
            f"the trace has {len(all_ns)} decode tokens, {warm} + {tokens} are asked for; "
            "lower --warm or --tokens, or give a longer trace"
        )
    found, bare = token_times(requests), exposed(spans)
    return Outcome(
        times=times_of([gap / 1e6 for gap in gaps_ns], [ns / 1e6 for ns in found.first_ns]),
        gaps_ms=tuple(round(gap / 1e6, DECIMALS) for gap in gaps_ns),
        counts={name: getattr(counts, name) for name in COUNTS},
        busy=Busy(
            served=found.last_end_ns - min(request.arrived_ns for request in requests),
            link=timings.link_busy_ns,
            experts=bare.experts,
            contention=bare.contention,
        ),
        stall_ms=stall_ms(log, spans) or None,
        decisions_ms=round(timings.decision_ns / 1e6, DECIMALS),
        guests=guests_of(requests, timings, counts.steps) if arrived else None,
    )


def guests_of(requests: Sequence[RequestTimes], timings: Timings, steps: int) -> Guests:
    """Return what requests that arrived went through, in their order."""

    def ms(times_ns: Iterable[float]) -> tuple[float, ...]:
        return tuple(round(ns / 1e6, DECIMALS) for ns in times_ns)

    server = timings.server
    return Guests(
        ttft_ms=ms(one.token_ends_ns[0] - one.arrived_ns for one in requests),
        e2e_ms=ms(one.token_ends_ns[-1] - one.arrived_ns for one in requests),
        queue_ms=ms(one.began_ns - one.arrived_ns for one in requests),
        tpot_ms=ms(ns for one in requests if (ns := request_tpot_ns(one)) is not None),
        mean_batch=round(server.requests_in_steps / max(1, steps), DECIMALS),
        most_waiting=server.most_waiting,
    )


def gaps_in_time(requests: Sequence[RequestTimes]) -> list[int]:
    """Return the gaps between tokens in the order of their ends, then of their requests."""
    ended = []
    for request in requests:
        begins = [] if request.has_first_token else [request.began_ns]
        for begin_ns, end_ns in pairwise([*begins, *request.token_ends_ns]):
            ended.append((end_ns, request.request, end_ns - begin_ns))
    return [gap_ns for _, _, gap_ns in sorted(ended)]


def times_of(gaps_ms: Sequence[float], first_ms: Sequence[float]) -> Times:
    """Return mean and percentiles of gaps between tokens, and the mean time to a first token."""
    return Times(
        mean_tpot=round(float(np.mean(gaps_ms)), DECIMALS),
        p50_tpot=round(float(np.percentile(gaps_ms, 50)), DECIMALS),
        p99_tpot=round(float(np.percentile(gaps_ms, 99)), DECIMALS),
        mean_ttft=round(float(np.mean(first_ms)), DECIMALS) if len(first_ms) else None,
    )


def one_token(timings: Timings, spans: Sequence[Span], token: int, experts: int) -> tuple[Job, ...]:
    """Return the jobs of one token, in ns since the token before it was complete.

    Args:
        timings: Whose token ends delimit it.
        spans: Every job.
        token: Which of the first request's, counted from 1 after its first.
        experts: Experts of a layer.
    """
    ends = min(timings.requests, key=lambda request: request.request).token_ends_ns
    token = min(token, len(ends) - 1)
    begin_ns, end_ns = ends[token - 1], ends[token]
    inside = [span for span in spans if begin_ns <= span[2] and span[3] <= end_ns]
    names = {}
    jobs = []
    for event in timeline_events(inside, experts=experts):
        if event.get("name") == "thread_name":
            names[event["tid"]] = event["args"]["name"]
        elif event["ph"] == "X":
            at = event["ts"] - begin_ns
            jobs.append(
                Job(
                    track=names[event["tid"]],
                    name=event["name"],
                    begin_ns=at,
                    end_ns=at + event["dur"],
                )
            )
    return tuple(sorted(jobs, key=lambda job: ([*TRACKS.values()].index(job.track), job.begin_ns)))
