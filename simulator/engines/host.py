"""The host program that every engine of virtual time carries out; they differ in how time passes.

One host is the only agent (design 4.1 rule 1): it launches, waits for a router, polls, reports,
obeys. GPU, copy engines and CPU workers end jobs by themselves (``machine.py``); nothing follows
from an end until the host polls.

Ties: a job that ends at the instant of a poll has ended; departures come before arrivals.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from moesim.simulator.choices import tokens_of
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.dram import DramHands
from moesim.simulator.engines.hands import Hands, SizeOf
from moesim.simulator.engines.machine import FOREVER, Span
from moesim.simulator.engines.repeats import Repeats
from moesim.simulator.errors import ProtocolError
from moesim.simulator.gpus.hands import GpusHands
from moesim.simulator.gpus.plan import GpuPlan
from moesim.simulator.ledger import RequestTimes, Timings
from moesim.simulator.messages import (
    Answered,
    Command,
    CopiesEnded,
    CopyEnded,
    CpuRunEnded,
    Fact,
    LayerRouted,
    Order,
    Report,
    RunBegan,
    StepBegan,
    StepEnded,
    TimerFired,
    commands_one_by_one,
    count_commands,
)
from moesim.simulator.serving.desk import Desk, Terms
from moesim.simulator.workload.demands import Step, Workload

_new = tuple.__new__  # half the time of CopiesEnded(...), which is Python


class Deciding(Protocol):
    """What a driver needs of a controller."""

    @property
    def listens(self) -> bool:
        """Whether the end of a copy could be answered before the next router has run."""
        ...

    def initial(self) -> tuple[int, ...]:
        """Return the experts to place before time zero."""
        ...

    def handle(self, facts: list[Fact], now_ns: int) -> list[Command]:
        """Take in facts and return commands."""
        ...


class Host(ABC):
    """One run of one workload on one modelled machine.

    Args:
        controller: What decides.
        workload: What is served.
        costs: How long things take.
        expert_bytes: Bytes of one expert part, by expert and part.
        budget_bytes: Room for experts in VRAM, told to the controller when the run begins.
        system: Whose decision time to charge.
        compute: Answers an ask; a pure function.
        ask_ns: How long each kind of ask takes.
        on_step: Called after every step with the number of tokens processed; for progress.
        keep_spans: Whether to note every job for a timeline (8 to 29 % slower).
        terms: On which terms requests are served; None serves whoever comes.
        on_request: Takes the times of each request that has ended, which are then not kept.
        splits: Whether experts run in parts.
        gpus: How the run is spread over several GPUs; None if there is one.

    Attributes:
        now_ns: The present.
        timings: What is measured.
        spans: Every job, if kept.
    """

    def __init__(
        self,
        controller: Deciding,
        workload: Workload,
        costs: CostModel,
        *,
        expert_bytes: SizeOf,
        budget_bytes: int,
        system: str = "",
        compute: Callable[[str, Any], Any] | None = None,
        ask_ns: Mapping[str, int] | None = None,
        on_step: Callable[[int], None] | None = None,
        keep_spans: bool = False,
        terms: Terms | None = None,
        on_request: Callable[[RequestTimes], None] | None = None,
        splits: bool = False,
        gpus: GpuPlan | None = None,
    ) -> None:
        self.now_ns = 0
        self.timings = Timings()
        self.spans: list[Span] | None = [] if keep_spans else None
        self._controller = controller
        self._workload = workload
        self._costs = costs
        self._budget_bytes = budget_bytes
        self._system = system
        self._compute = compute
        self._on_step = on_step
        self._decides_on_host = costs.decides_on == "host"
        self._reading_ns = costs.sync_ns + costs.poll_ns
        on_one = DramHands if costs.shares_dram else Hands
        self._hands = (on_one if gpus is None else partial(GpusHands, gpus))(
            costs,
            workload.layers,
            workload.experts,
            expert_bytes,
            (ask_ns or {}) if compute is not None else {},
            self.spans,
            splits=splits,
        )
        # A controller that answers in batches is told and asked in batches.
        self._is_batched = hasattr(controller, "decide")
        self._decide: Callable[..., Sequence[Order]] = getattr(
            controller, "decide", controller.handle
        )
        self._takes_batches = self._hands.takes_batches
        is_plain = type(self._hands) is Hands and self._takes_batches and not splits
        self._repeats = (
            Repeats(self._hands, costs, self.timings)
            if is_plain and self._decides_on_host
            else None
        )
        self._is_single = False  # whether the step is of one token
        self._desk = Desk(workload, terms, on_request)

    @abstractmethod
    def _pass(self, ns: int) -> None:
        """Let time pass: add it to ``now_ns``."""

    def run(self) -> Timings:
        """Serve the whole workload and return what was measured."""
        # Nothing here makes cycles that grow; collecting them costs 6 % of the time.
        collects = gc.isenabled()
        gc.disable()
        try:
            self._serve()
        finally:
            if collects:
                gc.enable()
        timings = self.timings
        timings.span_ns = self.now_ns
        timings.requests, timings.server = self._desk.finished, self._desk.counts
        self._hands.measure(timings)
        return timings

    def _serve(self) -> None:
        hands = self._hands
        facts: list[Fact] = [RunBegan(self._controller.initial(), self._budget_bytes)]
        self._tell(facts + self._desk.arrive(self.now_ns))
        while True:
            if hands.form is not None:
                form, hands.form = hands.form, None
                self._serve_step(self._workload.begin(form))
            elif hands.timers or hands.asks:
                self._wait_and_tell()
            elif self._desk.next_ns is not None:
                since_ns = self.now_ns
                self._wait_for_arrival()
                self.timings.idle_ns += self.now_ns - since_ns
            else:
                break
        last_ns = hands.drain()
        if last_ns > self.now_ns:
            self._pass(last_ns - self.now_ns)

    def _serve_step(self, step: Step) -> None:
        hands = self._hands
        hands.begin_step(step)
        self._is_single = step.tokens == 1
        self._desk.begin(step, self.now_ns)
        self._tell([StepBegan(step.number, step.requests, step.phases, step.signals)])
        hands.free_ns = self.now_ns
        hands.launch_layer(0)
        self._catch_up()
        self._await_kernel()
        for layer in range(self._workload.layers):
            facts = self._poll()
            facts.append(hands.routed(step.routed(layer)))
            self._serve_layer(layer, facts)
        self._end_step(step)

    def _serve_layer(self, layer: int, facts: list[Report]) -> None:
        """Tell what a router has chosen, and obey until the next attention (or head) has ended."""
        hands, controller, repeats = self._hands, self._controller, self._repeats
        orders = self._decide(facts, self.now_ns)
        # Of layers of several tokens hardly two are alike: to look costs more than it finds.
        may_repeat = repeats is not None and not controller.listens and self._is_single
        if repeats is not None and may_repeat:
            took_ns = repeats.serve(layer, orders, self.now_ns)
            if took_ns is not None:
                self._work(self._reading_ns, "read the router", took_ns)
                return
        hands.layer_done = -1
        self._obey(orders, facts)
        issued_ns = self.now_ns
        while hands.layer_done != layer:
            if not (hands.cpu.unreported or controller.listens or hands.asks):
                raise ProtocolError(f"layer {layer} waits for nothing and is not done")
            self._wait_and_tell()
        self._await_kernel()
        if repeats is not None and may_repeat:
            repeats.learn(layer, orders, issued_ns, self.now_ns)

    def _end_step(self, step: Step) -> None:
        facts = self._poll()
        facts.append(StepEnded(step.number, step.tokens_out))
        self._hands.end_step()
        facts += self._desk.end_step(step, self.now_ns)
        peak = max(self.timings.peak_context_tokens, step.context_tokens)
        self.timings.peak_context_tokens = peak
        if self._on_step is not None:
            self._on_step(step.tokens)
        self._tell(facts)

    # Waiting and polling

    def _await_kernel(self) -> None:
        """Wait for the kernel launched last, polling if the controller listens, and read it."""
        hands = self._hands
        kernel = hands.launched
        while self._controller.listens or hands.asks or hands.timers:
            facts = self._poll()
            if facts:
                self._tell(facts)
            elif not self._wait(kernel):
                break
        waited_ns = max(0, hands.commit(kernel) - self.now_ns)
        self._work(self._reading_ns, "read the router", waited_ns)

    def _wait(self, kernel: int | None = None) -> bool:
        """Sleep until something that could be reported ends, or there is something to look at.

        Returns:
            False, without having slept, if the kernel named has ended.
        """
        hands, now_ns = self._hands, self.now_ns
        hands.settle(now_ns)
        wakes_ns = hands.next_end_ns(now_ns)
        arrives_ns = self._desk.next_ns
        if arrives_ns is not None and now_ns < arrives_ns < wakes_ns:
            wakes_ns = arrives_ns
        ends_ns = None if kernel is None else hands.ends_ns(kernel)
        if ends_ns is not None:
            if ends_ns <= now_ns:
                return False
            wakes_ns = min(wakes_ns, ends_ns)
        if wakes_ns == FOREVER:
            raise ProtocolError("the host waits for nothing that will end")
        self._pass(wakes_ns - now_ns)
        return True

    def _wait_for_arrival(self) -> None:
        """Idle until a request arrives, or until something ends that the controller listens to."""
        arrives_ns = self._desk.next_ns
        if arrives_ns is None or self._controller.listens:
            self._wait_and_tell()
            return
        if arrives_ns > self.now_ns:
            self._pass(arrives_ns - self.now_ns)
        if facts := self._poll():
            self._tell(facts)

    def _wait_and_tell(self) -> None:
        """Wait until something ends and report it, if it is something the controller is told."""
        facts = self._poll()
        if not facts:
            self._wait()
            facts = self._poll()
        if facts:
            self._tell(facts)

    def _poll(self) -> list[Report]:
        """Return all that has happened and was not reported: ends, answers, timers, arrivals."""
        hands, now_ns = self._hands, self.now_ns
        if hands.waiting:
            hands.settle(now_ns)
        copies = hands.take_copies(now_ns)
        facts: list[Report] = []
        if copies:
            facts += [_new(CopiesEnded, (copies,))] if self._is_batched else map(CopyEnded, copies)
        if hands.cpu.unreported:
            facts += [CpuRunEnded(n) for n in hands.cpu.take_ended(now_ns)]
        if hands.asks:
            for n in hands.answerer.take_ended(now_ns):
                ask = hands.asks.pop(n)
                assert self._compute is not None
                facts.append(Answered(n, ask.name, self._compute(ask.name, ask.question)))
        if hands.timers:
            for n in [n for n, at_ns in hands.timers.items() if at_ns <= now_ns]:
                del hands.timers[n]
                facts.append(TimerFired(n))
        arrives_ns = self._desk.next_ns
        if arrives_ns is not None and arrives_ns <= now_ns:
            facts += self._desk.arrive(now_ns)
        return facts

    # Telling

    def _tell(self, facts: Sequence[Report]) -> None:
        """Report, and obey."""
        self._obey(self._decide(facts, self.now_ns), facts)

    def _obey(self, orders: Sequence[Order], facts: Sequence[Report]) -> None:
        """Let deciding on facts take its time, and obey; issuing each command takes its own."""
        hands, now_ns = self._hands, self.now_ns
        last = facts[-1]
        experts = len(tokens_of(last.experts)) if type(last) is LayerRouted else 0
        decision_ns = self._costs.decision_ns(self._system, experts, count_commands(orders))
        self.timings.decision_ns += decision_ns
        hands.free_ns = now_ns
        if self._decides_on_host:
            hands.free_ns += decision_ns
        else:
            hands.decide_on_gpu(decision_ns)
        rest = iter(orders) if self._takes_batches else commands_one_by_one(orders)
        while (holding := hands.obey(rest)) is not None:
            self._catch_up()
            ends_ns = hands.commit(holding)
            if ends_ns > self.now_ns:
                self._pass(ends_ns - self.now_ns)
            hands.free_ns = self.now_ns
        self._catch_up()

    def _catch_up(self) -> None:
        """Let the time pass that deciding and issuing took."""
        busy_ns = self._hands.free_ns - self.now_ns
        if busy_ns:
            self._work(busy_ns, "decide and issue")

    def _work(self, ns: int, name: str, after_ns: int = 0) -> None:
        """Let the time pass in which the host is busy, now or after a while of waiting."""
        self.timings.host_busy_ns += ns
        if self.spans is not None and ns:
            begins_ns = self.now_ns + after_ns
            self.spans.append(("host", name, begins_ns, begins_ns + ns))
        self._pass(after_ns + ns)
