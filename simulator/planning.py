"""The cheapest machine, and the least room for experts on it, that meet a service objective.

Machines are tried from the cheapest on and the search ends at the first that will do. On each, all
the room that it has is tried first: if that is too slow, so is less. Then the room is halved
between what is known to miss the objective and what is known to meet it, down to one slot: a dozen
runs where all budgets would be thousands. More room is never slower for LRU, LFU that never forgets
and Belady without prefetch; for others it nearly always is not, and a run that shows otherwise is
told of.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.errors import BudgetError, InputError, OutOfMemoryError
from moesim.simulator.results.rows import Row
from moesim.simulator.runs import prepare
from moesim.simulator.sweeps.file import RunOptions

OBJECTIVES: Mapping[str, str] = {
    "mean_tpot_ms": "mean TPOT",
    "p99_tpot_ms": "p99 TPOT",
    "mean_ttft_ms": "mean TTFT",
}
"""What an objective may limit: fields of a row, and what they are called."""


class Candidate(NamedTuple):
    """A machine that may be bought; without a price the order given is that of cost."""

    hardware: str
    price: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the search found of one machine.

    Attributes:
        candidate: The machine.
        slots: Fewest slots that meet the objective, or None.
        row: The run that decided: at those slots, or at all that the machine has; None if the
            model does not fit.
        runs: How many runs it took.
        reason: Why.
    """

    candidate: Candidate
    slots: int | None
    row: Row | None
    runs: int
    reason: str


def in_order_of_cost(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the cheapest first.

    Raises:
        InputError: Some have a price and some have none.
    """
    priced = [candidate.price for candidate in candidates if candidate.price is not None]
    if not priced:
        return list(candidates)
    if len(priced) < len(candidates):
        lacking = next(c.hardware for c in candidates if c.price is None)
        raise InputError(
            f"--hardware {lacking}: others have a price; write {lacking}=PRICE, or leave all "
            "prices out and name the cheapest first"
        )
    return sorted(candidates, key=lambda candidate: candidate.price or 0.0)


def search(
    options: RunOptions,
    candidates: Sequence[Candidate],
    limits: Mapping[str, float],
    *,
    on_run: Callable[[int], None] | None = None,
) -> Iterator[Verdict]:
    """Yield a verdict for each machine from the cheapest on, the first that will do last.

    Args:
        options: The run, its hardware and memory left to the search.
        candidates: Machines.
        limits: The most that fields of a row may be, among `OBJECTIVES`.
        on_run: Told of each run.

    Raises:
        InputError: There is no limit, or the trace cannot tell whether one is met.
    """
    if not limits:
        raise InputError("no objective; give one of --tpot, --p99-tpot and --ttft")
    for candidate in in_order_of_cost(candidates):
        verdict = _on_machine(options, candidate, limits, on_run or (lambda _: None))
        yield verdict
        if verdict.slots is not None:
            return


def _on_machine(
    options: RunOptions,
    candidate: Candidate,
    limits: Mapping[str, float],
    on_run: Callable[[int], None],
) -> Verdict:
    at_most = options.model_copy(update={"hardware": candidate.hardware, "slots": None})
    try:
        whole = prepare(at_most.run_spec())
    except (OutOfMemoryError, BudgetError) as error:
        return Verdict(candidate, None, None, 0, f"does not fit: {error}")
    rows: dict[int, Row | None] = {}

    def meets(slots: int) -> bool:
        try:
            run = prepare(at_most.model_copy(update={"slots": str(slots)}).run_spec()).replay()
        except (BudgetError, OutOfMemoryError):
            rows[slots] = None
            return False
        finally:
            on_run(1)
        rows[slots] = run.row
        return _exceeded(run.row, limits) is None

    most = whole.memory.expert_bytes // max(whole.sizes_L)
    most = max(most, 1)
    if not meets(most):
        row = rows[most]
        if row is None:
            return Verdict(
                candidate, None, None, 1, f"{most} slots do not hold one token's experts"
            )
        return Verdict(candidate, None, row, 1, _too_slow(row, limits))
    misses, found = 0, most
    while found - misses > 1:
        middle = (misses + found) // 2
        if meets(middle):
            found = middle
        else:
            misses = middle
    row = rows[found]
    assert row is not None
    return Verdict(
        candidate, found, row, len(rows), _just_enough(row, rows.get(found - 1), limits, rows)
    )


def _exceeded(row: Row, limits: Mapping[str, float]) -> str | None:
    """Return the field that is over its limit, or None."""
    for name, limit in limits.items():
        if row[name] is None:
            raise InputError(
                f"{row['trace']}: {OBJECTIVES[name]} is not known ({row['notes']}); take a trace "
                "that has those steps or another objective"
            )
        if row[name] > limit:
            return name
    return None


def _too_slow(row: Row, limits: Mapping[str, float]) -> str:
    name = _exceeded(row, limits)
    assert name is not None
    text = (
        f"all of its {row['slots']} slots give {OBJECTIVES[name]} {row[name]:.2f} ms, over "
        f"{limits[name]:g}"
    )
    bound = row["bound_tpot_ms"]
    if name == "mean_tpot_ms" and bound is not None:
        can = "no policy with the same means can" if bound > limits[name] else "a better policy may"
        text += f"; {can} meet it (bound {bound:.2f} ms)"
    return text


def _just_enough(
    row: Row, fewer: Row | None, limits: Mapping[str, float], rows: Mapping[int, Row | None]
) -> str:
    text = f"{row['slots']} slots ({format_bytes(row['expert_budget_bytes'])}) give " + ", ".join(
        f"{OBJECTIVES[name]} {row[name]:.2f} ms of {limit:g}" for name, limit in limits.items()
    )
    if fewer is None:
        text += "; one slot fewer does not hold what must be there"
    else:
        name = _exceeded(fewer, limits)
        assert name is not None
        text += f"; one slot fewer gives {fewer[name]:.2f} ms"
    unsure = [name for name, limit in limits.items() if row[name] * (1 + row["band"]) > limit]
    if unsure:
        text += f"; not certain: the band is ± {row['band'] * 100:.0f} %"
    larger = [rows[slots] for slots in sorted(rows)]
    for name in limits:
        values = [known[name] for known in larger if known is not None]
        if any(after > before for before, after in pairwise(values)):
            text += f"; more room was slower once ({OBJECTIVES[name]}), so fewer slots may do too"
    return text
