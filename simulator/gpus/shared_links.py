"""Links that several copy engines share: max-min fair shares, piecewise, in integers.

A copy occupies its engine from its begin. After its latency its bytes flow, as fast as its own
link carries them or as its share of what it crosses allows: a switch, the host's DRAM. Shares are
*max-min fair*: nobody gets more while somebody who wants more has less. They change when a copy
begins or ceases to flow, so that ends are not certain ahead of time. What is certain is all that
happens before the host hands over something new, and nothing here goes further (``step``).

Work is counted in bytes per second times ns: whatever the shares were, a copy ends in the first ns
by which all of its work is done, and alone on the link it takes what it takes on one of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from moesim.simulator.engines.machine import FOREVER, Ends, Server, Span, certain_begin_ns

_SECOND_NS = 10**9


class Limit(NamedTuple):
    """What some engines can carry together.

    Attributes:
        engines: By number.
        bytes_per_s: The sum of their rates is never more.
    """

    engines: frozenset[int]
    bytes_per_s: int


def fair_rates(wanted: Mapping[int, int], limits: Sequence[Limit]) -> dict[int, int]:
    """Return the max-min fair rate of each engine, in bytes/s, rounded down.

    All rates rise alike; an engine stops at what it wants, or when something that it crosses is
    full.

    Args:
        wanted: The most that each can use.
        limits: What they share.

    >>> fair_rates({0: 25, 1: 25, 2: 4}, [Limit(frozenset({0, 1, 2}), 30)])
    {2: 4, 0: 13, 1: 13}
    """
    rates: dict[int, int] = {}
    rising = dict(wanted)
    left = [limit.bytes_per_s for limit in limits]
    while rising:
        shares = {}
        for at, limit in enumerate(limits):
            users = sum(engine in limit.engines for engine in rising)
            if users:
                shares[at] = Fraction(left[at], users)
        level = min([Fraction(most) for most in rising.values()] + [*shares.values()])
        full = [limits[at].engines for at, share in shares.items() if share == level]
        stopping = [
            engine
            for engine, most in rising.items()
            if most == level or any(engine in engines for engines in full)
        ]
        for engine in stopping:
            rates[engine] = rate = max(1, int(level))
            del rising[engine]
            for at, limit in enumerate(limits):
                if engine in limit.engines:
                    left[at] -= rate
    return rates


class Flow(NamedTuple):
    """What a copy does from its begin to its end.

    Attributes:
        nbytes: Its bytes.
        latency_ns: Before they flow.
        flow_ns: While they flow, alone on what is shared.
        flow_beside_ns: The same beside those that slow it down.
        return_ns: After they have flowed.
    """

    nbytes: int
    latency_ns: int
    flow_ns: int
    flow_beside_ns: int
    return_ns: int = 0


class SharedEngine(Server):
    """A copy engine whose link others share; `SharedLinks` moves it on.

    Attributes:
        begins_ns: When the copy in turn begins, or has begun; None if there is none or that is not
            certain.
        flows_ns: When its bytes begin to flow; None before it has begun.
        returns_ns: When it ends; None before its bytes are there.
        wanted: The most bytes/s that it can use.
        wanted_beside: The same beside those that slow it down (`SharedLinks`).
        left: Its work that is not done.
        return_ns: From the last byte to its end.
    """

    def __init__(
        self,
        name: str,
        duration_ns: Callable[[int, int], int],
        ends: Ends,
        waiting: list[Server],
        spans: list[Span] | None,
        *,
        is_observed: bool = False,
    ) -> None:
        super().__init__(name, duration_ns, ends, waiting, spans, is_observed=is_observed)
        self.flows_ns: int | None = None
        self.returns_ns: int | None = None
        self.wanted = self.wanted_beside = 0
        self.left = 0
        self.return_ns = 0
        self._begun_ns = 0

    def submit(
        self, n: int, label: object, work: int, issued_ns: int, after: Sequence[int] = ()
    ) -> None:
        """Put a copy at the end of the queue; see `Server.submit`."""
        self.unreported.append(n)
        self._ends[n] = None
        self._queue.append((n, label, work, issued_ns, after))
        if self not in self._waiting:
            self._waiting.append(self)

    def settle(self) -> bool:
        """Return False: only `SharedLinks` knows what becomes certain."""
        return False

    @property
    def begins_ns(self) -> int | None:
        """When the copy in turn begins or began; None if there is none or that is not certain."""
        if not self._queue:
            return None
        if self.flows_ns is not None:
            return self._begun_ns
        _, _, _, issued_ns, after = self._queue[0]
        return certain_begin_ns(issued_ns, self.free_ns, after, self._ends)

    def begin(self, now_ns: int) -> None:
        """Begin the copy in turn."""
        flow = self._flow(now_ns - self.free_ns)
        self._begun_ns = now_ns
        self.flows_ns = now_ns + flow.latency_ns
        self.wanted, self.wanted_beside = (
            max(1, flow.nbytes * _SECOND_NS // ns) if ns else 0
            for ns in (flow.flow_ns, flow.flow_beside_ns)
        )
        self.left = flow.flow_ns * self.wanted
        self.return_ns = flow.return_ns
        if self._is_observed:
            self.busy.append((now_ns, FOREVER))

    def _flow(self, idle_ns: int) -> "Flow":
        """Return what the copy in turn does, after so long a pause."""
        size = self._queue[0][2]
        latency_ns = self._duration_ns(0, idle_ns)
        flow_ns = self._duration_ns(size, idle_ns) - latency_ns
        return Flow(size, latency_ns, flow_ns, flow_ns)

    def end(self, now_ns: int) -> None:
        """End the copy in turn."""
        n, label, size, _, _ = self._queue.popleft()
        begun_ns, self.flows_ns, self.returns_ns = self._begun_ns, None, None
        self._ends[n] = self.free_ns = now_ns
        self.busy_ns += now_ns - begun_ns
        self.jobs += 1
        self.work += size
        if self._is_observed:
            if self.busy and self.busy[-1][1] == FOREVER:
                self.busy.pop()
            self.busy.append((begun_ns, now_ns))
        if self._spans is not None:
            self._spans.append((self.name, label, begun_ns, now_ns))
        if not self._queue:
            self._waiting.remove(self)


class SharedLinks:
    """The engines that share something, moved on together from event to event.

    Args:
        engines: All of them, by number.
        limits: What they share.
        slowing: Those beside whose bytes an engine uses no more than its ``wanted_beside``.
    """

    def __init__(
        self,
        engines: Sequence[SharedEngine],
        limits: Sequence[Limit],
        slowing: frozenset[int] = frozenset(),
    ) -> None:
        self.engines = engines
        self._limits = limits
        self._slowing = slowing
        self._now_ns = 0
        self._rates: dict[int, int] = {}  # of the copies that flow
        self._known: dict[tuple[tuple[int, int], ...], dict[int, int]] = {}

    def next_event_ns(self) -> int | None:
        """Return when the next copy begins, begins to flow, or ends, if the host adds nothing."""
        found: int | None = None
        for number, engine in enumerate(self.engines):
            if engine.flows_ns is None:
                at_ns = engine.begins_ns
            elif engine.returns_ns is not None:
                at_ns = engine.returns_ns
            elif number in self._rates:
                at_ns = self._now_ns - (-engine.left // self._rates[number])
            else:
                at_ns = engine.flows_ns
            if at_ns is not None and (found is None or at_ns < found):
                found = at_ns
        return found

    def step(self) -> None:
        """Let the next events happen: all of one instant, those that end first."""
        now_ns = self.next_event_ns()
        assert now_ns is not None
        assert now_ns >= self._now_ns
        passed_ns = now_ns - self._now_ns
        for number, rate in self._rates.items():
            self.engines[number].left -= rate * passed_ns
        self._now_ns = now_ns
        for number, engine in enumerate(self.engines):
            if number in self._rates and engine.left <= 0:
                del self._rates[number]
                engine.returns_ns = now_ns + engine.return_ns
            if engine.returns_ns == now_ns:
                engine.end(now_ns)
            if engine.flows_ns is None and engine.begins_ns == now_ns:
                engine.begin(now_ns)
            if engine.flows_ns == now_ns and number not in self._rates:
                if engine.left:
                    self._rates[number] = 0
                elif engine.returns_ns is None:
                    engine.returns_ns = now_ns + engine.return_ns
                    if not engine.return_ns:
                        engine.end(now_ns)
        self._share()

    def _share(self) -> None:
        """Give every copy that flows its share."""
        is_beside = not self._slowing.isdisjoint(self._rates)
        wanted = tuple(
            (number, engine.wanted_beside if is_beside else engine.wanted)
            for number, engine in ((number, self.engines[number]) for number in sorted(self._rates))
        )
        rates = self._known.get(wanted)
        if rates is None:
            rates = self._known[wanted] = fair_rates(dict(wanted), self._limits)
        self._rates = dict(rates)
