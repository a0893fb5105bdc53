"""Threads that stand for a device's streams: each does its jobs in the order they were submitted.

A job begins when those before it in its stream and those that it names have ended, as a kernel or a
copy does that waits for events.
"""

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import torch

from moesim.backends.base import Span
from moesim.simulator.messages import Fact, Failed

CANCELLED = "cancelled"


class Job:
    """Something that one stream does; ``failure`` is why it did not."""

    __slots__ = ("after", "began_ns", "ended", "ended_ns", "failure", "label", "work")

    def __init__(self, label: object, work: Callable[[], None], after: Sequence["Job"]) -> None:
        self.label = label
        self.work: Callable[[], None] | None = work
        self.after = after
        self.ended = threading.Event()
        self.failure = ""
        self.began_ns = 0
        self.ended_ns = 0


class Stream:
    """One thread that does jobs in the order they were submitted.

    Args:
        name: Of the resource.
        clock_ns: The driver's clock.
        bell: Rung at each end.
        spans: Where to note every job, or None.
        begin: What the thread does first.
    """

    def __init__(
        self,
        name: str,
        clock_ns: Callable[[], int],
        bell: threading.Event,
        spans: list[Span] | None,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.busy_ns = 0
        self._name = name
        self._clock_ns = clock_ns
        self._bell = bell
        self._spans = spans
        self._begin = begin
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._is_cancelled = False
        self._last: Job | None = None
        self._cores = torch.get_num_threads()
        self._thread = threading.Thread(target=self._serve, name=f"moesim {name}", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Hand a job over."""
        self._last = job
        self._jobs.put(job)

    def drain(self) -> None:
        """Wait until everything submitted has ended."""
        if self._last is not None:
            self._last.ended.wait()

    def cancel(self) -> None:
        """Begin no further job; those that wait end as cancelled."""
        self._is_cancelled = True
        self._jobs.put(None)

    def join(self) -> None:
        """Wait for the thread's end, after ``cancel``."""
        self._thread.join()

    @torch.inference_mode()
    def _serve(self) -> None:
        torch.set_num_threads(self._cores)  # as the host: a product's bits depend on how it is cut
        self._begin()
        while (job := self._jobs.get()) is not None:
            for earlier in job.after:
                earlier.ended.wait()
            self._do(job)
            self._end(job)

    def _end(self, job: Job) -> None:
        job.work = None
        job.after = ()
        job.ended.set()
        self._bell.set()

    def _do(self, job: Job) -> None:
        assert job.work is not None
        if self._is_cancelled or any(earlier.failure for earlier in job.after):
            job.failure = CANCELLED
            return
        job.began_ns = self._clock_ns()
        try:
            job.work()
        except Exception as error:  # noqa: BLE001  whatever it was, the host reports it
            job.failure = str(error) or type(error).__name__
        job.ended_ns = self._clock_ns()
        self.busy_ns += job.ended_ns - job.began_ns
        if self._spans is not None:
            self._spans.append((self._name, job.label, job.began_ns, job.ended_ns))


class AtOnce(Stream):
    """A stream without a thread: a job is done when it is handed over, by whoever hands it over.

    For what does not ask for times: no job ever waits for another, whatever else the machine does.
    """

    def __init__(
        self,
        name: str,
        clock_ns: Callable[[], int],
        bell: threading.Event,
        spans: list[Span] | None,
    ) -> None:
        self.busy_ns = 0
        self._name = name
        self._clock_ns = clock_ns
        self._bell = bell
        self._spans = spans
        self._is_cancelled = False

    @torch.inference_mode()
    def submit(self, job: Job) -> None:
        """Do a job; those that it names were handed over before and have ended."""
        self._do(job)
        self._end(job)

    def drain(self) -> None:
        """Return: nothing is ever under way."""

    def cancel(self) -> None:
        """Do no further job."""
        self._is_cancelled = True

    def join(self) -> None:
        """Return: there is no thread."""


def failure_of(jobs: Sequence[tuple[int, Job]]) -> list[Fact]:
    """Return one failure of numbered jobs as a fact: a cause rather than a consequence."""
    failed = [(n, job.failure) for n, job in jobs if job.ended.is_set() and job.failure]
    causes = [failure for failure in failed if failure[1] != CANCELLED]
    return [Failed(n, reason) for n, reason in (causes or failed)[:1]]
