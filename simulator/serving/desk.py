"""The front desk of a server: who arrives, who is refused, who has got what and when.

Refused at once is a request whose KV cache can never fit, and one that arrives while as many wait
as may. What was let in either finds its room (the controller waits for it) or, where requests
reserve less than they grow to, ends the run out of memory; nothing is clamped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.errors import OutOfMemoryError
from moesim.simulator.ledger import RequestTimes, ServerCounts
from moesim.simulator.messages import Fact, RequestArrived, RequestEnded
from moesim.simulator.serving.arrivals import Arrivals
from moesim.simulator.serving.kv import KvRoom
from moesim.simulator.terms import NO_PROMISE, Phase, Slo

__all__ = ["Desk", "Guests", "Pass", "ServedStep", "Terms"]


class Guests(Protocol):
    """What the desk asks about requests: those of a trace, or of a live model."""

    def arrivals(self) -> Arrivals:
        """Return a fresh source of them."""
        ...

    def prompt_tokens(self, request: int) -> int:
        """Return the length of a prompt."""
        ...

    def output_tokens(self, request: int) -> int:
        """Return the most tokens of an answer."""
        ...

    def task(self, request: int) -> str:
        """Return the task label of a request."""
        ...

    def is_finished(self, request: int) -> bool:
        """Return whether a request has had its last step; if so what was kept of it is let go."""
        ...


class Pass(Protocol):
    """What the desk notes of a forward pass; ``Step`` of a replay is one."""

    @property
    def number(self) -> int:
        """Steps begun before."""
        ...

    @property
    def requests(self) -> tuple[int, ...]:
        """Who is in it."""
        ...

    @property
    def phases(self) -> Sequence[Phase]:
        """What each of them does."""
        ...

    @property
    def contexts(self) -> Sequence[int]:
        """Positions that each attends to, new ones included."""
        ...

    @property
    def tokens_out(self) -> Sequence[int]:
        """How many tokens each gets."""
        ...

    @property
    def tokens(self) -> int:
        """New tokens, of all together."""
        ...


class ServedStep(NamedTuple):
    """A forward pass that was carried out for real."""

    number: int
    requests: tuple[int, ...]
    phases: tuple[Phase, ...]
    contexts: tuple[int, ...]
    tokens_out: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms requests are served.

    Attributes:
        kv: Room for KV caches; None does not count it.
        most_waiting: Requests that may wait at a time; None lets all of them.
        slo: What is promised to requests of a task; the empty task is any other.
    """

    kv: KvRoom | None = None
    most_waiting: int | None = None
    slo: Mapping[str, Slo] = field(default_factory=dict)

    def can_hold(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Return whether the KV cache of a request fits into the room while nobody else is there.

        One that does not is refused as it arrives.
        """
        if self.kv is None:
            return True
        return self.kv.reserved_bytes(prompt_tokens, output_tokens) <= self.kv.room_bytes

    def slo_of(self, task: str) -> Slo:
        """Return what is promised to requests of a task."""
        return self.slo.get(task) or self.slo.get("") or NO_PROMISE


class Desk:
    """Keeps the times of every request, for a host.

    Args:
        guests: Who is served.
        terms: On which terms; None serves whoever comes.
        on_request: Takes the times of each that has ended; by default ``finished`` keeps them.

    Attributes:
        counts: What requests did.
        finished: Times of those that have ended, in that order.
        next_ns: When the next request arrives, as far as anybody knows.
    """

    def __init__(
        self,
        guests: Guests,
        terms: Terms | None = None,
        on_request: Callable[[RequestTimes], None] | None = None,
    ) -> None:
        self.counts = ServerCounts()
        self.finished: list[RequestTimes] = []
        self._on_request = self.finished.append if on_request is None else on_request
        self._guests = guests
        self._arrivals = guests.arrivals()
        self.next_ns = self._arrivals.next_ns
        self._terms = terms
        self._open: dict[int, RequestTimes] = {}
        self._waiting = 0
        self._contexts: dict[int, int] = {}  # KV bytes of each request that has begun
        self._kv_bytes = 0

    def arrive(self, now_ns: int) -> list[Fact]:
        """Return the facts of those that have arrived by now and are let in."""
        facts: list[Fact] = []
        while taken := self._arrivals.take(now_ns):
            for request, arrived_ns in taken:
                fact = self._let_in(request, arrived_ns, now_ns)
                if fact is not None:
                    facts.append(fact)
        self.next_ns = self._arrivals.next_ns
        return facts

    def begin(self, step: Pass, now_ns: int) -> None:
        """Take note that a step begins.

        Raises:
            OutOfMemoryError: The KV caches outgrow their room.
        """
        for request in step.requests:
            times = self._open[request]
            if times.began_ns < 0:
                times.began_ns = now_ns
                self._waiting -= 1
        counts = self.counts
        counts.most_in_step = max(counts.most_in_step, len(step.requests))
        counts.tokens += step.tokens
        counts.requests_in_steps += len(step.requests)
        if self._terms is not None and self._terms.kv is not None:
            self._grow(step, self._terms.kv)

    def end_step(self, step: Pass, now_ns: int) -> list[Fact]:
        """Give tokens out; return who has ended, and who comes upon it."""
        facts: list[Fact] = []
        for request, gives, phase in zip(step.requests, step.tokens_out, step.phases, strict=True):
            times = self._open[request]
            if gives:
                times.token_ends_ns.append(now_ns)
                times.has_first_token |= phase is Phase.PREFILL
            if self._guests.is_finished(request):
                self._on_request(self._open.pop(request))
                self._kv_bytes -= self._contexts.pop(request, 0)
                self._arrivals.ended(now_ns)
                facts.append(RequestEnded(request))
                facts += self.arrive(now_ns)
        return facts

    def _let_in(self, request: int, arrived_ns: int, now_ns: int) -> RequestArrived | None:
        guests, terms = self._guests, self._terms
        prompt_tokens, task = guests.prompt_tokens(request), guests.task(request)
        if terms is None:
            self._waiting += 1
            self._open[request] = RequestTimes(request, now_ns, -1, prompt_tokens)
            return RequestArrived(request, prompt_tokens, task)
        slo = terms.slo_of(task)
        kv_bytes = 0
        if terms.kv is not None:
            output_tokens = guests.output_tokens(request)
            kv_bytes = terms.kv.reserved_bytes(prompt_tokens, output_tokens)
        if self._refuses(kv_bytes, terms):
            self.counts.refused_promised += slo != NO_PROMISE
            self._arrivals.ended(now_ns)
            return None
        self._waiting += 1
        self.counts.most_waiting = max(self.counts.most_waiting, self._waiting)
        self._open[request] = RequestTimes(request, arrived_ns, -1, prompt_tokens, slo=slo)
        return RequestArrived(request, prompt_tokens, task, arrived_ns, kv_bytes, slo)

    def _refuses(self, kv_bytes: int, terms: Terms) -> bool:
        if terms.kv is not None and kv_bytes > terms.kv.room_bytes:
            self.counts.refused_too_long += 1
            return True
        if terms.most_waiting is not None and self._waiting >= terms.most_waiting:
            self.counts.refused_queue_full += 1
            return True
        return False

    def _grow(self, step: Pass, kv: KvRoom) -> None:
        contexts = self._contexts
        for request, context_tokens in zip(step.requests, step.contexts, strict=True):
            grown_bytes = kv.shape.size_bytes(context_tokens)
            self._kv_bytes += grown_bytes - contexts.get(request, 0)
            contexts[request] = grown_bytes
        self.counts.most_kv_bytes = max(self.counts.most_kv_bytes, self._kv_bytes)
        if self._kv_bytes > kv.room_bytes:
            raise OutOfMemoryError(
                f"step {step.number}: the KV caches of {len(contexts)} requests take "
                f"{format_bytes(self._kv_bytes)}, there is room for {format_bytes(kv.room_bytes)}; "
                "let requests reserve their whole length (--kv-reserve whole), or serve fewer "
                "together"
            )
