"""Bursts in which copies take longer: who was hit is executed once more.

On a shared host copies take up to twice as long for seconds at a time, whoever runs. The rule is
one of copies alone and knows no prediction: once a cell has had its executions, each whose mean
copy took more than 3 % longer than the median of their mean copies is repeated, once. Of the two
the one with the shorter mean copy counts; the other stays in the evidence (``replaced``). The CPU
backend, whose copies are never even, repeats nothing.
"""

from collections.abc import Mapping, Sequence
from statistics import median

from moesim.validation.evidence import Execution, Replaced

LIMIT = 0.03


def mean_copy_ns(execution: Execution) -> float | None:
    """Return how long a copy took on average; None where nothing was copied."""
    copies = execution.outcome.counts["copies"]
    return execution.outcome.busy.link / copies if copies else None


def hit(executions: Sequence[Execution]) -> list[int]:
    """Return which executions of a cell are repeated, by number from 0."""
    means_ns = [mean_copy_ns(one) for one in executions]
    known_ns = [mean_ns for mean_ns in means_ns if mean_ns is not None]
    if not known_ns:
        return []
    limit_ns = (1 + LIMIT) * median(known_ns)
    return [n for n, mean_ns in enumerate(means_ns) if mean_ns is not None and mean_ns > limit_ns]


def settle(
    executions: Sequence[Execution], again: Mapping[int, Execution]
) -> tuple[tuple[Execution, ...], tuple[Replaced, ...]]:
    """Return the executions that count, and the others by the number of the one in their place.

    Args:
        executions: Of a cell, in order.
        again: Those that were repeated, by number.
    """
    counted, replaced = list(executions), []
    for number, other in sorted(again.items()):
        first = counted[number]
        counted[number] = min(first, other, key=lambda one: mean_copy_ns(one) or 0.0)
        out = other if counted[number] is first else first
        replaced.append(Replaced(number=number, execution=out))
    return tuple(counted), tuple(replaced)


def is_by_rule(executions: Sequence[Execution], replaced: Sequence[Replaced]) -> bool:
    """Return whether what was replaced had longer copies than what counts, each once."""
    numbers = [one.number for one in replaced]
    return len(set(numbers)) == len(numbers) and all(
        one.number < len(executions)
        and (mean_copy_ns(one.execution) or 0.0) >= (mean_copy_ns(executions[one.number]) or 0.0)
        for one in replaced
    )
