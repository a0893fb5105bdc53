"""Events of CUDA: when something began and ended, taken from a pool and given back."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from moesim.backends.base import Span
from moesim.simulator.ledger import Timings

GPU = "gpu"
"""What spans call the GPU's own work; other resources are copy engines."""
POOLED = 1024
NS_PER_MS = 1_000_000
# torch leaves the methods of these two without types.
Event = Any
Stream = Any


def new_event(*, has_time: bool = True) -> Event:
    """Return an event that nothing has recorded."""
    make: Any = torch.cuda.Event
    return make(enable_timing=has_time)


def new_stream() -> Stream:
    """Return a stream that waits for no other unless it is told to."""
    make: Any = torch.cuda.Stream
    return make()


@dataclass(slots=True)
class Mark:
    """Two events around what a stream does.

    They are recorded by naming the stream: without a name an event costs 6 µs instead of 1.7.
    """

    began: Event = field(default_factory=new_event)
    ended: Event = field(default_factory=new_event)

    def span_ns(self) -> int:
        """Return how long it took, once it has ended."""
        elapsed_ms: float = self.began.elapsed_time(self.ended)
        return round(elapsed_ms * NS_PER_MS)


Job = tuple[Any, Mark]
"""What a timeline shows of a job, the command that it obeys, and the events around it."""


class Marks:
    """Marks made in advance: making an event costs more than recording one."""

    def __init__(self) -> None:
        self._free = [Mark() for _ in range(POOLED)]

    def take(self) -> Mark:
        """Return a mark that nothing refers to."""
        return self._free.pop() if self._free else Mark()

    def give_back(self, mark: Mark) -> None:
        """Let a mark be taken again; nobody may wait for it any more."""
        self._free.append(mark)


class Journal:
    """Every job that has ended: how long it took, and when, as a timeline shows it.

    Asking events costs about 5 µs a job, on the thread that hands copies over. So jobs are noted
    as a step ends and read one by one while the host waits for the next steps.

    Args:
        spans: Where to note them; None notes nothing.
        clock_ns: The host's clock.
        timings: Busy times are added to.
        marks: Where events go back to once they were read.
    """

    def __init__(
        self,
        spans: list[Span] | None,
        clock_ns: Callable[[], int],
        timings: Timings,
        marks: Marks,
    ) -> None:
        self._spans = spans
        self._timings = timings
        self._marks = marks
        self._unread: deque[tuple[str, list[Job]]] = deque()  # none of the lists is empty
        self._origin = new_event()
        torch.cuda.synchronize()
        self._origin.record()
        self._origin.synchronize()
        self._origin_ns = clock_ns()

    def note(self, resource: str, jobs: list[Job]) -> None:
        """Note jobs that have ended; no command names them any more. The list is ours now."""
        if jobs:
            jobs.reverse()
            self._unread.append((resource, jobs))

    def read_one(self) -> None:
        """Read the oldest job that was not read, if there is one."""
        if self._unread:
            resource, jobs = self._unread[0]
            self._read(resource, *jobs.pop())
            if not jobs:
                self._unread.popleft()

    def read_all(self) -> None:
        """Read all that is left."""
        while self._unread:
            self.read_one()

    def _read(self, resource: str, label: object, mark: Mark) -> None:
        took_ns = mark.span_ns()
        if resource == GPU:
            self._timings.experts_busy_ns += took_ns
        else:
            busy_ns = self._timings.engines_busy_ns
            busy_ns[resource] = busy_ns.get(resource, 0) + took_ns
        if self._spans is not None:
            began_ns = self._origin_ns + Mark(self._origin, mark.began).span_ns()
            self._spans.append((resource, label, began_ns, began_ns + took_ns))
        self._marks.give_back(mark)
