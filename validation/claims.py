"""What convinces, from evidence alone: signs of prefetch, choice of a system, what goes on inside.

- *signs*: of two systems that differ in prefetch alone, is the one with prefetch faster?
- *choice*: by how much is the system ranked first slower than the one that was fastest?
- *inside*: stall of each layer, share of time in which the link was busy, copies that came late.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from moesim.validation.evidence import Evidence, Outcome

NO_PREFETCH = "none"
LEAST_SIGNS = 2
"""Predicted wins, and as many losses, that a claim about signs needs."""
CHOICE_MEAN, CHOICE_WORST = 0.01, 0.03
"""By how much the chosen system may be slower than the fastest."""


@dataclass(frozen=True, slots=True)
class Sign:
    """Prefetch against none, all else equal.

    Attributes:
        where: See `Cell.where`.
        without: The system without prefetch; ``with_it`` the one that has it.
        predicted: Change of the mean TPOT by prefetch; below 0 it wins. ``measured`` likewise.
        is_told: Whether the machine itself tells the two apart in each of its executions.
    """

    where: str
    model: str
    without: str
    with_it: str
    predicted: float
    measured: float
    is_told: bool

    @property
    def confirmed(self) -> bool:
        """Whether the machine tells them apart, the predicted way round."""
        return self.is_told and (self.predicted < 0) == (self.measured < 0)


@dataclass(frozen=True, slots=True)
class Picked:
    """The system that a prediction puts first, among those of one group.

    Attributes:
        among: How many systems there are.
        chosen: The one predicted to be fastest; ``fastest`` the one that was.
        regret: By how much the chosen one was slower, as a share of the fastest.
    """

    where: str
    model: str
    among: int
    chosen: str
    fastest: str
    regret: float


@dataclass(frozen=True, slots=True)
class Inside:
    """What went on in one cell; None where an older evidence does not know it.

    Attributes:
        stall_ms: Mean over layers, predicted and measured.
        worst_stall_ms: Of the layer where the two are furthest apart, likewise.
        link_busy: Share of the time served, likewise.
        late: Experts found on their way, of all demanded, likewise.
    """

    where: str
    model: str
    system: str
    stall_ms: tuple[float, float] | None
    worst_stall_ms: tuple[float, float] | None
    link_busy: tuple[float, float]
    late: tuple[float, float]


def signs(found: Sequence[Evidence]) -> list[Sign]:
    """Return every pair of held-out cells that differ in prefetch alone, repeatable both."""
    return [
        _sign(without, one)
        for group in _groups(found)
        for without in group
        if without.prediction.cell.prefetch == NO_PREFETCH
        for one in group
        if one.prediction.cell.prefetch != NO_PREFETCH and _rest(one) == _rest(without)
    ]


def choices(found: Sequence[Evidence]) -> list[Picked]:
    """Return who was chosen in each group of at least two repeatable held-out cells."""
    picked = []
    for group in _groups(found):
        if len(group) < 2:  # noqa: PLR2004  a choice is among two
            continue
        chosen = min(group, key=_predicted)
        fastest = min(group, key=_measured)
        cell = chosen.prediction.cell
        picked.append(
            Picked(
                where=cell.where,
                model=cell.model,
                among=len(group),
                chosen=cell.system,
                fastest=fastest.prediction.cell.system,
                regret=round(_measured(chosen) / _measured(fastest) - 1, 6),
            )
        )
    return picked


def insides(found: Sequence[Evidence]) -> list[Inside]:
    """Return what went on in every held-out cell."""
    return [_inside(one) for one in found if one.prediction.cell.held_out]


def _groups(found: Sequence[Evidence]) -> list[list[Evidence]]:
    groups: dict[tuple[str, ...], list[Evidence]] = {}
    for one in found:
        if one.prediction.cell.held_out and one.judged.repeatable:
            groups.setdefault(one.prediction.cell.group, []).append(one)
    return [*groups.values()]


def _rest(one: Evidence) -> tuple[str, str]:
    return one.prediction.cell.cache, one.prediction.cell.schedule


def _predicted(one: Evidence) -> float:
    return one.prediction.outcome.times.mean_tpot


def _measured(one: Evidence) -> float:
    return one.judged.measured.mean_tpot


def _sign(without: Evidence, one: Evidence) -> Sign:
    ours, theirs = (
        [execution.outcome.times.mean_tpot for execution in each.executions]
        for each in (one, without)
    )
    cell = one.prediction.cell
    return Sign(
        where=cell.where,
        model=cell.model,
        without=without.prediction.cell.system,
        with_it=cell.system,
        predicted=round(_predicted(one) / _predicted(without) - 1, 6),
        measured=round(_measured(one) / _measured(without) - 1, 6),
        is_told=max(ours) < min(theirs) or max(theirs) < min(ours),
    )


def _inside(one: Evidence) -> Inside:
    cell = one.prediction.cell
    outcomes = [execution.outcome for execution in one.executions]

    def both(figure: Callable[[Outcome], float]) -> tuple[float, float]:
        return (
            round(figure(one.prediction.outcome), 6),
            round(fmean(figure(each) for each in outcomes), 6),
        )

    stalls = [*_stalls_by_layer(one)]
    return Inside(
        where=cell.where,
        model=cell.model,
        system=cell.system,
        stall_ms=(
            (round(fmean(a for a, _ in stalls), 6), round(fmean(b for _, b in stalls), 6))
            if stalls
            else None
        ),
        worst_stall_ms=max(stalls, key=lambda pair: abs(pair[0] - pair[1]), default=None),
        link_busy=both(lambda each: each.busy.link / each.busy.served),
        late=both(lambda each: each.counts["late_hits"] / max(1, each.counts["demands"])),
    )


def _stalls_by_layer(one: Evidence) -> Iterator[tuple[float, float]]:
    """Yield each layer's stall, predicted and measured; nothing where it was not kept."""
    predicted = one.prediction.outcome.stall_ms
    measured = [execution.outcome.stall_ms for execution in one.executions]
    known = [each for each in measured if each is not None]
    if predicted is not None and len(known) == len(measured):
        for ours, *theirs in zip(predicted, *known, strict=True):
            yield round(ours, 6), round(fmean(theirs), 6)
