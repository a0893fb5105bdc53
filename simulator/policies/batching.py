"""Continuous batching around another schedule: who joins the running requests, in which order.

A request scheduler is a guard on the schedule axis (``fcfs:max_batch=16/resident_first``): it forms
the steps, the schedule inside places the experts. Each step takes a token of every running request
and, beside them, prompt tokens of those in prefill, oldest first; with ``chunk`` these are at most
so many a step over all requests; else they are taken whole, one prompt a step.

With ``kv=elastic`` the KV caches of those who join may take slots of experts, which get back what
no request has reserved: VRAM is divided anew as requests come and go.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from moesim.simulator.errors import InputError
from moesim.simulator.policies.base import Request, RunInfo, SchedulePolicy, Turn, View
from moesim.simulator.policies.guards import ScheduleGuard

__all__ = ["ELASTIC", "Batching", "Company", "Rank", "least_slots"]

Rank = tuple[int, ...]
"""A place in the queue; the lowest is first."""

MAX_BATCH = 32
FIXED, ELASTIC = "fixed", "elastic"
KEEP = 0.5


def least_slots(budget_bytes: int, slot_bytes: int, top_k: int, keep: float) -> int:
    """Return how many slots experts keep of the room that a run began with.

    Args:
        budget_bytes: That room.
        slot_bytes: Of one expert.
        top_k: Experts of one token, for which there is always room.
        keep: The share that they keep at least.
    """
    return max(top_k, round(budget_bytes // slot_bytes * keep))


class Company:
    """Requests that run together, and whom they would have beside them; room is seen to elsewhere.

    With nobody running somebody must be taken, or the run ends with requests that nobody serves.

    Attributes:
        requests: All of them, those that have just joined included.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = list(requests)

    def takes(self, newcomer: Request) -> bool:
        """Return whether a request may begin beside these."""
        return True

    def join(self, newcomer: Request) -> None:
        """Take note that a request begins beside these."""
        self.requests.append(newcomer)


class Batching(ScheduleGuard):
    """Lets requests in by rank while there is room, and keeps them until they end.

    Nobody overtakes: where the first in the queue finds no room, the others wait behind it. Only
    who is not admitted for another reason is passed over.

    Args:
        max_batch: Requests that run together at most.
        chunk: Prompt tokens of one step at most, over all requests; none takes prompts whole, one
            a step.
        kv: ``fixed`` leaves experts and KV caches the room they began with; ``elastic`` does not.
        keep: With elastic KV caches, the share of their slots that experts keep at least.
    """

    timing_free = False

    def __init__(
        self,
        run: RunInfo,
        inner: SchedulePolicy,
        *,
        max_batch: int = MAX_BATCH,
        chunk: int | None = None,
        kv: str = "fixed",
        keep: float = KEEP,
    ) -> None:
        super().__init__(run, inner)
        own = type(self).__module__.rpartition(".")[2]
        if kv not in (FIXED, ELASTIC):
            raise InputError(
                f"schedule policy {own}: option kv={kv}: expected {FIXED} or {ELASTIC}"
            )
        if not 0 <= keep <= 1:
            raise InputError(f"schedule policy {own}: option keep={keep}: expected 0 to 1")
        self._is_elastic, self._keep = kv == ELASTIC, keep
        self._max_batch = max_batch
        self._chunk = chunk
        for name, value in (("max_batch", max_batch), ("chunk", chunk)):
            if value is not None and value < 1:
                raise InputError(
                    f"schedule policy {own}: option {name}={value}: expected at least 1"
                )

    @abstractmethod
    def rank(self, request: Request, view: View) -> Rank:
        """Return a waiting request's place in the queue."""

    def company(self, running: Sequence[Request], view: View) -> "Company":
        """Return those that run, as who may begin beside them depends on it."""
        return Company(running)

    def least_slots(self) -> int | None:
        """Return the slots that experts keep, if KV caches may take any."""
        if not self._is_elastic:
            return super().least_slots()
        run = self.run
        return least_slots(run.budget_bytes, max(run.expert_bytes_L), run.top_k, self._keep)

    def form(self, waiting: Sequence[int], running: Sequence[int], view: View) -> Sequence[Turn]:
        """Return those that run and those let in now, each with its share of prompt tokens."""
        everybody = [*running, *self._let_in(waiting, running, view)]
        turns = []
        left = self._chunk
        for number in everybody:
            prompt_left = view.requests[number].prompt_left
            if left is None or not prompt_left:
                turns.append(Turn(number))
            elif left:
                turns.append(Turn(number, min(left, prompt_left)))
                left -= min(left, prompt_left)
        return turns

    def _let_in(self, waiting: Sequence[int], running: Sequence[int], view: View) -> Iterable[int]:
        """Yield those that begin now."""
        if not waiting:
            return
        requests = view.requests
        company = [requests[number] for number in running]
        prompt_left = sum(request.prompt_left for request in company)
        most, chunk = self._max_batch, self._chunk or 1
        if len(company) == most or prompt_left >= chunk:
            return
        free_bytes = view.kv_free_bytes + view.kv_lendable_bytes
        together = self.company(company, view)
        ranked = sorted((requests[n] for n in waiting), key=lambda r: self.rank(r, view))
        for request in ranked:
            if request.kv_bytes > free_bytes:
                return
            if not together.takes(request):
                continue
            yield request.number
            together.join(request)
            free_bytes -= request.kv_bytes
            prompt_left += request.prompt_left
            if len(together.requests) == most or prompt_left >= chunk:
                return
