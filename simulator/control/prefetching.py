"""What is wished for ahead of its demand: the prefetch policy's questions, answers and wishes.

A wish takes its place in the queue; what becomes of it is decided when the link has room.
"""

from collections.abc import Iterable
from typing import Any

from moesim.simulator.control.prefetch_queue import PrefetchQueue
from moesim.simulator.control.residency import Residency
from moesim.simulator.control.transfers import Outbox
from moesim.simulator.errors import PolicyError, ProtocolError
from moesim.simulator.messages import Answered, Ask
from moesim.simulator.policies.base import (
    Demand,
    PrefetchPolicy,
    RunInfo,
    View,
    Wish,
    overrides,
)


class Prefetching:
    """Consults the prefetch policy of a run.

    Attributes:
        acts: Whether the policy ever asks or wishes anything when it is consulted.
    """

    def __init__(
        self,
        run: RunInfo,
        policy: PrefetchPolicy,
        *,
        residency: Residency,
        queue: PrefetchQueue,
        view: View,
        out: Outbox,
    ) -> None:
        self._policy = policy
        self._residency = residency
        self._queue = queue
        self._view = view
        self._out = out
        self._experts = run.layers * run.experts
        self._asked: set[int] = set()
        self._asks = overrides(policy, PrefetchPolicy, "asks")
        self.acts = self._asks or overrides(policy, PrefetchPolicy, "wants")

    def consult(self, demand: Demand | None) -> None:
        """Ask the policy what to copy ahead after a layer was routed, or as a step begins."""
        if self._asks:
            for name, question in self._policy.asks(demand, self._view):
                self._out.number += 1
                self._asked.add(self._out.number)
                self._out.commands.append(Ask(self._out.number, name, question))
        self._take(self._policy.wants(demand, self._view))

    def answered(self, fact: Answered) -> None:
        """Pass an answer on, and take the wishes that follow from it."""
        if fact.n not in self._asked:
            raise ProtocolError(f"answer {fact.n} ('{fact.name}') to what was not asked")
        self._asked.discard(fact.n)
        self._take(self._policy.on_answer(fact.name, fact.value, self._view))

    def compute(self, name: str, question: Any) -> Any:  # noqa: ANN401  the question is the policy's own
        """Answer an ask by the pure function of its policy."""
        return self._policy.compute(name, question)

    def _take(self, wishes: Iterable[Wish]) -> None:
        """Put into the queue what is not here yet."""
        has_all, put = self._residency.has_all, self._queue.put
        for expert, priority in wishes:
            if not 0 <= expert < self._experts:
                raise PolicyError(
                    f"{type(self._policy).__name__} wished for expert {expert}; no such expert"
                )
            if not has_all(expert):
                put(expert, priority)
