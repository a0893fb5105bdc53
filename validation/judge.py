"""What follows from a cell's figures, and from all cells together: the verdicts.

Pure functions of evidence: a validation prints and stores what they say, ``--check`` says it again.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from moesim.simulator.errors import InputError
from moesim.validation.bursts import is_by_rule
from moesim.validation.compare import times_of
from moesim.validation.evidence import Evidence, Execution, Judgement, Prediction, Times
from moesim.validation.experienced import QUEUE, percentiles
from moesim.validation.statistics import (
    MEAN,
    P99,
    Ranking,
    is_repeatable,
    rankings,
    relative_error,
    spread,
    tolerance,
)

TARGET_MEAN_ERROR = 0.03
"""Of the mean TPOT, over all repeatable held-out cells."""
TARGET_REPEATABLE = 0.8
"""Share of the held-out cells."""
FIGURES = ("mean_tpot", "p50_tpot", "p99_tpot", "mean_ttft")
CAUSES = ("host", "copy", "kernel", "contention")


def check_judgements(found: Sequence[Evidence]) -> None:
    """Refuse evidence whose verdict does not follow from its figures.

    Raises:
        InputError: There is one; the cell is named.
    """
    for one in found:
        if judge(one.prediction, one.executions, one.provenance.anchors_ns) != one.judged:
            raise InputError(
                f"{one.prediction.cell.id}.json: judged: does not follow from the executions "
                "beside it; it was edited, or judged by another version"
            )
        if not is_by_rule(one.executions, one.replaced or ()):
            raise InputError(
                f"{one.prediction.cell.id}.json: replaced: an execution was put aside whose copies "
                "took no longer than those of the one that counts; it was edited"
            )


def measured_times(executions: Sequence[Execution]) -> Times:
    """Return latencies over the tokens of all executions; TTFT is the mean of their means."""
    gaps = [gap for one in executions for gap in one.outcome.gaps_ms]
    first = [one.outcome.times.mean_ttft for one in executions]
    return times_of(gaps, [time for time in first if time is not None])


def judge(
    prediction: Prediction, executions: Sequence[Execution], anchors_ns: Mapping[str, int]
) -> Judgement:
    """Return a cell's errors, noise floor and verdict.

    Args:
        prediction: Written before the executions.
        executions: At least one.
        anchors_ns: As they were at calibration.
    """
    measured, foretold = measured_times(executions), prediction.outcome
    ttft = foretold.times.mean_ttft
    # As many tokens as were measured: a percentile depends on how many it is taken from.
    predicted = times_of(
        foretold.gaps_ms * len(executions), [] if ttft is None else [ttft] * len(executions)
    )
    spread_ = spread([one.outcome.times.mean_tpot for one in executions])
    first = [one.outcome.times.mean_ttft for one in executions]
    ttft_spread = (
        spread([time for time in first if time is not None]) if None not in first else None
    )
    tolerances = {"mean_tpot": tolerance(spread_, MEAN), "p99_tpot": tolerance(spread_, P99)}
    if ttft_spread is not None and is_repeatable(ttft_spread):
        tolerances["mean_ttft"] = tolerance(ttft_spread, MEAN)
    error, error_ms = {}, {}
    for name in FIGURES:
        ours, theirs = getattr(predicted, name), getattr(measured, name)
        if ours is not None and theirs is not None:
            error[name] = round(relative_error(ours, theirs), 6)
            error_ms[name] = round(ours - theirs, 6)
    for name, (ours, theirs) in _of_guests(prediction, executions).items():
        error_ms[name] = round(ours - theirs, 6)
        if QUEUE not in name and theirs > 0:  # who waits for nobody waits for no time
            error[name] = round(relative_error(ours, theirs), 6)
    # The model's own routes need not be the recorded ones, to the last rounding.
    is_bound = prediction.cell.timing_free and prediction.cell.routing == "forced"
    right = not (is_bound and any(one.decisions.differing for one in executions))
    repeatable = is_repeatable(spread_)
    inside = all(abs(error[name]) <= limit for name, limit in tolerances.items() if name in error)
    return Judgement(
        measured=measured,
        spread=round(spread_, 6),
        ttft_spread=None if ttft_spread is None else round(ttft_spread, 6),
        repeatable=repeatable,
        error=error,
        error_ms=error_ms,
        tolerance={name: round(limit, 6) for name, limit in tolerances.items()},
        gap_ms=gap_by_cause(prediction, executions),
        drift=round(_drift(executions, anchors_ns), 6),
        decisions_right=right,
        within=repeatable and right and inside,
    )


def _of_guests(
    prediction: Prediction, executions: Sequence[Execution]
) -> dict[str, tuple[float, float]]:
    """Return what requests that arrived went through, predicted and measured, by figure."""
    foretold = prediction.outcome.guests
    went = [one.outcome.guests for one in executions]
    if foretold is None:
        return {}
    ours, theirs = percentiles([foretold]), percentiles([one for one in went if one is not None])
    return {name: (ours[name], theirs[name]) for name in ours if name in theirs}


def gap_by_cause(prediction: Prediction, executions: Sequence[Execution]) -> dict[str, float]:
    """Return measured minus predicted time of the whole run, in ms, split by cause.

    Copy, kernel and contention are differences of busy time, experts counted where no copy hides
    them. The rest is the host's: launching, deciding, waking up, and attention, which nobody times
    on a machine; where a longer copy hides it, the host's part is so much the smaller. The four
    add up to ``total``.
    """
    ours = prediction.outcome.busy

    def mean_ms(name: str) -> float:
        return (
            fmean(getattr(one.outcome.busy, name) - getattr(ours, name) for one in executions) / 1e6
        )

    total, copy, contention = mean_ms("served"), mean_ms("link"), mean_ms("contention")
    kernel = mean_ms("experts") - contention
    host = total - copy - kernel - contention
    parts = {"total": total, "host": host, "copy": copy, "kernel": kernel, "contention": contention}
    return {name: round(ms, 6) for name, ms in parts.items()}


def _drift(executions: Sequence[Execution], anchors_ns: Mapping[str, int]) -> float:
    return max(
        (
            abs(relative_error(found[name], at_first))
            for one in executions
            for found in (one.anchors_before_ns, one.anchors_after_ns)
            for name, at_first in anchors_ns.items()
        ),
        default=0.0,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """All held-out cells together.

    Attributes:
        held_out: How many there are; ``repeatable`` of them count.
        mean_error: Mean |error| of mean TPOT over those that count; None without any.
        failed: One line for each target that was missed.
    """

    held_out: int
    repeatable: int
    mean_error: float | None
    rankings: tuple[Ranking, ...]
    failed: tuple[str, ...]


def verdict(found: Sequence[Evidence]) -> Verdict:
    """Return what all cells of a folder say about the targets of design section 9."""
    held_out = [one for one in found if one.prediction.cell.held_out]
    counted = [one for one in held_out if one.judged.repeatable]
    errors = [abs(one.judged.error["mean_tpot"]) for one in counted]
    mean_error = fmean(errors) if errors else None
    ranked = _rankings(held_out)
    failed = []
    if not held_out:
        failed.append("no held-out cell")
    elif len(counted) < TARGET_REPEATABLE * len(held_out):
        failed.append(
            f"{len(counted)} of {len(held_out)} cells are repeatable here, 80 % are needed"
        )
    if mean_error is not None and mean_error > TARGET_MEAN_ERROR:
        failed.append(f"mean |error| of TPOT is {mean_error:.1%}, at most 3 % is allowed")
    outside = sum(not one.judged.within and one.judged.decisions_right for one in counted)
    if outside:
        failed.append(f"{outside} of {len(counted)} repeatable cells are out of tolerance")
    wrong = sum(not one.judged.decisions_right for one in found)
    if wrong:
        failed.append(f"{wrong} cells of timing-free systems were decided otherwise than predicted")
    misranked = [rank for rank in ranked if not rank.predicted_right]
    if misranked:
        failed.append(f"{len(misranked)} of {len(ranked)} rankings were predicted wrong")
    return Verdict(len(held_out), len(counted), mean_error, tuple(ranked), tuple(failed))


def _rankings(found: Sequence[Evidence]) -> list[Ranking]:
    groups: dict[tuple[str, ...], list[Evidence]] = defaultdict(list)
    for one in found:
        groups[one.prediction.cell.group].append(one)
    ranked = []
    for group in groups.values():
        predicted = {
            one.prediction.cell.system: one.prediction.outcome.times.mean_tpot for one in group
        }
        measured = {
            one.prediction.cell.system: [e.outcome.times.mean_tpot for e in one.executions]
            for one in group
        }
        ranked += rankings(predicted, measured)
    return ranked
