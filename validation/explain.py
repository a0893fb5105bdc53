"""Where a prediction and the truth part, first difference first, by cause."""

from collections.abc import Iterator
from statistics import fmean

from moesim.validation.evidence import Evidence, Outcome
from moesim.validation.judge import CAUSES
from moesim.validation.tables import verdict_of
from moesim.validation.token_jobs import compare_jobs

COUNTS = ("hits", "late_hits", "partial_hits", "misses", "cpu_experts")
MOST_DIGITS = 200
NS_PER_MS = 1_000_000


def explain(one: Evidence) -> Iterator[str]:
    """Yield what a reader must know of one cell, a line at a time."""
    cell, judged, predicted = one.prediction.cell, one.judged, one.prediction.outcome
    yield (
        f"{cell.budget} {cell.system}: TPOT predicted {predicted.times.mean_tpot:.3f} ms, measured "
        f"{judged.measured.mean_tpot:.3f} ({judged.error['mean_tpot']:+.1%}); {verdict_of(one)}"
    )
    yield f"  decisions   {_decisions(one)}"
    yield f"  time        {_first_token(one)}"
    yield f"  by cause    {_causes(one)}"
    yield from _jobs(one)
    yield from _guests(one)
    yield f"  outcomes    {_counts(one)}"
    yield (
        f"  noise       spread {judged.spread:.1%}, anchors moved up to {judged.drift:.1%} "
        f"from calibration{_copies(one)}{_undisturbed(one)}"
    )


def order(found: list[Evidence]) -> list[Evidence]:
    """Return cells with those that were decided otherwise first, then by the size of the error."""
    return sorted(
        found,
        key=lambda one: (one.judged.decisions_right, -abs(one.judged.error["mean_tpot"])),
    )


def _decisions(one: Evidence) -> str:
    worst = max(one.executions, key=lambda execution: execution.decisions.differing)
    found = worst.decisions
    if found.first is None:
        return f"all {found.events} layer events decided alike in {len(one.executions)} executions"
    first, share = found.first, found.differing / found.events
    routes = "" if one.prediction.cell.routing == "forced" else "on the model's own routes "
    return (
        f"{routes}{found.differing} of {found.events} layer events differ ({share:.1%}); first in "
        f"step {first.step} layer {first.layer}: predicted {_short(first.predicted)}, "
        f"executed {_short(first.executed)}"
    )


def _first_token(one: Evidence) -> str:
    """Return the first counted token whose time, averaged over executions, leaves the tolerance."""
    limit = one.judged.tolerance["mean_tpot"]
    predicted = one.prediction.outcome.gaps_ms
    runs = [execution.outcome.gaps_ms for execution in one.executions]
    measured = [fmean(gaps) for gaps in zip(*runs, strict=True)]
    for token, (ours, theirs) in enumerate(zip(predicted, measured, strict=True), 1):
        if abs(ours - theirs) > limit * theirs:
            beyond = sum(abs(a - b) > limit * b for a, b in zip(predicted, measured, strict=True))
            return (
                f"parts at counted token {token}: predicted {ours:.3f} ms, measured {theirs:.3f}; "
                f"{beyond} of {len(predicted)} tokens are off by more than {limit:.1%}"
            )
    return f"no token is off by more than {limit:.1%}"


def _causes(one: Evidence) -> str:
    gap = one.judged.gap_ms
    parts = sorted(CAUSES, key=lambda cause: -abs(gap[cause]))
    said = f"{gap['total']:+.1f} ms over the run (measured minus predicted): " + ", ".join(
        f"{cause} {gap[cause]:+.1f}" for cause in parts
    )
    return said + _deciding(one)


def _deciding(one: Evidence) -> str:
    """Say what decisions took, which is a part of the host's time."""
    ours = one.prediction.outcome.decisions_ms
    theirs = [each.outcome.decisions_ms for each in one.executions]
    known = [ms for ms in theirs if ms is not None]
    if ours is None or not known:
        return ""
    return f"; decisions take {ours:.1f} ms, executed {min(known):.1f} to {max(known):.1f}"


def _copies(one: Evidence) -> str:
    """Say what a copy took on average: a burst in which copies are slow shows here alone."""

    def mean_us(outcome: Outcome) -> float:
        return outcome.busy.link / outcome.counts["copies"] / 1e3

    outcomes = [one.prediction.outcome, *(each.outcome for each in one.executions)]
    if not all(outcome.counts["copies"] for outcome in outcomes):
        return ""
    predicted, *executed = map(mean_us, outcomes)
    return (
        f"; a copy takes {predicted:.1f} us on average, executed "
        f"{min(executed):.1f} to {max(executed):.1f}"
    )


def _undisturbed(one: Evidence) -> str:
    """Say what tokens take where nothing disturbs them: each is the same work in all executions."""
    alone = len(one.executions) == 1
    if alone or not one.prediction.cell.timing_free:
        return ""
    runs = [execution.outcome.gaps_ms for execution in one.executions]
    fastest_ms = fmean(min(gaps) for gaps in zip(*runs, strict=True))
    error = fmean(one.prediction.outcome.gaps_ms) / fastest_ms - 1
    return f"; tokens at their fastest take {fastest_ms:.3f} ms ({error:+.1%})"


def _jobs(one: Evidence) -> Iterator[str]:
    """Yield a line for each kind of job of the token shown, the largest difference first."""
    last_ns = max((job.end_ns for job in one.timeline), default=0)
    tokens_ns = [execution.outcome.gaps_ms[0] * NS_PER_MS for execution in one.executions]
    shown_ns = min(tokens_ns, key=lambda gap_ns: (gap_ns < last_ns, gap_ns))
    gaps_ns = one.prediction.outcome.gaps_ms[0] * NS_PER_MS, shown_ns
    kinds = compare_jobs(one.prediction.timeline, one.timeline, gaps_ns)
    if kinds:
        yield (
            "  first token's jobs: mean in us, predicted and executed, and what all differ by"
            " (copies and runs overlap: they do not add up)"
        )
    for kind in kinds:
        yield (
            f"    {kind.name:28}{kind.predicted_ns / 1e3:9.1f}{kind.executed_ns / 1e3:9.1f}"
            f"{kind.total_ns / 1e3:+10.1f}   {kind.predicted} / {kind.executed}"
        )


def _guests(one: Evidence) -> Iterator[str]:
    """Yield how many ran and waited together, where requests arrived by themselves."""
    ours = one.prediction.outcome.guests
    theirs = [guests for each in one.executions if (guests := each.outcome.guests) is not None]
    if ours is not None and theirs:
        yield (
            f"  requests    predicted / executed: {ours.mean_batch:.2f} / "
            f"{fmean(each.mean_batch for each in theirs):.2f} in a step, at most "
            f"{ours.most_waiting} / {max(each.most_waiting for each in theirs)} wait"
        )


def _counts(one: Evidence) -> str:
    ours = one.prediction.outcome.counts
    theirs = [execution.outcome.counts for execution in one.executions]
    shown = []
    for name in COUNTS:
        low, high = (side(counts[name] for counts in theirs) for side in (min, max))
        if ours[name] or high:
            measured = f"{low}" if low == high else f"{low} to {high}"
            shown.append(f"{name.replace('_', ' ')} {ours[name]} / {measured}")
    moved = [
        sum(v for k, v in counts.items() if k.startswith("bytes_")) for counts in (ours, *theirs)
    ]
    shown.append(f"MB copied {moved[0] / 1e6:.1f} / {fmean(moved[1:]) / 1e6:.1f}")
    return "predicted / executed: " + ", ".join(shown)


def _short(text: str | None) -> str:
    if text is None:
        return "nothing"
    return text if len(text) <= MOST_DIGITS else text[:MOST_DIGITS] + "…"
