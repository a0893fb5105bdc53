"""The machine in virtual time: servers that do one job at a time, in the order handed over.

A GPU's compute stream, each copy engine and the CPU's expert workers are the same thing: a FIFO of
jobs, each of which begins once it was issued, the jobs before it are done, and those it waits for
have ended. Only the host submits, in order, and may issue ahead of the clock.

So a job's begin and end are *certain* long before they come, as soon as those of the jobs it waits
for are: they are computed then, and SimPy carries the host alone. A kernel's duration is the one
thing that must look around (do copies run as it begins?); where that is not certain yet, its server
says when to look.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence

import simpy

Process = Generator[simpy.Event, None, None]
Span = tuple[str, object, int, int]
"""Where, what, begin and end in ns."""


class Job:
    """One kernel, copy or CPU run; its end is None until it is certain.

    ``label`` is what a timeline shows: a text, a layer's number for its attention, or the command
    that the job carries out.
    """

    __slots__ = ("after", "ends_ns", "followers", "issued_ns", "label", "ns", "size")

    def __init__(
        self, label: object, ns: int, issued_ns: int, after: Sequence["Job"] = (), size: int = 0
    ) -> None:
        self.label = label
        self.ns = ns
        self.issued_ns = issued_ns
        self.after = after
        self.size = size
        self.ends_ns: int | None = None
        self.followers: list[Server] | None = None

    def has_ended(self, now_ns: int) -> bool:
        """Return whether the job is over; one that ends at this very instant is."""
        return self.ends_ns is not None and self.ends_ns <= now_ns


class Server:
    """One FIFO of jobs.

    Args:
        name: What a timeline calls it.
        duration_ns: Duration of a job that begins at a time, or None if that is not certain before
            that time.
        spans: Where to note every job, if anywhere.
        is_observed: Whether somebody asks ``is_busy_at``.

    Attributes:
        free_ns: When the last job whose times are certain ends.
        looks_at_ns: When the job in turn begins, where its duration is not certain before.
        busy_ns: Time in those jobs; ``bytes`` and ``jobs`` are counted beside it.
    """

    def __init__(
        self,
        name: str,
        duration_ns: Callable[[Job, int], int | None],
        spans: list[Span] | None = None,
        *,
        is_observed: bool = False,
    ) -> None:
        self.name = name
        self.free_ns = 0
        self.busy_ns = 0
        self.bytes = 0
        self.jobs = 0
        self._duration_ns = duration_ns
        self._spans = spans
        self._queue: deque[Job] = deque()
        self._busy: deque[tuple[int, int]] | None = deque() if is_observed else None
        self.looks_at_ns: int | None = None

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue and settle whatever has become certain by it."""
        if self._queue or not self._begin(job):
            self._queue.append(job)
        elif job.followers is not None:
            _settle_all(job.followers)

    @property
    def is_settled(self) -> bool:
        """Whether the end of every job that was submitted is certain."""
        return not self._queue

    def is_busy_at(self, at_ns: int) -> bool:
        """Return whether a job whose times are certain runs at an instant, its begin included.

        Departures come before arrivals: a job that ends at the instant is over. Instants asked for
        must not go back.
        """
        busy = self._busy
        assert busy is not None
        while busy and busy[0][1] <= at_ns:
            busy.popleft()
        return bool(busy) and busy[0][0] <= at_ns

    def look(self) -> None:
        """Settle a job whose duration was not certain; the time to look has come."""
        self.looks_at_ns = None
        _settle_all([self])

    def settle(self) -> list["Server"]:
        """Begin the jobs in turn as far as that is certain.

        Returns:
            Whom to settle next, last first: where others waited for a job they come before the next
            job here, which may have to see what they do.
        """
        queue = self._queue
        while queue and self.looks_at_ns is None and self._begin(queue[0]):
            job = queue.popleft()
            if job.followers is not None:
                return [self, *job.followers]
        return []

    def _begin(self, job: Job) -> bool:
        """Compute the times of the next job in turn, and return whether they are certain."""
        begins_ns = job.issued_ns
        if self.free_ns > begins_ns:
            begins_ns = self.free_ns
        for other in job.after:
            if other.ends_ns is None:
                if other.followers is None:
                    other.followers = []
                other.followers.append(self)
                return False
            if other.ends_ns > begins_ns:
                begins_ns = other.ends_ns
        duration_ns = self._duration_ns(job, begins_ns)
        if duration_ns is None:
            self.looks_at_ns = begins_ns
            return False
        job.ends_ns = self.free_ns = ends_ns = begins_ns + duration_ns
        self.busy_ns += duration_ns
        self.jobs += 1
        self.bytes += job.size
        if self._busy is not None:
            self._busy.append((begins_ns, ends_ns))
        if self._spans is not None:
            self._spans.append((self.name, job.label, begins_ns, ends_ns))
        return True


def _settle_all(unsettled: list[Server]) -> None:
    """Settle servers until nothing more becomes certain."""
    while unsettled:
        followers = unsettled.pop().settle()
        unsettled += followers
