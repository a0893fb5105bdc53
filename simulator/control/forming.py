"""Which requests wait and run, and which of them form the next step.

The schedule policy chooses; it is offered who has arrived and not ended, and may not give more KV
cache away than there is. A request holds what it reserves from its first step to its end. Where
the policy says so, experts lend room to KV caches as requests begin and take back what is spare.
"""

from collections.abc import Sequence

from moesim.simulator.control.trading import Lender
from moesim.simulator.control.transfers import Outbox
from moesim.simulator.errors import PolicyError, ProtocolError
from moesim.simulator.messages import (
    FormStep,
    RequestArrived,
    RequestEnded,
    StepEnded,
    Wait,
)
from moesim.simulator.policies.base import Request, SchedulePolicy, Turn, View


class Forming:
    """Forms one step after another.

    Attributes:
        may_form: Whether something has happened since the last answer that could change it.
    """

    def __init__(
        self, schedule: SchedulePolicy, *, view: View, out: Outbox, lender: Lender
    ) -> None:
        self.may_form = False
        self._schedule = schedule
        self._view = view
        self._out = out
        self._lender = lender
        self._least_slots = schedule.least_slots()
        self._waiting: list[int] = []
        self._running: list[int] = []
        self._prompt_taken: dict[int, int] = {}  # in the step under way
        self._in_step: tuple[int, ...] = ()

    @property
    def unserved(self) -> list[int]:
        """The requests that have not ended."""
        return [*self._running, *self._waiting]

    def arrived(self, fact: RequestArrived) -> None:
        """Take note of a request that waits."""
        view = self._view
        if fact.request in view.requests:
            raise ProtocolError(f"request {fact.request} arrived twice")
        view.requests[fact.request] = Request(
            number=fact.request,
            task=fact.task,
            prompt_tokens=fact.prompt_tokens,
            arrived_ns=view.now_ns if fact.arrived_ns is None else fact.arrived_ns,
            slo=fact.slo,
            kv_bytes=fact.kv_bytes,
            prompt_left=fact.prompt_tokens,
        )
        self._waiting.append(fact.request)
        self.may_form = True

    def ended(self, fact: RequestEnded) -> None:
        """Take note that a request is over, and free its KV cache."""
        if fact.request not in self._running:
            raise ProtocolError(f"request {fact.request} ended but was not being served")
        self._running.remove(fact.request)
        self._view.kv_free_bytes += self._view.requests.pop(fact.request).kv_bytes

    def form(self) -> None:
        """Ask for the next step, and command it."""
        if self._least_slots is not None:
            self._view.kv_lendable_bytes = self._lender.lendable_bytes(self._least_slots)
        chosen = self._schedule.form(self._waiting, self._running, self._view)
        turns = [turn if isinstance(turn, Turn) else Turn(turn) for turn in chosen]
        self.may_form = False
        self._check(turns)
        if not turns:
            self._take_back()
            self._out.commands.append(Wait())
            return
        requests, chunks = zip(*turns, strict=True)
        self._admit([request for request in requests if request not in self._running])
        for request, chunk in turns:
            left = self._view.requests[request].prompt_left
            self._prompt_taken[request] = left if chunk is None else min(chunk, left)
        self._in_step = requests
        self._out.commands.append(FormStep(requests, chunks))

    def step_ended(self, fact: StepEnded) -> None:
        """Count what the requests of the step have got."""
        for request, tokens in zip(self._in_step, fact.tokens, strict=True):
            known = self._view.requests[request]
            known.prompt_left -= self._prompt_taken.pop(request)
            known.tokens_out += tokens
        self.may_form = True

    def _admit(self, requests: Sequence[int]) -> None:
        """Let requests begin."""
        view = self._view
        missing_bytes = sum(view.requests[n].kv_bytes for n in requests) - view.kv_free_bytes
        if missing_bytes > view.kv_lendable_bytes:
            raise PolicyError(
                f"{self._name} begins requests {list(requests)}, whose KV caches take "
                f"{missing_bytes + view.kv_free_bytes} bytes; {view.kv_free_bytes} are free "
                f"(view.kv_free_bytes) and {view.kv_lendable_bytes} would be lent"
            )
        if missing_bytes > 0:
            self._lender.lend(missing_bytes)
        for request in requests:
            known = view.requests[request]
            view.kv_free_bytes -= known.kv_bytes
            known.began_ns = view.now_ns
            self._waiting.remove(request)
            self._running.append(request)
        self._take_back()

    def _take_back(self) -> None:
        if self._least_slots is not None:
            self._lender.take_back()

    def _check(self, turns: list[Turn]) -> None:
        requests = [turn.request for turn in turns]
        offered = [*self._waiting, *self._running]
        if len(set(requests)) < len(requests) or not set(requests) <= set(offered):
            raise PolicyError(
                f"{self._name} formed a step of requests {requests}, offered were {offered}"
            )
        for request, chunk in turns:
            if chunk is not None and chunk < 1:
                raise PolicyError(f"{self._name} gives request {request} {chunk} prompt tokens")

    @property
    def _name(self) -> str:
        return type(self._schedule).__name__
