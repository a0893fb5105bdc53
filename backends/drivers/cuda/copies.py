"""A copy engine's stream: copies begin in the order in which they were handed over."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from moesim.backends.drivers.cuda.machine import reason
from moesim.backends.drivers.cuda.streams import Job, Journal, Mark, Marks, new_stream
from moesim.simulator.ledger import Timings
from moesim.simulator.messages import CopiesEnded, Copy, Failed, Report


class _Handed(NamedTuple):
    """A copy in the stream, its size and the events around it."""

    command: Copy
    nbytes: int
    mark: Mark


class Copies:
    """Copies of one engine, and what each took.

    Args:
        engine: What it is called.
        marks: Where their events come from.
        journal: Where they are noted.
        timings: What they are added to.

    Attributes:
        stream: They are in.
    """

    def __init__(self, engine: str, marks: Marks, journal: Journal, timings: Timings) -> None:
        self.stream = new_stream()
        self._engine = engine
        self._marks = marks
        self._journal = journal
        self._timings = timings
        self._open: deque[_Handed] = deque()  # not yet reported
        self._ended: list[Job] = []  # reported, of the step

    def __bool__(self) -> bool:
        return bool(self._open)

    def start(
        self, command: Copy, nbytes: int, after: Sequence[Mark], move: Callable[[], None]
    ) -> Mark:
        """Hand a copy over and return the events around it.

        Args:
            command: What it is.
            nbytes: How many bytes move.
            after: What it waits for.
            move: Hands it to the stream.

        Raises:
            RuntimeError, OSError: It was refused.
        """
        stream, mark = self.stream, self._marks.take()
        for earlier in after:
            stream.wait_event(earlier.ended)
        mark.began.record(stream)
        move()
        mark.ended.record(stream)
        self._open.append(_Handed(command, nbytes, mark))
        return mark

    def take_ended(self) -> list[Report]:
        """Return the ends that were not reported, and note what they took.

        They end in their order: if the last has, all have, and two questions are enough.
        """
        copies, count = self._open, 0
        try:
            if not copies[0].mark.ended.query():
                return []
            if copies[-1].mark.ended.query():
                count = len(copies)
            else:
                under_way = (n for n, each in enumerate(copies) if not each.mark.ended.query())
                count = next(under_way, len(copies))  # the last may have ended meanwhile
        except RuntimeError as error:
            return [Failed(copies[0].command.n, reason(error))]
        return [CopiesEnded(self._note(count))]

    def drain(self) -> None:
        """Note what is left, once the stream has come to rest."""
        self._note(len(self._open))

    def forget_step(self) -> dict[int, Mark]:
        """Note the reported copies; return those that a command may still name."""
        self._journal.note(self._engine, self._ended)
        self._ended = []
        return {each.command.n: each.mark for each in self._open}

    def abandon(self) -> None:
        """Forget all of them."""
        self._open.clear()
        self._ended = []

    def _note(self, count: int) -> list[int]:
        """Note that the oldest copies have ended, and return their numbers."""
        ended = [self._open.popleft() for _ in range(count)]
        self._ended += [(each.command, each.mark) for each in ended]
        timings = self._timings
        for sums, more in (
            (timings.engine_bytes, sum(each.nbytes for each in ended)),
            (timings.engine_copies, count),
        ):
            sums[self._engine] = sums.get(self._engine, 0) + more
        return [each.command.n for each in ended]


def take_ended(engines: Iterable[Copies]) -> list[Report]:
    """Return the ends on all engines that were not reported, in the order of their numbers."""
    reports = [report for engine in engines if engine for report in engine.take_ended()]
    told: list[Report] = [report for report in reports if isinstance(report, Failed)]
    ended = [n for report in reports if isinstance(report, CopiesEnded) for n in report.numbers]
    if ended:
        told.append(CopiesEnded(sorted(ended)))
    return told
