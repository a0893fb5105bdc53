"""What a guard starts from: a policy around another one, to which it leaves all but its own rule.

A guard's constructor takes the policy inside as its second argument, named ``inner``; on the
command line it stands before a slash: ``insert_cap:limit=2/lru``.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from moesim.simulator.policies.base import (
    CachePolicy,
    Demand,
    Evictable,
    Group,
    Partition,
    PrefetchPolicy,
    Question,
    RunInfo,
    SchedulePolicy,
    Turn,
    View,
    Wish,
)
from moesim.simulator.policies.quotas import staging_bytes, trim
from moesim.simulator.terms import Verdict


class CacheGuard(CachePolicy):
    """A cache policy that decides as the one inside does."""

    def __init__(self, run: RunInfo, inner: CachePolicy) -> None:
        super().__init__(run)
        self.inner = inner

    def quotas_L(self) -> Sequence[int] | None:
        """Return what the policy inside wants."""
        return self.inner.quotas_L()

    def staging_bytes(self) -> int:
        """Return what the policy inside wants."""
        return self.inner.staging_bytes()

    def partition(self) -> Partition | None:
        """Return the split of the policy inside."""
        return self.inner.partition()

    def repartition(self, view: View) -> Partition | None:
        """Return the next split of the policy inside."""
        return self.inner.repartition(view)

    def initial(self) -> Sequence[int]:
        """Return what the policy inside wants."""
        return self.inner.initial()

    def admit(self, expert: int, view: View) -> Verdict:
        """Return what the policy inside says."""
        return self.inner.admit(expert, view)

    def rebalance(self, view: View) -> Sequence[int]:
        """Return what the policy inside brings in."""
        return self.inner.rebalance(view)

    def asks(self, view: View) -> Iterable[Question]:
        """Return what the policy inside asks."""
        return self.inner.asks(view)

    def compute(self, name: str, question: Any) -> Any:  # noqa: ANN401  the inner policy's question
        """Return the answer of the policy inside."""
        return self.inner.compute(name, question)

    def on_answer(self, name: str, answer: Any, view: View) -> None:  # noqa: ANN401
        """Tell the policy inside."""
        self.inner.on_answer(name, answer, view)

    def on_touch(self, expert: int, view: View) -> None:
        """Tell the policy inside."""
        self.inner.on_touch(expert, view)

    def on_admit(self, expert: int, view: View) -> None:
        """Tell the policy inside."""
        self.inner.on_admit(expert, view)

    def on_evict(self, expert: int, view: View) -> None:
        """Tell the policy inside."""
        self.inner.on_evict(expert, view)

    def on_event_end(self, view: View) -> None:
        """Tell the policy inside."""
        self.inner.on_event_end(view)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return what the policy inside gives up."""
        return self.inner.choose_victim(evictable, view)


class StagedGuard(CacheGuard):
    """A cache policy that sends some of what the one inside would keep through staging.

    Staging is taken from the policy's room, unless it has some of its own.
    """

    def __init__(self, run: RunInfo, inner: CachePolicy, staging: int | None) -> None:
        super().__init__(run, inner)
        self._staging_bytes = inner.staging_bytes() or staging_bytes(run, staging)
        room_bytes = run.budget_bytes - self._staging_bytes
        self._room_L = self.quotas_L() or [room_bytes] * run.layers

    def staging_bytes(self) -> int:
        """Return the policy's own staging, or the guard's."""
        return self._staging_bytes

    def quotas_L(self) -> Sequence[int] | None:
        """Return the policy's quotas, less what staging takes."""
        quotas_L = self.inner.quotas_L()
        if quotas_L is None:
            return None
        return trim(self.run, quotas_L, self.run.budget_bytes - self._staging_bytes)

    def may_keep(self, expert: int) -> bool:
        """Return whether staging has left the pool of an expert any room for it."""
        return self._room_L[self.run.layer(expert)] >= self.run.size(expert)


class PrefetchGuard(PrefetchPolicy):
    """A prefetch policy that wishes what the one inside wishes, as far as ``let_through`` agrees.

    Attributes:
        inner: The policy inside.
        demand: The layer routed last in this step; None before its first.
    """

    does = frozenset()

    def __init__(self, run: RunInfo, inner: PrefetchPolicy) -> None:
        super().__init__(run)
        self.inner = inner
        self.demand: Demand | None = None

    def let_through(self, wishes: Iterable[Wish], view: View) -> Iterable[Wish]:
        """Return those of the wishes of the policy inside that are passed on."""
        return wishes

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        """Return what is let through of what the policy inside wants."""
        self.demand = demand
        return self.let_through(self.inner.wants(demand, view), view)

    def asks(self, demand: Demand | None, view: View) -> Iterable[Question]:
        """Return what the policy inside asks."""
        return self.inner.asks(demand, view)

    def compute(self, name: str, question: Any) -> Any:  # noqa: ANN401  the inner policy's question
        """Return the answer of the policy inside."""
        return self.inner.compute(name, question)

    def on_answer(self, name: str, answer: Any, view: View) -> Iterable[Wish]:  # noqa: ANN401
        """Return what is let through of what the policy inside wants now."""
        return self.let_through(self.inner.on_answer(name, answer, view), view)


class ScheduleGuard(SchedulePolicy):
    """A schedule policy that forms steps and plans layers as the one inside does."""

    does = frozenset()

    def __init__(self, run: RunInfo, inner: SchedulePolicy) -> None:
        super().__init__(run)
        self.inner = inner

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        """Return the plan of the policy inside."""
        return self.inner.plan(demand, view)

    def least_slots(self) -> int | None:
        """Return what the policy inside says."""
        return self.inner.least_slots()

    def form(
        self, waiting: Sequence[int], running: Sequence[int], view: View
    ) -> Sequence[int | Turn]:
        """Return the step of the policy inside."""
        return self.inner.form(waiting, running, view)
