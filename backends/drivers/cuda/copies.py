"""The copy stream: copies begin in the order in which they were handed over."""

from collections import deque
from collections.abc import Callable, Sequence

from moesim.backends.drivers.cuda.machine import reason
from moesim.backends.drivers.cuda.streams import Journal, Mark, Marks, new_stream
from moesim.simulator.ledger import Timings
from moesim.simulator.messages import Copy, CopyEnded, Fact, Failed

ENGINE = "h2d"


class Copies:
    """Copies from the host, and what each took.

    Args:
        marks: Where their events come from.
        journal: Where they are noted.
        timings: What they are added to.

    Attributes:
        stream: They are in.
    """

    def __init__(self, marks: Marks, journal: Journal, timings: Timings) -> None:
        self.stream = new_stream()
        self._marks = marks
        self._journal = journal
        self._timings = timings
        self._open: deque[tuple[Copy, int, Mark]] = deque()  # not yet reported, and their bytes
        self._ended: list[tuple[Copy, Mark]] = []  # reported, of the step

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
        self._open.append((command, nbytes, mark))
        return mark

    def take_ended(self) -> list[Fact]:
        """Return the ends that were not reported, and note what they took."""
        facts: list[Fact] = []
        copies = self._open
        try:
            while copies and copies[0][2].ended.query():
                facts.append(CopyEnded(copies[0][0].n))
                self._note(*copies.popleft())
        except RuntimeError as error:
            return [Failed(copies[0][0].n, reason(error))]
        return facts

    def drain(self) -> None:
        """Note what is left, once the stream has come to rest."""
        while self._open:
            self._note(*self._open.popleft())

    def forget_step(self) -> dict[int, Mark]:
        """Note the reported copies; return those that a command may still name."""
        for command, mark in self._ended:
            self._journal.note(ENGINE, command, mark)
        self._ended = []
        return {command.n: mark for command, _, mark in self._open}

    def abandon(self) -> None:
        """Forget all of them."""
        self._open.clear()
        self._ended = []

    def _note(self, command: Copy, nbytes: int, mark: Mark) -> None:
        timings = self._timings
        for sums, more in (
            (timings.engine_bytes, nbytes),
            (timings.engine_copies, 1),
        ):
            sums[ENGINE] = sums.get(ENGINE, 0) + more
        self._ended.append((command, mark))
