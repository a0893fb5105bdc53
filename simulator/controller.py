"""The state machine that every driver shares.

Rule 1: it does no I/O. It holds no clock, starts no thread, moves no byte. A driver tells it facts
and obeys the commands that it answers with.

Rule 2: it does not know who drives it. The same facts at the same times give the same commands,
whoever reports them; a simulator and a GPU differ only in when they report.

Rule 3: it keeps the books and the policies decide. A policy is offered only what it may choose, so
that nothing needed is evicted and nothing runs without its weights, whatever a policy answers.

The contract is design 4.1; numbers in comments below are its rules.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moesim.simulator.control.books import open_books
from moesim.simulator.control.forming import Forming
from moesim.simulator.control.prefetching import Prefetching
from moesim.simulator.control.trading import Lender
from moesim.simulator.control.transfers import DEFAULT_WINDOW_BYTES
from moesim.simulator.errors import (
    BudgetError,
    CapabilityError,
    MoesimError,
    PolicyError,
    ProtocolError,
)
from moesim.simulator.gpus.plan import GpuPlan
from moesim.simulator.ledger import Counts
from moesim.simulator.messages import (
    Answered,
    Ask,
    BudgetChanged,
    Command,
    CopiesEnded,
    CopyEnded,
    CpuRunEnded,
    Fact,
    Failed,
    LayerRouted,
    Order,
    Report,
    RequestArrived,
    RequestEnded,
    RunBegan,
    StepBegan,
    StepEnded,
    TimerFired,
    commands_one_by_one,
    facts_one_by_one,
)
from moesim.simulator.policies.base import (
    UNLIMITED_BYTES,
    CachePolicy,
    PrefetchPolicy,
    RunInfo,
    SchedulePolicy,
    overrides,
)
from moesim.simulator.tiers.hierarchy import Shelves


class Controller:
    """Turns facts into commands by asking three policies.

    Attributes:
        counts: The decisions so far.
        residency: Who has room in VRAM.
        shelves: Who has room in the tiers between VRAM and the one that has everything, if any.
        log: Every call as (facts, now_ns, commands), if asked for; a fresh controller fed the facts
            gives the same commands.
    """

    def __init__(
        self,
        run: RunInfo,
        cache: CachePolicy,
        prefetch: PrefetchPolicy,
        schedule: SchedulePolicy,
        *,
        window_bytes: int = DEFAULT_WINDOW_BYTES,
        keep_log: bool = False,
        shelves: Shelves | None = None,
        gpus: GpuPlan | None = None,
    ) -> None:
        self.counts = Counts()
        self.log: list[tuple[list[Fact], int, list[Command]]] | None = [] if keep_log else None
        self.shelves = shelves
        self._run = run
        self._experts = run.experts
        self._cache = cache
        self._schedule = schedule
        books = open_books(run, cache, schedule, self.counts, window_bytes, shelves, gpus)
        self.residency, self._view, self._queue, self._out, self._transfers, self._events = books
        self._wishes = self._queue.wishes
        self._prefetching = Prefetching(
            run,
            prefetch,
            residency=self.residency,
            queue=self._queue,
            view=self._view,
            out=self._out,
        )
        self._lender = Lender(cache, self.residency, self._transfers, self._view, self._out)
        self._forming = Forming(schedule, view=self._view, out=self._out, lender=self._lender)
        self._rebalances = overrides(cache, CachePolicy, "rebalance")
        self._splits = overrides(cache, CachePolicy, "repartition")
        self._cache_asks = overrides(cache, CachePolicy, "asks")
        if schedule.least_slots() is not None:
            if self._prefetching.acts or self._rebalances:
                raise CapabilityError(
                    "kv=elastic: what is copied ahead may still be on its way to a slot that goes; "
                    "take --prefetch none and a cache without rebalancing"
                )
            if run.kv_bytes == UNLIMITED_BYTES:
                raise CapabilityError(
                    "kv=elastic: KV caches are counted where requests arrive; add --arrivals"
                )
            self._lender.check()
        self._asked_by_cache: set[int] = set()  # and not answered
        self._asks_of_cache: set[str] = set()  # their names so far
        self._step_open = False
        self._on: Mapping[type, Callable[[Any], None]] = {
            CopiesEnded: self._transfers.copies_ended,
            RunBegan: self._run_began,
            RequestArrived: self._forming.arrived,
            RequestEnded: self._forming.ended,
            StepBegan: self._step_began,
            LayerRouted: self._layer_routed,
            CopyEnded: self._transfers.copy_ended,
            CpuRunEnded: self._events.cpu_run_ended,
            Answered: self._answered,
            StepEnded: self._step_ended,
            BudgetChanged: self._budget_changed,
            TimerFired: self._timer_fired,
            Failed: self._failed,
        }

    def initial(self) -> tuple[int, ...]:
        """Return the experts to place before time zero; the driver reports them in ``RunBegan``."""
        room = {id(pool): pool.capacity_bytes for pool in self.residency.caches}
        chosen = []
        for expert in dict.fromkeys(self._cache.initial()):
            pool = self.residency.cache_of(expert)
            size = self.residency.size(expert)
            if 0 < size <= room[id(pool)]:
                room[id(pool)] -= size
                chosen.append(expert)
        return tuple(chosen)

    @property
    def notes(self) -> list[str]:
        """What a reader of results must know of how room was shared."""
        return [*self.residency.notes, *self._lender.notes]

    @property
    def lossy(self) -> frozenset[str]:
        """How the schedule may change the router's choices: ``reroute``, ``skip``, or neither."""
        return self._events.lossy

    @property
    def listens(self) -> bool:
        """Whether the end of a copy could be answered by a command before the next router has run.

        A driver that waits for a router need not report copies while this is False; they are
        reported right before the router's choice in any case.
        """
        return bool(self._wishes)

    def compute(self, name: str, question: Any) -> Any:  # noqa: ANN401  the question is the policy's own
        """Answer an ask by the pure function of its policy; a driver may do so elsewhere."""
        if name in self._asks_of_cache:
            return self._cache.compute(name, question)
        return self._prefetching.compute(name, question)

    def handle(self, facts: Sequence[Report], now_ns: int) -> list[Command]:
        """Do as `decide` does, and return the commands one by one."""
        return list(commands_one_by_one(self.decide(facts, now_ns)))

    def decide(self, facts: Sequence[Report], now_ns: int) -> list[Order]:
        """Take in what has happened and return what to do now, in the order to do it.

        Args:
            facts: All that the driver has not yet reported, in the order of its ends.
            now_ns: The driver's time; it never goes back.

        Raises:
            ProtocolError: The driver reported what cannot have happened.
            PolicyError: A policy answered with what it was not offered.
        """
        if now_ns < self._view.now_ns:
            raise ProtocolError(f"the clock went back from {self._view.now_ns} to {now_ns} ns")
        self._view.now_ns = now_ns
        out = self._out.commands = []
        on = self._on
        for fact in facts:
            on[type(fact)](fact)
        if self._forming.may_form and not self._step_open:
            self._forming.form()
        if self._wishes:
            self._transfers.hand_over(self._queue)
        if self.log is not None:
            commands = list(commands_one_by_one(out))
            self.log.append((list(facts_one_by_one(facts)), now_ns, commands))
        return out

    def close(self) -> None:
        """End the books: what was prefetched and never demanded is wasted."""
        if self._step_open:
            raise ProtocolError("the run ended in the middle of a step")
        if unserved := self._forming.unserved:
            raise PolicyError(
                f"{type(self._schedule).__name__} formed no step while requests {unserved} waited"
            )
        self._transfers.close()
        self.counts.peak_expert_bytes = self.residency.peak_bytes

    # Requests and steps

    def _run_began(self, fact: RunBegan) -> None:
        if fact.budget_bytes != self._run.budget_bytes:
            raise ProtocolError(
                f"the run began with {fact.budget_bytes} bytes for experts, "
                f"the policies were told {self._run.budget_bytes}"
            )
        self._transfers.place(fact.residents)

    def _step_began(self, fact: StepBegan) -> None:
        if self._step_open:
            raise ProtocolError(f"step {fact.step} began inside another")
        self._step_open = True
        view = self._view
        view.step = fact.step
        view.layer = -1
        view.phases = fact.phases
        view.signals = fact.signals
        self._events.is_decode = view.is_decode
        self.counts.steps += 1
        if self._splits and (partition := self._cache.repartition(view)) is not None:
            self._transfers.cut(partition)
        if self._rebalances:
            self._transfers.rebalance(self._cache.rebalance(view))
        if self._cache_asks:
            for name, question in self._cache.asks(view):
                self._out.number += 1
                self._asked_by_cache.add(self._out.number)
                self._asks_of_cache.add(name)
                self._out.commands.append(Ask(self._out.number, name, question))
        if self._prefetching.acts:
            self._prefetching.consult(None)

    def _step_ended(self, fact: StepEnded) -> None:
        if not self._step_open or self._events.open_layer >= 0:
            raise ProtocolError(f"step {fact.step} ended outside a step or before its last layer")
        self._events.release()
        self._step_open = False
        self._forming.step_ended(fact)
        self.counts.output_tokens += sum(fact.tokens)

    def _layer_routed(self, fact: LayerRouted) -> None:
        view = self._view
        if not self._step_open or self._events.open_layer >= 0:
            raise ProtocolError(
                f"layer {fact.layer} was routed outside a step or before the last was done"
            )
        if fact.layer != view.layer + 1:
            raise ProtocolError(f"layer {fact.layer} was routed after layer {view.layer}")
        self._events.release()
        view.event += 1
        view.layer = fact.layer
        view.signals = fact.signals
        demand = self._events.serve(fact)
        if self._prefetching.acts:
            self._prefetching.consult(demand)

    def _answered(self, fact: Answered) -> None:
        if fact.n not in self._asked_by_cache:
            self._prefetching.answered(fact)
            return
        self._asked_by_cache.discard(fact.n)
        self._cache.on_answer(fact.name, fact.value, self._view)

    # The rest

    def _budget_changed(self, fact: BudgetChanged) -> None:
        if self._step_open:
            raise ProtocolError("the expert budget changed in the middle of a step")
        self._lender.check()
        slot_bytes = self._lender.slot_bytes
        slots = fact.budget_bytes // slot_bytes
        if slots < self._run.top_k:
            raise BudgetError(
                f"the expert budget changed to {fact.budget_bytes} bytes, which do not hold the "
                f"{self._run.top_k} experts of one token; leave {self._run.top_k * slot_bytes}"
            )
        self._lender.resize(slots)

    def _timer_fired(self, fact: TimerFired) -> None:
        raise ProtocolError(f"timer {fact.n} fired but none was set")

    def _failed(self, fact: Failed) -> None:
        raise MoesimError(f"command {fact.n} failed: {fact.reason}")
