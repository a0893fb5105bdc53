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
from operator import itemgetter
from typing import Any

from moesim.simulator.errors import CapabilityError, MoesimError, PolicyError, ProtocolError
from moesim.simulator.ledger import Counts
from moesim.simulator.messages import (
    Answered,
    Ask,
    BudgetChanged,
    Command,
    CopyEnded,
    CpuRunEnded,
    Fact,
    Failed,
    FormStep,
    LayerDone,
    LayerRouted,
    RequestArrived,
    RequestEnded,
    Run,
    RunBegan,
    StepBegan,
    StepEnded,
    TimerFired,
    Wait,
)
from moesim.simulator.policies.base import (
    CachePolicy,
    Demand,
    Group,
    PrefetchPolicy,
    RunInfo,
    SchedulePolicy,
    View,
)
from moesim.simulator.prefetch_queue import PrefetchQueue
from moesim.simulator.residency import Pool, Residency
from moesim.simulator.terms import CPU, GPU, Cause, Device
from moesim.simulator.transfers import DEFAULT_WINDOW_BYTES, Outbox, Transfers

_new = tuple.__new__
"""Makes a named tuple in half the time of calling its class, which is Python."""


class Controller:
    """Turns facts into commands by asking three policies.

    Attributes:
        counts: The decisions so far.
        residency: Who has room in VRAM.
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
    ) -> None:
        self.counts = Counts()
        self.log: list[tuple[list[Fact], int, list[Command]]] | None = [] if keep_log else None
        self._run = run
        self._experts = run.experts
        self._cache = cache
        self._prefetch = prefetch
        self._schedule = schedule
        self.residency = Residency(
            run.expert_bytes_L,
            run.experts,
            run.top_k,
            run.budget_bytes,
            cache.quotas_L(),
            cache.staging_bytes(),
        )
        self._view = View(self.residency)
        self._queue = PrefetchQueue(run.experts)
        self._wishes = self._queue.wishes
        self._out = Outbox()
        self._transfers = Transfers(
            cache, self.residency, self._view, self.counts, self._out, window_bytes
        )
        self._experts_L = [
            frozenset(range(layer * run.experts, (layer + 1) * run.experts))
            for layer in range(run.layers)
        ]
        self._cpu_runs: set[int] = set()
        self._asked: set[int] = set()
        self._layer_open = -1  # the layer whose LayerDone waits for CPU runs
        self._step_open = False
        self._is_decode = False
        self._may_form = False
        self._waiting: list[int] = []
        self._running: list[int] = []
        self._touches = _overrides(cache, CachePolicy, "on_touch")
        self._touch_all = _all_touches(cache)
        self._ends_events = _overrides(cache, CachePolicy, "on_event_end")
        self._prefetches = _overrides(prefetch, PrefetchPolicy, "wants")
        self._asks = _overrides(prefetch, PrefetchPolicy, "asks")
        self._on: Mapping[type, Callable[[Any], None]] = {
            RunBegan: self._run_began,
            RequestArrived: self._request_arrived,
            RequestEnded: self._request_ended,
            StepBegan: self._step_began,
            LayerRouted: self._layer_routed,
            CopyEnded: self._transfers.copy_ended,
            CpuRunEnded: self._cpu_run_ended,
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
            pool = self.residency.cache_L[expert // self._experts]
            size = self.residency.size(expert)
            if room[id(pool)] >= size:
                room[id(pool)] -= size
                chosen.append(expert)
        return tuple(chosen)

    @property
    def listens(self) -> bool:
        """Whether the end of a copy could be answered by a command before the next router has run.

        A driver that waits for a router need not report copies while this is False; they are
        reported right before the router's choice in any case.
        """
        return bool(self._wishes)

    def compute(self, name: str, question: Any) -> Any:  # noqa: ANN401  the question is the policy's own
        """Answer an ask by the pure function of its policy; a driver may do so elsewhere."""
        return self._prefetch.compute(name, question)

    def handle(self, facts: list[Fact], now_ns: int) -> list[Command]:
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
        if self._may_form and not self._step_open:
            self._form()
        if self._wishes:
            self._transfers.hand_over(self._queue)
        if self.log is not None:
            self.log.append((list(facts), now_ns, list(out)))
        return out

    def close(self) -> None:
        """End the books: what was prefetched and never demanded is wasted."""
        if self._cpu_runs or self._layer_open >= 0 or self._step_open:
            raise ProtocolError("the run ended in the middle of a step")
        if self._waiting or self._running:
            raise PolicyError(
                f"{type(self._schedule).__name__} formed no step while requests "
                f"{[*self._running, *self._waiting]} waited"
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

    def _request_arrived(self, fact: RequestArrived) -> None:
        self._waiting.append(fact.request)
        self._may_form = True

    def _request_ended(self, fact: RequestEnded) -> None:
        if fact.request not in self._running:
            raise ProtocolError(f"request {fact.request} ended but was not being served")
        self._running.remove(fact.request)

    def _form(self) -> None:
        requests = tuple(self._schedule.form(self._waiting, self._running, self._view))
        self._may_form = False
        offered = [*self._waiting, *self._running]
        if len(set(requests)) < len(requests) or not set(requests) <= set(offered):
            raise PolicyError(
                f"{type(self._schedule).__name__} formed a step of requests {list(requests)}, "
                f"offered were {offered}"
            )
        if not requests:
            self._out.commands.append(Wait())
            return
        for request in requests:
            if request in self._waiting:
                self._waiting.remove(request)
                self._running.append(request)
        self._out.commands.append(FormStep(requests, (None,) * len(requests)))

    def _step_began(self, fact: StepBegan) -> None:
        if self._step_open:
            raise ProtocolError(f"step {fact.step} began inside another")
        self._step_open = True
        view = self._view
        view.step = fact.step
        view.layer = -1
        view.phases = fact.phases
        self._is_decode = view.is_decode
        view.signals = fact.signals
        self.counts.steps += 1
        if self._prefetches or self._asks:
            self._consult(None)

    def _step_ended(self, fact: StepEnded) -> None:
        if not self._step_open or self._layer_open >= 0:
            raise ProtocolError(f"step {fact.step} ended outside a step or before its last layer")
        self._end_event()
        self._step_open = False
        self._may_form = True
        self.counts.output_tokens += sum(fact.tokens)

    # One event: the demand of one layer of one step

    def _layer_routed(self, fact: LayerRouted) -> None:
        if not self._step_open or self._layer_open >= 0:
            raise ProtocolError(
                f"layer {fact.layer} was routed outside a step or before the last was done"
            )
        view = self._view
        if fact.layer != view.layer + 1:
            raise ProtocolError(f"layer {fact.layer} was routed after layer {view.layer}")
        self._end_event()
        view.event += 1
        view.layer = fact.layer
        view.signals = fact.signals
        demand = self._judge(fact)
        if self._touches:
            self._touch_all(fact.experts, view)
        groups = self._schedule.plan(demand, view)
        self._carry_out(groups, demand)
        if self._cpu_runs:
            self._layer_open = fact.layer
        else:
            self._out.commands.append(LayerDone(fact.layer))
        if self._ends_events:
            self._cache.on_event_end(view)
        if self._prefetches or self._asks:
            self._consult(demand)

    def _judge(self, fact: LayerRouted) -> Demand:
        """Tell hits from late ones and misses, lease what is here, settle prefetches (rule 5)."""
        step, layer, chosen, gates = fact[:4]
        residency, transfers, counts = self.residency, self._transfers, self.counts
        loading = residency.loading
        rooms = residency.cache_L[layer].rooms
        staged = residency.staging.rooms
        tokens = dict.fromkeys(chosen, 1)
        if len(tokens) < len(chosen):
            tokens = dict.fromkeys(tokens, 0)
            for expert in chosen:
                tokens[expert] += 1
        if not self._experts_L[layer].issuperset(tokens):
            stray = next(expert for expert in tokens if expert not in self._experts_L[layer])
            raise ProtocolError(f"expert {stray} was chosen in layer {layer}")
        experts = list(tokens)
        here = list(filter(rooms.__contains__, experts))
        late: list[int] = []
        misses: list[int] = []
        if len(here) < len(experts):
            if staged:
                here = [e for e in experts if e in rooms or e in staged]
            misses = [e for e in experts if e not in rooms and e not in staged]
        hits = here
        if loading:
            late = [expert for expert in here if expert in loading]
            hits = [expert for expert in here if expert not in loading] if late else here
        residency.leased.update(dict.fromkeys(here, 0))
        if late or transfers.unused:
            transfers.settle(hits, late)
        if self._wishes:
            self._queue.cancel_layer(layer)
        counts.demands += len(experts)
        counts.hits += len(hits)
        counts.late_hits += len(late)
        counts.misses += len(misses)
        if self._is_decode:
            counts.decode_demands += len(experts)
            counts.decode_hits += len(hits)
        return _new(Demand, (step, layer, experts, tokens, hits, late, (), misses, gates))

    def _carry_out(self, groups: Sequence[Group], demand: Demand) -> None:
        """Hand over the copies that fit, the runs they allow, then wave after wave (rules 4, 7)."""
        waiting = self._copy_misses(groups, demand)
        hits = demand.hits
        handed_over = 0
        for device, experts in groups:
            if experts is hits and not handed_over and device == GPU:
                handed_over = self._run_hits(device, hits, demand.tokens)
            elif device == GPU:
                handed_over += self._run_on_gpu(device, experts, demand.tokens)
            else:
                handed_over += self._run_on_cpu(device, experts, demand.tokens)
        while waiting:
            self.counts.waves += 1
            waiting = self._next_wave(waiting)
            for device, experts in groups:
                if device == GPU:
                    handed_over += self._run_on_gpu(device, experts, demand.tokens)
        if handed_over != len(demand.tokens):
            raise self._no_partition(groups, demand)

    def _copy_misses(self, groups: Sequence[Group], demand: Demand) -> list[tuple[int, Pool]]:
        """Hand over the copies of what runs on the GPU; return those that found no room."""
        on_cpu: list[int] = []
        planned = 0
        for device, experts in groups:
            planned += len(experts)
            if device is GPU or device == GPU:
                continue
            if device == CPU:
                on_cpu += experts
            else:
                raise CapabilityError(
                    f"{type(self._schedule).__name__} plans for {device}; there are {GPU} and {CPU}"
                )
        if planned != len(demand.tokens):
            raise self._no_partition(groups, demand)
        misses = demand.misses
        if on_cpu:
            misses = [expert for expert in misses if expert not in on_cpu]
        transfers = self._transfers
        waiting = []
        for expert in misses:
            pool = transfers.choose_pool(expert)
            if not transfers.copy_into(pool, expert, Cause.DEMAND):
                waiting.append((expert, pool))
        return waiting

    def _no_partition(self, groups: Sequence[Group], demand: Demand) -> PolicyError:
        planned = sorted(expert for group in groups for expert in group.experts)
        return PolicyError(
            f"{type(self._schedule).__name__} planned {planned} for layer {demand.layer}, "
            f"which needs each of {sorted(demand.experts)} once"
        )

    def _run_hits(self, device: Device, hits: Sequence[int], tokens: Mapping[int, int]) -> int:
        """Hand over the run of all hits before anything else has run; return how many they are."""
        if not hits:
            return 0
        self._out.number = number = self._out.number + 1
        self.residency.leased.update(dict.fromkeys(hits, number))
        counts = tuple(map(tokens.__getitem__, hits))
        self._out.commands.append(_new(Run, (number, tuple(hits), counts, device, (), 0)))
        return len(hits)

    def _run_on_gpu(self, device: Device, experts: Sequence[int], tokens: Mapping[int, int]) -> int:
        """Hand over the run of those that have room and have not run; return how many they are."""
        leased, loading = self.residency.leased, self.residency.loading
        number = self._out.number + 1
        ready: list[int] = []
        after: list[int] = []
        for expert in experts:
            if leased.get(expert) == 0:
                leased[expert] = number
                ready.append(expert)
                if expert in loading:
                    after.append(loading[expert])
        if ready:
            self._out.number = number
            counts = tuple([tokens[expert] for expert in ready])
            run = _new(Run, (number, tuple(ready), counts, device, tuple(after), 0))
            self._out.commands.append(run)
        return len(ready)

    def _run_on_cpu(self, device: Device, experts: Sequence[int], tokens: Mapping[int, int]) -> int:
        """Hand over a CPU run; return of how many experts."""
        if not experts:
            return 0
        leased = self.residency.leased
        self._out.number = number = self._out.number + 1
        self._cpu_runs.add(number)
        self.counts.cpu_experts += len(experts)
        counts = tuple([tokens.get(expert, 0) for expert in experts])
        self._out.commands.append(Run(number, tuple(experts), counts, device))
        for expert in experts:
            if expert in leased:
                leased[expert] = number
            else:
                self._cache.on_evict(expert, self._view)
        return len(tokens.keys() & set(experts))

    def _next_wave(self, waiting: list[tuple[int, Pool]]) -> list[tuple[int, Pool]]:
        """Give waiting experts the room of members that were handed over, oldest first (rule 7).

        Where prefetches hold all the room they are given up, oldest first: a demand is never
        refused. One that is under way may be, since the copies of one engine end in order.
        """
        leased = self.residency.leased
        members = [(run, expert) for expert, run in leased.items() if run]
        members.sort(key=itemgetter(0))  # those of one run in the order of their demand
        for at, (expert, pool) in enumerate(waiting):
            size = self.residency.size(expert)
            runs = []
            while pool.free_bytes < size:
                member = next((m for m in members if m[1] in pool.rooms), None)
                if member is not None:
                    members.remove(member)
                    runs.append(member[0])
                    del leased[member[1]]
                    self._transfers.evict(member[1], pool)
                elif at > 0:
                    return waiting[at:]
                else:
                    self._transfers.give_up_prefetch(expert, pool)
            after = tuple(dict.fromkeys(runs))
            self._transfers.copy_into(pool, expert, Cause.DEMAND, after)
        return []

    def _end_event(self) -> None:
        """Release what the last event used: its runs have ended (rules 1 and 3)."""
        residency = self.residency
        residency.leased.clear()
        if residency.staging.rooms and self._view.layer >= 0:
            self._transfers.clear_staging(self._view.layer)

    # Prefetch

    def _consult(self, demand: Demand | None) -> None:
        if self._asks:
            for name, question in self._prefetch.asks(demand, self._view):
                self._out.number += 1
                self._asked.add(self._out.number)
                self._out.commands.append(Ask(self._out.number, name, question))
        for wish in self._prefetch.wants(demand, self._view):
            self._wish(wish.expert, wish.priority)

    def _wish(self, expert: int, priority: float) -> None:
        if not 0 <= expert < self._run.layers * self._experts:
            raise PolicyError(
                f"{type(self._prefetch).__name__} wished for expert {expert}; no such expert"
            )
        if not self.residency.has_room(expert):
            self._queue.put(expert, priority)

    def _answered(self, fact: Answered) -> None:
        if fact.n not in self._asked:
            raise ProtocolError(f"answer {fact.n} ('{fact.name}') to what was not asked")
        self._asked.discard(fact.n)
        for wish in self._prefetch.on_answer(fact.name, fact.value, self._view):
            self._wish(wish.expert, wish.priority)

    # The rest

    def _cpu_run_ended(self, fact: CpuRunEnded) -> None:
        if fact.n not in self._cpu_runs:
            raise ProtocolError(f"CPU run {fact.n} ended but was not under way")
        self._cpu_runs.discard(fact.n)
        if not self._cpu_runs and self._layer_open >= 0:
            self._out.commands.append(LayerDone(self._layer_open))
            self._layer_open = -1

    def _budget_changed(self, fact: BudgetChanged) -> None:
        raise CapabilityError(
            f"the expert budget changed to {fact.budget_bytes} bytes during a run; this controller "
            "keeps the budget it began with"
        )

    def _timer_fired(self, fact: TimerFired) -> None:
        raise ProtocolError(f"timer {fact.n} fired but none was set")

    def _failed(self, fact: Failed) -> None:
        raise MoesimError(f"command {fact.n} failed: {fact.reason}")


def _all_touches(cache: CachePolicy) -> Callable[[Sequence[int], View], None]:
    """Return the hook that takes a whole event's touches.

    The policy's own ``on_touches`` counts if no class derived from it has another ``on_touch``.
    """
    for cls in type(cache).__mro__:
        if "on_touches" in vars(cls):
            return cache.on_touches
        if "on_touch" in vars(cls):
            break
    return lambda experts, view: CachePolicy.on_touches(cache, experts, view)


def _overrides(policy: object, base: type, hook: str) -> bool:
    """Return whether a policy does anything in a hook; those that don't are not called."""
    return getattr(type(policy), hook) is not getattr(base, hook)
