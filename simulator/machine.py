"""The machine in virtual time: servers that do one job at a time, in the order handed over.

A GPU's compute stream, each copy engine and the CPU's expert workers are the same thing: a FIFO of
jobs, each of which begins once it was issued, the jobs before it are done, and those it waits for
have ended. One SimPy process serves each FIFO; a job is no process of its own.

The host issues jobs ahead of the clock (``issued_ns`` may lie in the future), since nothing but the
host submits and its submissions are in order.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence

import simpy
from simpy.core import SimTime

Process = Generator[simpy.Event, None, None]
Span = tuple[str, object, int, int]
"""Where, what, begin and end in ns."""


class Job:
    """One kernel, copy or CPU run; its times are None until they are certain.

    ``label`` is what a timeline shows: a text, or the command that the job carries out.
    """

    __slots__ = ("after", "begins_ns", "ended", "ends_ns", "issued_ns", "label", "n", "ns", "size")

    def __init__(
        self, n: int, label: object, ns: int, issued_ns: int, after: Sequence["Job"] = (), size: int = 0
    ) -> None:
        self.n = n
        self.label = label
        self.ns = ns
        self.issued_ns = issued_ns
        self.after = after
        self.size = size
        self.begins_ns: int | None = None
        self.ends_ns: int | None = None
        self.ended: simpy.Event | None = None

    def has_ended(self, now_ns: SimTime) -> bool:
        """Return whether the job is over; one that ends at this very instant is."""
        return self.ends_ns is not None and self.ends_ns <= now_ns


class Server:
    """One FIFO of jobs.

    Attributes:
        busy_ns: Time spent in jobs; bytes and jobs are counted beside it.
        on_end: Called when a job ends.
        spans: Where to note (server, job label, begin, end), if anywhere.
        looks_around: Whether a duration depends on what the rest of the machine does at the begin.
    """

    def __init__(
        self,
        env: simpy.Environment,
        name: str,
        on_end: Callable[[Job], None],
        duration_ns: Callable[[Job, int], int],
        spans: list[Span] | None = None,
        *,
        looks_around: bool = False,
    ) -> None:
        self.name = name
        self.busy_ns = 0
        self.bytes = 0
        self.jobs = 0
        self.last_end_ns = 0
        self._env = env
        self._on_end = on_end
        self._duration_ns = duration_ns
        self._spans = spans
        self._looks_around = looks_around
        self._queue: deque[Job] = deque()
        self._current: Job | None = None
        self._more: simpy.Event | None = None
        env.process(self._serve())

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue."""
        self._queue.append(job)
        if self._more is not None:
            self._more.succeed()
            self._more = None

    def is_busy_at(self, now_ns: int) -> bool:
        """Return whether a job runs from this instant on, or begins at it.

        Departures come before arrivals: a job that ends now is over, and the next in line, if it
        may begin, has begun, whichever process the event loop resumes first.
        """
        job = self._current
        if job is not None and job.begins_ns is not None and job.ends_ns is not None:
            if job.ends_ns > now_ns:
                return job.begins_ns <= now_ns
            job = None
        if job is None:
            if not self._queue:
                return False
            job = self._queue[0]
        return job.issued_ns <= now_ns and all(other.has_ended(now_ns) for other in job.after)

    def _serve(self) -> Process:
        env, queue = self._env, self._queue
        while True:
            while not queue:
                self._more = env.event()
                yield self._more
            self._current = job = queue.popleft()
            begins_ns = max(int(env.now), job.issued_ns)
            for other in job.after:
                if other.ends_ns is None:
                    if other.ended is None:
                        other.ended = env.event()
                    yield other.ended
                    begins_ns = max(begins_ns, int(env.now))
                elif other.ends_ns > begins_ns:
                    begins_ns = other.ends_ns
            if self._looks_around and begins_ns > env.now:
                yield env.timeout(begins_ns - env.now)
            duration_ns = self._duration_ns(job, begins_ns)
            job.begins_ns = begins_ns
            job.ends_ns = self.last_end_ns = ends_ns = begins_ns + duration_ns
            self.busy_ns += duration_ns
            self.bytes += job.size
            self.jobs += 1
            if self._spans is not None:
                self._spans.append((self.name, job.label, begins_ns, ends_ns))
            yield env.timeout(ends_ns - env.now)
            if job.ended is not None:
                job.ended.succeed()
            self._on_end(job)
