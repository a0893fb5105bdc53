"""The machine in virtual time: servers that do one job at a time, in the order handed over.

A GPU's compute stream, each copy engine and the CPU's expert workers are the same thing: a FIFO of
jobs, each of which begins once it was issued, the jobs before it are done, and those it waits for
have ended. Only the host submits, in order, and may issue ahead of the clock.

So a job's begin and end are *certain* long before they come, as soon as those of the jobs it waits
for are: they are computed then, by arithmetic, and no engine needs an event for them. A kernel's
duration is the one thing that must look around (do copies run as it begins?), and nobody needs a
kernel's end before the host waits for it. So kernels are settled late, many at once, where less is
uncertain.
"""

from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum

Span = tuple[str, object, int, int]
"""Where, what, begin and end in ns."""

Ends = dict[int, int | None]
"""When each job ends, by number; None until it is certain."""

_MEMO_ENTRIES = 4096

FOREVER = 1 << 62
"""Later than anything: the host hands over nothing more before it has what it waits for."""


class Server:
    """A copy engine, the CPU's workers or whoever answers asks: one FIFO of jobs.

    Args:
        name: What a timeline calls it.
        duration_ns: Duration of a job from its work (bytes or ns) and the idle time before it.
        ends: Where the ends of all jobs are kept.
        waiting: Where servers whose next job waits for another's end are kept.
        spans: Where to note every job, if anywhere.

    Attributes:
        free_ns: When the last job whose times are certain ends.
        busy_ns: Time in those jobs; ``work`` and ``jobs`` are counted beside it.
        busy: Their begins and ends, if ``is_observed``, until the observer lets them go.
        unreported: Numbers of the jobs whose end the host has not noticed, in order.
    """

    def __init__(
        self,
        name: str,
        duration_ns: Callable[[int, int], int],
        ends: Ends,
        waiting: list["Server"],
        spans: list[Span] | None,
        *,
        is_observed: bool = False,
    ) -> None:
        self.name = name
        self.free_ns = 0
        self.busy_ns = 0
        self.work = 0
        self.jobs = 0
        self.busy: deque[tuple[int, int]] = deque()
        self.unreported: list[int] = []
        self._is_observed = is_observed
        self._duration_ns = duration_ns
        self._ends = ends
        self._waiting = waiting
        self._spans = spans
        self._queue: deque[tuple[int, object, int, int, Sequence[int]]] = deque()

    def submit(
        self, n: int, label: object, work: int, issued_ns: int, after: Sequence[int] = ()
    ) -> None:
        """Put a job at the end of the queue; its times follow now if they are certain.

        Args:
            n: Its number.
            label: What a timeline shows: a text, or the command that the job carries out.
            work: Bytes of a copy, ns of anything else.
            issued_ns: When it is handed over.
            after: Numbers of the jobs that it waits for.
        """
        self.unreported.append(n)
        if self._queue or not self._begin(n, label, work, issued_ns, after):
            self._ends[n] = None
            self._queue.append((n, label, work, issued_ns, after))
            if self not in self._waiting:
                self._waiting.append(self)

    def submit_alike(
        self, numbers: range, label: object, work: int, issued_ns: int, each_ns: int
    ) -> int:
        """Put jobs of equal work that wait for nothing at the end of the queue.

        Args:
            numbers: Theirs.
            label: See `submit`.
            work: Of each.
            issued_ns: When the host begins to hand them over.
            each_ns: How long it takes for each.

        Returns:
            When the last is handed over.
        """
        if self._queue or self._spans is not None:
            for n in numbers:
                issued_ns += each_ns
                self.submit(n, label, work, issued_ns)
            return issued_ns
        ends, free_ns, at_once_ns = self._ends, self.free_ns, self._duration_ns(work, 0)
        begins_ns = free_ns
        for n in numbers:
            issued_ns += each_ns
            if issued_ns <= free_ns:
                ends[n] = free_ns = free_ns + at_once_ns
                continue
            self._note_busy(begins_ns, free_ns)
            begins_ns = issued_ns
            ends[n] = free_ns = issued_ns + self._duration_ns(work, issued_ns - free_ns)
        self._note_busy(begins_ns, free_ns)
        self.free_ns = free_ns
        self.unreported += numbers
        self.jobs += len(numbers)
        self.work += work * len(numbers)
        return issued_ns

    def settle(self) -> bool:
        """Begin the jobs in turn as far as that is certain, and return whether any did."""
        queue = self._queue
        before = len(queue)
        while queue and self._begin(*queue[0]):
            queue.popleft()
        if not queue:
            self._waiting.remove(self)
        return len(queue) < before

    def is_idle(self, now_ns: int) -> bool:
        """Return whether all jobs have ended by a time."""
        return self.free_ns <= now_ns and not self._queue

    def next_end_ns(self) -> int | None:
        """Return when the next job ends of which the host does not know; None if not certain."""
        return self._ends[self.unreported[0]] if self.unreported else None

    def take_ended(self, now_ns: int) -> list[int]:
        """Return the numbers of the jobs that have ended and were not reported."""
        unreported, ends = self.unreported, self._ends
        if self.free_ns <= now_ns and not self._queue:
            self.unreported = []
            return unreported
        count = 0
        for n in unreported:
            ends_ns = ends[n]
            if ends_ns is None or ends_ns > now_ns:
                break
            count += 1
        self.unreported = unreported[count:]
        return unreported[:count]

    def _begin(
        self, n: int, label: object, work: int, issued_ns: int, after: Sequence[int]
    ) -> bool:
        """Compute the times of the next job in turn, and return whether they are certain."""
        free_ns = self.free_ns
        begins_ns = issued_ns
        if free_ns > begins_ns:
            begins_ns = free_ns
        for other in after:
            end_ns = self._ends[other]
            if end_ns is None:
                return False
            if end_ns > begins_ns:
                begins_ns = end_ns
        duration_ns = self._duration_ns(work, begins_ns - free_ns)
        self._ends[n] = self.free_ns = ends_ns = begins_ns + duration_ns
        self._note_busy(begins_ns, ends_ns)
        self.jobs += 1
        self.work += work
        if self._spans is not None:
            self._spans.append((self.name, label, begins_ns, ends_ns))
        return True

    def _note_busy(self, begins_ns: int, ends_ns: int) -> None:
        if ends_ns > begins_ns:
            self.busy_ns += ends_ns - begins_ns
            if self._is_observed:
                self.busy.append((begins_ns, ends_ns))


class Kind(IntEnum):
    """What a kernel is for; the GPU's time is counted by it."""

    DENSE = 0
    EXPERTS = 1
    HEAD = 2
    DECIDE = 3
    MOVE = 4


class Gpu:
    """A GPU's compute stream, whose kernels may be slower while copies run beside them.

    Args:
        link: Whose copies slow kernels down, which a kernel's begin decides.
        slowed_ns: Duration of a slowed kernel from that alone and whether it is a run of experts;
            None where copies do not matter.
        after_copy_ns: From the end of what a kernel waits for until it begins.
        ends: Where the ends of all jobs are kept.
        waiting: Servers whose next job waits for another's end.
        spans: Where to note every kernel, if anywhere.
        name: What a timeline calls it.

    Attributes:
        free_ns: When the last kernel whose times are certain ends.
        busy_ns: Time in those kernels, by `Kind`.
        slow_down_ns: How much of it was lost because copies ran.
        looks_at_ns: When the kernel in turn begins, if it is not certain before how long it takes.
    """

    def __init__(
        self,
        link: Server,
        slowed_ns: Callable[[int, bool], int] | None,
        after_copy_ns: int,
        ends: Ends,
        waiting: list[Server],
        spans: list[Span] | None,
        name: str = "gpu",
    ) -> None:
        self.free_ns = 0
        self.busy_ns = [0] * len(Kind)
        self.slow_down_ns = 0
        self.looks_at_ns: int | None = None
        self._name = name
        self._link = link
        self._slowed_ns = slowed_ns
        self._after_copy_ns = after_copy_ns
        self._known_slow: list[dict[int, int]] = [{} for _ in Kind]
        self._ends = ends
        self._waiting = waiting
        self._spans = spans
        self._queue: deque[tuple[int, Kind, object, int, int, Sequence[int]]] = deque()

    def submit(
        self,
        n: int,
        kind: Kind,
        label: object,
        ns: int,
        issued_ns: int,
        after: Sequence[int] = (),
    ) -> None:
        """Put a kernel of this duration at the end of the queue; see `Server.submit`."""
        self._ends[n] = None
        self._queue.append((n, kind, label, ns, issued_ns, after))

    def submit_all(
        self,
        numbers: range,
        kind: Kind,
        label: object,
        durations_ns: Sequence[int],
        issued_ns: int,
        each_ns: int,
        after: Sequence[int],
    ) -> int:
        """Put kernels at the end of the queue, each of which waits for one job or for none.

        Args:
            numbers: Theirs.
            kind: What they are for.
            label: See `Server.submit`.
            durations_ns: How long each takes.
            issued_ns: When the host begins to hand them over.
            each_ns: How long it takes for each.
            after: The number of the job that each waits for; 0 for none.

        Returns:
            When the last is handed over.
        """
        ends, queue = self._ends, self._queue
        if queue:
            self.settle(issued_ns)
        if queue or self._spans is not None or self._waiting or self._slowed_ns is None:
            for n, ns, other in zip(numbers, durations_ns, after, strict=True):
                issued_ns += each_ns
                self.submit(n, kind, label, ns, issued_ns, (other,) if other else ())
            return issued_ns
        link_free_ns, copies, slow = self._link.free_ns, self._link.busy, self._known_slow[kind]
        after_ns = self._after_copy_ns
        free_ns, busy_ns, lost_ns = self.free_ns, 0, 0
        for n, ns, other in zip(numbers, durations_ns, after, strict=True):
            issued_ns += each_ns
            begins_ns = free_ns
            if issued_ns > begins_ns:
                begins_ns = issued_ns
            if other and (end_ns := ends[other]) is not None and end_ns + after_ns > begins_ns:
                begins_ns = end_ns + after_ns
            if queue or begins_ns >= link_free_ns:
                ends[n] = None
                queue.append((n, kind, label, ns, begins_ns, ()))
                continue
            while copies and copies[0][1] <= begins_ns:
                copies.popleft()
            took_ns = ns
            if copies and copies[0][0] <= begins_ns:
                took_ns = slow.get(ns) or self._slow(kind, ns)
                lost_ns += took_ns - ns
            ends[n] = free_ns = begins_ns + took_ns
            busy_ns += took_ns
        self.free_ns = free_ns
        self.busy_ns[kind] += busy_ns
        self.slow_down_ns += lost_ns
        return issued_ns

    def settle(self, nothing_before_ns: int, until: int | None = None) -> None:
        """Begin the kernels in turn as far as that is certain.

        Whether copies run is certain up to the link's last certain end, and up to the time before
        which the host hands over nothing more.

        Args:
            nothing_before_ns: That time; `FOREVER` while the host waits for what is settled here.
            until: The job that it waits for; nothing is settled once its end is certain.
        """
        queue, ends, link, waiting = self._queue, self._ends, self._link, self._waiting
        slowed_ns, spans, busy, copies = self._slowed_ns, self._spans, self.busy_ns, link.busy
        slow = self._known_slow
        self.looks_at_ns = None
        while queue and (until is None or ends[until] is None):
            n, kind, label, ns, issued_ns, after = queue[0]
            begins_ns = issued_ns if issued_ns > self.free_ns else self.free_ns
            if after:
                known = [end_ns for n_before in after if (end_ns := ends[n_before]) is not None]
                if len(known) < len(after):
                    return
                begins_ns = max(begins_ns, max(known) + self._after_copy_ns)
            if slowed_ns is not None:
                while copies and copies[0][1] <= begins_ns:
                    copies.popleft()
                if copies and copies[0][0] <= begins_ns:
                    alone_ns = ns
                    ns = slow[kind].get(ns) or self._slow(kind, ns)
                    self.slow_down_ns += ns - alone_ns
                elif begins_ns > nothing_before_ns and begins_ns >= link.free_ns:
                    self.looks_at_ns = begins_ns
                    return
            queue.popleft()
            ends[n] = self.free_ns = begins_ns + ns
            busy[kind] += ns
            if spans is not None:
                spans.append((self._name, label, begins_ns, begins_ns + ns))
            if waiting:
                settle_all(waiting)

    def is_idle(self, now_ns: int) -> bool:
        """Return whether all kernels have ended by a time."""
        return self.free_ns <= now_ns and not self._queue

    @property
    def looks(self) -> bool:
        """Whether it matters to kernels that copies run as they begin."""
        return self._slowed_ns is not None

    def next_begin_ns(self) -> int | None:
        """Return when the kernel in turn begins; None if there is none or that is not certain."""
        if not self._queue:
            return None
        _, _, _, _, issued_ns, after = self._queue[0]
        return certain_begin_ns(issued_ns, self.free_ns, after, self._ends, self._after_copy_ns)

    def settle_next(self, nothing_before_ns: int) -> bool:
        """Begin the kernel in turn if that is certain, and return whether it was; see `settle`."""
        n = self._queue[0][0]
        self._ends.setdefault(n, None)  # a step's end forgets kernels that nobody waits for
        self.settle(nothing_before_ns, n)
        return self._ends[n] is not None

    def _slow(self, kind: Kind, ns: int) -> int:
        """Return how long a kernel takes beside copies, and keep it."""
        assert self._slowed_ns is not None
        known = self._known_slow[kind]
        if len(known) >= _MEMO_ENTRIES:
            known.clear()
        slowed_ns = known[ns] = self._slowed_ns(ns, kind is Kind.EXPERTS)
        return slowed_ns


def certain_begin_ns(
    issued_ns: int, free_ns: int, after: Sequence[int], ends: Ends, after_ns: int = 0
) -> int | None:
    """Return when the job in turn begins, or None while a job that it waits for has no certain end.

    Args:
        issued_ns: When it was handed over.
        free_ns: When the job before it ends.
        after: The jobs that it waits for.
        ends: When jobs end.
        after_ns: From the end of such a job until it begins.
    """
    begins_ns = max(issued_ns, free_ns)
    for other in after:
        end_ns = ends[other]
        if end_ns is None:
            return None
        begins_ns = max(begins_ns, end_ns + after_ns)
    return begins_ns


def settle_all(waiting: list[Server]) -> None:
    """Settle the servers that wait for another's job until nothing more becomes certain."""
    while any(server.settle() for server in list(waiting)):
        pass
