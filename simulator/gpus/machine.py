"""The compute streams of several GPUs, which wait for each other's results and share links.

Each is a FIFO as on one GPU. What becomes certain is found in the order of time: the earliest of
the kernels in turn that is certain to begin, or an event on the shared links before it, until there
is nothing earlier than what the host may still add. So a kernel that looks whether its link copies
sees what has happened by then, and no copy's share is settled past the time at which it may change.
"""

from collections.abc import Sequence

from moesim.simulator.engines.machine import Ends, Gpu, Server, settle_all
from moesim.simulator.gpus.shared_links import SharedLinks


class Gpus:
    """Several compute streams.

    Args:
        gpus: All of them.
        links: The links that engines share, if any do.
        ends: Where the ends of all jobs are kept.
        waiting: Servers whose next job waits for another's end.
    """

    def __init__(
        self, gpus: Sequence[Gpu], links: SharedLinks | None, ends: Ends, waiting: list[Server]
    ) -> None:
        self.gpus = gpus
        self.links = links
        self._ends = ends
        self._waiting = waiting

    @property
    def free_ns(self) -> int:
        """When the last kernel whose times are certain ends."""
        return max(gpu.free_ns for gpu in self.gpus)

    @property
    def looks_at_ns(self) -> int | None:
        """When there is something to look at: a kernel's begin, or an event on shared links."""
        times_ns = [gpu.looks_at_ns for gpu in self.gpus if gpu.looks_at_ns is not None]
        event_ns = None if self.links is None else self.links.next_event_ns()
        if event_ns is not None:
            times_ns.append(event_ns)
        return min(times_ns, default=None)

    def settle(self, nothing_before_ns: int, until: int | None = None) -> None:
        """See what has become certain; see `Gpu.settle`.

        Args:
            nothing_before_ns: The host hands over nothing before this; `FOREVER` while it waits.
            until: The job that it waits for; nothing is settled once its end is certain.
        """
        for gpu in self.gpus:
            gpu.looks_at_ns = None
        while (until is None or self._ends[until] is None) and self._settle_one(nothing_before_ns):
            pass

    def _settle_one(self, nothing_before_ns: int) -> bool:
        """Settle the earliest thing that is certain, and return whether there was one."""
        links = self.links
        event_ns = None if links is None else links.next_event_ns()
        heads = [
            (at_ns, i)
            for i, gpu in enumerate(self.gpus)
            if (at_ns := gpu.next_begin_ns()) is not None
        ]
        for begins_ns, i in sorted(heads):
            gpu = self.gpus[i]
            is_in_turn = event_ns is None or begins_ns < event_ns or not gpu.looks
            if is_in_turn and gpu.settle_next(nothing_before_ns):
                return True
        if links is not None and event_ns is not None and event_ns <= nothing_before_ns:
            links.step()
            if self._waiting:
                settle_all(self._waiting)
            return True
        return False
