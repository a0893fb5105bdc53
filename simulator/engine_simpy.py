"""The reference driver: carries out a controller's commands in virtual time, on SimPy.

One host process is the only agent (design 4.1 rule 1): it launches, waits for a router, polls,
reports, obeys. GPU, copy engines and CPU workers are servers (``machine.py``) that end jobs by
themselves; nothing follows from an end until the host polls.

Ties: a job that ends at the instant of a poll has ended; departures come before arrivals.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import simpy
from simpy.events import Timeout

from moesim.simulator.costs import CostModel
from moesim.simulator.demands import Step, Workload
from moesim.simulator.errors import CapabilityError, ProtocolError
from moesim.simulator.ledger import RequestTimes, Timings
from moesim.simulator.machine import Job, Process, Server, Span
from moesim.simulator.messages import (
    Answered,
    Ask,
    Command,
    Copy,
    CopyEnded,
    CpuRunEnded,
    Drop,
    Fact,
    FormStep,
    LayerDone,
    LayerRouted,
    Move,
    RequestArrived,
    RequestEnded,
    Reroute,
    Run,
    RunBegan,
    StepBegan,
    StepEnded,
    TimerFired,
    Wait,
    WakeAt,
)
from moesim.simulator.terms import GPU, RAM, Place, Tier

__all__ = ["SimpyEngine"]


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


class SimpyEngine:
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
    """

    def __init__(
        self,
        controller: Deciding,
        workload: Workload,
        costs: CostModel,
        *,
        expert_bytes: Callable[[int, int], int],
        budget_bytes: int,
        system: str = "",
        compute: Callable[[str, Any], Any] | None = None,
        ask_ns: Mapping[str, int] | None = None,
        on_step: Callable[[int], None] | None = None,
        keep_spans: bool = False,
    ) -> None:
        self.timings = Timings()
        self.spans: list[Span] | None = [] if keep_spans else None
        self._controller = controller
        self._workload = workload
        self._costs = costs
        self._expert_bytes = expert_bytes
        self._budget_bytes = budget_bytes
        self._system = system
        self._compute = compute
        self._ask_ns = ask_ns or {}
        self._on_step = on_step
        self._env = simpy.Environment()
        self._gpu = Server("gpu", self._kernel_ns, self.spans)
        self._cpu = Server("cpu", lambda job, _: job.ns, self.spans)
        self._answerer = Server("asks", lambda job, _: job.ns, self.spans)
        self._engines = {
            kind: Server(
                kind,
                self._copy_ns(kind),
                self.spans,
                is_observed=kind == "h2d" and costs.slow_down_ppm > 0,
            )
            for kind in ("h2d", "d2h", "peer", "nvme")
        }
        self._h2d = self._engines["h2d"]
        self._copy_issue_ns = costs.copy_issue_ns(1)
        self._obey: Mapping[type, Callable[[Any], Job | None]] = {
            Copy: self._copy,
            Move: self._copy,
            Run: self._run,
            LayerDone: self._layer_is_done,
            FormStep: self._form_step,
            Ask: self._ask,
            WakeAt: self._wake_at,
            Wait: self._nothing,
            Drop: self._nothing,
            Reroute: self._nothing,
        }
        self._host_free_ns = 0
        self._is_committed = False
        self._jobs: dict[
            int, Job
        ] = {}  # copies and runs by number, as long as a command may name them
        self._copies: dict[int, Job] = {}  # handed over and not yet reported
        self._cpu_runs: dict[int, Job] = {}
        self._asks: dict[int, tuple[Job, Ask]] = {}
        self._timers: dict[int, int] = {}
        self._step: Step | None = None
        self._form: FormStep | None = None
        self._launched: Job | None = None
        self._layer_done = -1
        self._arrivals = 0
        self._times: dict[int, RequestTimes] = {}

    def run(self) -> Timings:
        """Serve the whole workload and return what was measured."""
        host = self._env.process(self._host())
        # Nothing here makes cycles that grow; collecting them costs 6 % of the time.
        collects = gc.isenabled()
        gc.disable()
        try:
            self._env.run(until=host)
        finally:
            if collects:
                gc.enable()
        timings = self.timings
        timings.span_ns = int(self._env.now)
        timings.gpu_busy_ns = self._gpu.busy_ns
        timings.cpu_busy_ns = self._cpu.busy_ns
        for kind, engine in self._engines.items():
            timings.engines_busy_ns[kind] = engine.busy_ns
            timings.engine_bytes[kind] = engine.bytes
            timings.engine_copies[kind] = engine.jobs
        return timings

    # The host

    def _host(self) -> Process:
        residents = self._controller.initial()
        facts: list[Fact] = [RunBegan(residents, self._budget_bytes)]
        facts += self._next_arrival()
        yield from self._tell(facts)
        while True:
            if self._form is not None:
                form, self._form = self._form, None
                yield from self._serve_step(self._workload.begin(form))
            elif self._timers or self._asks:
                yield from self._wait_and_tell()
            else:
                break
        yield from self._drain()

    def _serve_step(self, step: Step) -> Process:
        self._step = step
        controller, now = self._controller, self._now
        for request in step.requests:
            if self._times[request].began_ns < 0:
                self._times[request].began_ns = now()
        yield from self._tell([StepBegan(step.number, step.requests, step.phases, step.signals)])
        began_ns = self._host_free_ns = now()
        self._launch_layer(0)
        yield from self._catch_up(began_ns)
        for layer in range(self._workload.layers):
            yield from self._await_kernel()
            facts = self._poll()
            facts.append(step.routed(layer))
            self._layer_done = -1
            yield from self._tell(facts)
            while self._layer_done != layer:
                if not (self._cpu_runs or controller.listens or self._asks):
                    raise ProtocolError(f"layer {layer} waits for nothing and is not done")
                yield from self._wait_and_tell()
        yield from self._await_kernel()
        yield from self._end_step(step)

    def _end_step(self, step: Step) -> Process:
        facts = self._poll()
        facts.append(StepEnded(step.number, step.tokens_out))
        self._jobs = dict(self._copies)
        now = self._now()
        for request, gives, phase in zip(step.requests, step.tokens_out, step.phases, strict=True):
            times = self._times[request]
            if gives:
                times.token_ends_ns.append(now)
                times.has_first_token |= phase == 0
            if self._workload.is_finished(request):
                self.timings.requests.append(self._times.pop(request))
                facts.append(RequestEnded(request))
                facts += self._next_arrival()
        peak = max(self.timings.peak_context_tokens, step.context_tokens)
        self.timings.peak_context_tokens = peak
        if self._on_step is not None:
            self._on_step(step.tokens)
        yield from self._tell(facts)

    def _next_arrival(self) -> list[Fact]:
        """Let the next request arrive: one user, who asks again once answered."""
        request = self._arrivals
        if request >= self._workload.requests:
            return []
        self._arrivals += 1
        prompt_tokens = self._workload.prompt_tokens(request)
        self._times[request] = RequestTimes(request, self._now(), -1, prompt_tokens)
        return [RequestArrived(request, prompt_tokens, self._workload.task(request))]

    def _await_kernel(self) -> Process:
        """Wait for the kernel launched last, polling if the controller listens, and read it."""
        job, costs = self._launched, self._costs
        assert job is not None
        reading_ns = costs.sync_ns + costs.poll_ns
        while self._controller.listens or self._asks or self._timers:
            facts = self._poll()
            if facts:
                yield from self._tell(facts)
            elif job.has_ended(self._now()):
                break
            else:
                yield from self._wait(job)
        waited_ns = max(0, self._commit(job) - self._now())
        self._note_work(reading_ns, "read the router", waited_ns)
        yield Timeout(self._env, waited_ns + reading_ns)

    def _commit(self, job: Job) -> int:
        """Return when a job ends, now that the host hands over nothing more before that."""
        self._is_committed = True
        while self._gpu.looks_at_ns is not None:
            self._gpu.look()
        self._is_committed = False
        assert job.ends_ns is not None
        return job.ends_ns

    def _wait(self, job: Job | None = None) -> Process:
        """Sleep until something that could be reported ends, or there is something to look at."""
        self._look()
        now = self._now()
        watched = [*self._copies.values(), *self._cpu_runs.values()]
        watched += [asked for asked, _ in self._asks.values()]
        if job is not None:
            watched.append(job)
        times = [w.ends_ns for w in watched if w.ends_ns is not None and w.ends_ns > now]
        times += [at_ns for at_ns in self._timers.values() if at_ns > now]
        if self._gpu.looks_at_ns is not None:
            times.append(self._gpu.looks_at_ns)
        if not times:
            raise ProtocolError("the host waits for nothing that will end")
        yield Timeout(self._env, min(times) - now)
        self._look()

    def _look(self) -> None:
        """See what was not certain before this time."""
        while self._gpu.looks_at_ns is not None and self._gpu.looks_at_ns <= self._env.now:
            self._gpu.look()

    def _wait_and_tell(self) -> Process:
        """Wait until something ends and report it, if it is something the controller is told."""
        facts = self._poll()
        if not facts:
            yield from self._wait()
            facts = self._poll()
        if facts:
            yield from self._tell(facts)

    def _drain(self) -> Process:
        """Let everything that was handed over end, so that what moved is what was decided."""
        servers = (self._gpu, self._cpu, self._answerer, *self._engines.values())
        if self._launched is not None:
            self._commit(self._launched)
        last_ns = max(server.free_ns for server in servers)
        if last_ns > self._now():
            yield Timeout(self._env, last_ns - self._now())

    def _note_work(self, ns: int, name: str, after_ns: int = 0) -> None:
        """Note that the host is busy for a time that begins now, or a while after."""
        self.timings.host_busy_ns += ns
        if self.spans is not None and ns:
            begins_ns = self._now() + after_ns
            self.spans.append(("host", name, begins_ns, begins_ns + ns))

    def _poll(self) -> list[Fact]:
        """Return all that has ended and was not reported: copies, CPU runs, answers, timers."""
        self._look()
        now = self._now()
        facts: list[Fact] = []
        if self._copies:
            ended = [n for n, job in self._copies.items() if job.has_ended(now)]
            for n in ended:
                del self._copies[n]
                facts.append(CopyEnded(n))
        if self._cpu_runs:
            for n in [n for n, job in self._cpu_runs.items() if job.has_ended(now)]:
                del self._cpu_runs[n]
                facts.append(CpuRunEnded(n))
        if self._asks:
            for n in [n for n, (job, _) in self._asks.items() if job.has_ended(now)]:
                _, ask = self._asks.pop(n)
                assert self._compute is not None
                facts.append(Answered(n, ask.name, self._compute(ask.name, ask.question)))
        if self._timers:
            for n in [n for n, at_ns in self._timers.items() if at_ns <= now]:
                del self._timers[n]
                facts.append(TimerFired(n))
        return facts

    # Telling and obeying

    def _tell(self, facts: list[Fact]) -> Process:
        """Report, let the decision take its time, and obey; issuing each command takes its own."""
        began_ns = self._now()
        commands = self._controller.handle(facts, began_ns)
        last = facts[-1]
        experts = len(set(last.experts)) if type(last) is LayerRouted else 0
        decision_ns = self._costs.decision_ns(self._system, experts, len(commands))
        self.timings.decision_ns += decision_ns
        if self._costs.decides_on == "host":
            self._host_free_ns = began_ns + decision_ns
        else:
            self._host_free_ns = began_ns
            self._gpu.submit(Job("decide", decision_ns, began_ns))
        for command in commands:
            blocking = self._obey[type(command)](command)
            if blocking is not None:
                yield from self._catch_up(began_ns)
                ends_ns = self._commit(blocking)
                if ends_ns > self._now():
                    yield Timeout(self._env, ends_ns - self._now())
                began_ns = self._host_free_ns = self._now()
        yield from self._catch_up(began_ns)

    def _catch_up(self, began_ns: int) -> Process:
        """Let the time pass that deciding and issuing took."""
        busy_ns = self._host_free_ns - began_ns
        if busy_ns:
            self._note_work(busy_ns, "decide and issue")
            yield Timeout(self._env, busy_ns)

    def _layer_is_done(self, command: LayerDone) -> None:
        self._layer_done = command.layer
        self._launch_layer(command.layer + 1)

    def _form_step(self, command: FormStep) -> None:
        self._form = command

    def _nothing(self, command: Command) -> None:
        """Obey what takes no time and moves nothing: a wait, a drop, a reroute already judged."""

    def _copy(self, command: Copy | Move) -> Job | None:
        n, expert, part, src, dst = command[:5]
        self._host_free_ns += self._copy_issue_ns
        after = self._named(command.after) if command.after else ()
        job = Job(command, 0, self._host_free_ns, after, self._expert_bytes(expert, part))
        self._jobs[n] = self._copies[n] = job
        engine = self._h2d if src is RAM else self._engines[_engine_of(src, dst)]
        engine.submit(job)
        return job if self._costs.copies_block_host else None

    def _run(self, command: Run) -> None:
        costs = self._costs
        n, experts, tokens, device, numbers, _ = command
        layer = experts[0] // self._workload.experts
        self._host_free_ns += costs.launch_run_ns(len(experts))
        after = self._named(numbers) if numbers else ()
        if device is GPU or device.kind == "gpu":
            job = Job(command, costs.experts_gpu_ns(layer, tokens), self._host_free_ns, after)
            self._gpu.submit(job)
        else:
            job = Job(command, costs.experts_cpu_ns(layer, tokens), self._host_free_ns, after)
            self._cpu.submit(job)
            self._cpu_runs[n] = job
        self._jobs[n] = job

    def _launch_layer(self, layer: int) -> None:
        """Launch attention and router of a layer, or past the last layer what makes the token."""
        step, costs = self._step, self._costs
        assert step is not None
        self._host_free_ns += costs.launch_layer_ns
        if layer < self._workload.layers:
            ns = costs.attention_ns(layer, step.tokens, step.context_tokens, len(step.requests))
            self._launched = Job(layer, ns, self._host_free_ns)
        else:
            ns = costs.head_ns(sum(step.tokens_out) or 1)
            self._launched = Job("head", ns, self._host_free_ns)
        self._gpu.submit(self._launched)

    def _ask(self, command: Ask) -> None:
        if self._compute is None or command.name not in self._ask_ns:
            raise CapabilityError(
                f"no cost is known for the ask '{command.name}'; give its time in ns"
            )
        job = Job(command.name, self._ask_ns[command.name], self._host_free_ns)
        self._asks[command.n] = (job, command)
        self._answerer.submit(job)

    def _wake_at(self, command: WakeAt) -> None:
        self._timers[command.n] = command.at_ns

    # Times

    def _now(self) -> int:
        return int(self._env.now)

    def _named(self, numbers: Sequence[int]) -> Sequence[Job]:
        try:
            return [self._jobs[n] for n in numbers]
        except KeyError as error:
            raise ProtocolError(
                f"a command waits for {error.args[0]}, which was not handed over"
            ) from None

    def _kernel_ns(self, job: Job, begins_ns: int) -> int | None:
        """Return a kernel's duration, longer if copies run as it begins (design section 5).

        Whether they do is certain up to the link's last certain end, and up to the time until which
        the host is busy: it hands over nothing more before then.
        """
        ns = job.ns
        if self._costs.slow_down_ppm:
            link = self._h2d
            if link.is_busy_at(begins_ns):
                ns = self._costs.slowed_ns(ns)
            elif (
                begins_ns >= link.free_ns
                and begins_ns > max(self._host_free_ns, self._env.now)
                and not self._is_committed
            ):
                return None
            self.timings.slow_down_ns += ns - job.ns
        if type(job.label) is Run:
            self.timings.experts_busy_ns += ns
        elif type(job.label) is int:
            self.timings.dense_busy_ns += ns
        elif job.label == "head":
            self.timings.head_busy_ns += ns
        return ns

    def _copy_ns(self, kind: Any) -> Callable[[Job, int], int]:  # noqa: ANN401
        costs = self._costs

        def duration_ns(job: Job, begins_ns: int) -> int:
            paused = begins_ns - self._engines[kind].free_ns > costs.pause_threshold_ns
            return costs.copy_ns(job.size, kind, after_pause=paused)

        return duration_ns


def _engine_of(src: Place, dst: Place) -> str:
    """Return the copy engine that serves a pair of places."""
    if Tier.NVME in (src.tier, dst.tier):
        return "nvme"
    if src.tier is Tier.VRAM and dst.tier is Tier.VRAM:
        return "peer"
    return "h2d" if dst.tier is Tier.VRAM else "d2h"
