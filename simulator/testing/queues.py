"""How many are in a served run and how many of them wait, over time, from its log."""

from collections.abc import Iterable, Sequence
from fractions import Fraction

from moesim.simulator.messages import Command, Fact, RequestArrived, RequestEnded, StepBegan

Changes = list[tuple[int, int]]
"""When a number changed, in ns, and by how much."""


def changes_of(
    log: Iterable[tuple[Sequence[Fact], int, Sequence[Command]]],
) -> tuple[Changes, Changes]:
    """Return the changes of how many are in the system, and of how many wait to begin.

    An arrival counts from its own time, an end and a beginning from when the controller was told.
    """
    stay: Changes = []
    queue: Changes = []
    waiting: set[int] = set()
    for facts, now_ns, _ in log:
        for fact in facts:
            if isinstance(fact, RequestArrived):
                assert fact.arrived_ns is not None
                stay.append((fact.arrived_ns, 1))
                queue.append((fact.arrived_ns, 1))
                waiting.add(fact.request)
            elif isinstance(fact, RequestEnded):
                stay.append((now_ns, -1))
            elif isinstance(fact, StepBegan):
                queue += [(now_ns, -1) for _ in waiting & set(fact.requests)]
                waiting -= set(fact.requests)
    return stay, queue


def mean_number(changes: Changes, span_ns: int) -> Fraction:
    """Return the mean over time of a number that begins and ends at 0, from its changes.

    >>> mean_number([(0, 1), (30, -1), (10, 1), (20, -1)], 40)
    Fraction(1, 1)
    """
    area, number, since_ns = 0, 0, 0
    for at_ns, change in sorted(changes):
        area += number * (at_ns - since_ns)
        number, since_ns = number + change, at_ns
    assert number == 0
    return Fraction(area, span_ns)
