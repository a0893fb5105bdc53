"""The reference driver: carries out a controller's commands in virtual time, on SimPy.

One host process is the only agent (design 4.1 rule 1): it launches, waits for a router, polls,
reports, obeys. GPU, copy engines and CPU workers are servers (``machine.py``) that end jobs by
themselves; nothing follows from an end until the host polls.

Ties: a job that ends at the instant of a poll has ended; departures come before arrivals.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import simpy

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
from moesim.simulator.terms import Place, Tier

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
        self._env = env = simpy.Environment()
        self._gpu = Server(
            env, "gpu", self._ring, self._kernel_ns, self.spans, looks_around=costs.slow_down_ppm > 0
        )
        self._cpu = Server(env, "cpu", self._ring, lambda job, _: job.ns, self.spans)
        self._answerer = Server(env, "asks", self._ring, lambda job, _: job.ns, self.spans)
        self._engines = {
            kind: Server(env, kind, self._ring, self._copy_ns(kind), self.spans)
            for kind in ("h2d", "d2h", "peer", "nvme")
        }
        self._host_free_ns = 0
        self._bell: simpy.Event | None = None
        self._jobs: dict[int, Job] = {}  # copies and runs by number, as long as a command may name them
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
        self._env.run(until=host)
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
            facts.append(
                LayerRouted(
                    step.number, layer, step.choices(layer), step.gates(layer), step.layer_signals(layer)
                )
            )
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
        self._jobs = {n: job for n, job in self._jobs.items() if n in self._copies}
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
        """Wait for the kernel launched last, polling if the controller listens; then read its result."""
        job = self._launched
        assert job is not None
        env = self._env
        while not job.has_ended(env.now):
            if self._controller.listens or self._asks or self._timers:
                facts = self._poll()
                if facts:
                    yield from self._tell(facts)
                else:
                    yield from self._wait()
            else:
                if job.ended is None:
                    job.ended = env.event()
                yield job.ended
        yield from self._work(self._costs.sync_ns + self._costs.poll_ns, "read the router")

    def _wait(self) -> Process:
        self._bell = self._env.event()
        yield self._bell

    def _wait_and_tell(self) -> Process:
        """Wait until something ends and report it, if it is something the controller is told."""
        yield from self._wait()
        facts = self._poll()
        if facts:
            yield from self._tell(facts)

    def _drain(self) -> Process:
        """Wait for copies that are still on their way, so that what moved is what was handed over."""
        while any(not job.has_ended(self._env.now) for job in self._copies.values()):
            yield from self._wait()

    def _ring(self, job: Job) -> None:  # noqa: ARG002  the host looks for itself
        if self._bell is not None:
            self._bell.succeed()
            self._bell = None

    def _work(self, ns: int, name: str) -> Process:
        """Keep the host busy."""
        if ns:
            begins_ns = self._now()
            self.timings.host_busy_ns += ns
            if self.spans is not None:
                self.spans.append(("host", name, begins_ns, begins_ns + ns))
            yield self._env.timeout(ns)

    def _poll(self) -> list[Fact]:
        """Return all that has ended and was not reported: copies, CPU runs, answers, timers."""
        now = self._env.now
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
        commands = self._controller.handle(facts, self._now())
        last = facts[-1]
        experts = len(last.experts) if type(last) is LayerRouted else 0
        decision_ns = self._costs.decision_ns(self._system, experts, len(commands))
        self.timings.decision_ns += decision_ns
        began_ns = self._now()
        if self._costs.decides_on == "host":
            self._host_free_ns = began_ns + decision_ns
        else:
            self._host_free_ns = began_ns
            self._gpu.submit(Job(0, "decide", decision_ns, began_ns))
        for command in commands:
            blocking = self._obey(command)
            if blocking is not None:
                yield from self._catch_up(began_ns)
                if not blocking.has_ended(self._env.now):
                    if blocking.ended is None:
                        blocking.ended = self._env.event()
                    yield blocking.ended
                began_ns = self._host_free_ns = self._now()
        yield from self._catch_up(began_ns)

    def _catch_up(self, began_ns: int) -> Process:
        yield from self._work(self._host_free_ns - began_ns, "decide and issue")

    def _obey(self, command: Command) -> Job | None:
        """Carry out one command; return a copy that blocks the host, if it does."""
        kind = type(command)
        if kind is Copy or kind is Move:
            return self._copy(command)  # type: ignore[arg-type]  the two share their fields
        if kind is Run:
            self._run(command)  # type: ignore[arg-type]
        elif kind is LayerDone:
            layer = command.layer  # type: ignore[union-attr]
            self._layer_done = layer
            self._launch_layer(layer + 1)
        elif kind is FormStep:
            self._form = command  # type: ignore[assignment]
        elif kind is Ask:
            self._ask(command)  # type: ignore[arg-type]
        elif kind is WakeAt:
            self._wake_at(command)  # type: ignore[arg-type]
        elif kind not in (Wait, Drop, Reroute):
            raise CapabilityError(f"the simpy engine does not carry out {kind.__name__}")
        return None

    def _copy(self, command: Copy | Move) -> Job | None:
        costs = self._costs
        size = self._expert_bytes(command.expert, command.part)
        self._host_free_ns += costs.copy_issue_ns(1)
        engine = self._engines[_engine_of(command.src, command.dst)]
        after = self._named(command.after)
        job = Job(command.n, command, 0, self._host_free_ns, after, size)
        self._jobs[command.n] = self._copies[command.n] = job
        engine.submit(job)
        return job if costs.copies_block_host else None

    def _run(self, command: Run) -> None:
        costs = self._costs
        layer = command.experts[0] // self._workload.experts
        self._host_free_ns += costs.launch_run_ns(len(command.experts))
        after = self._named(command.after)
        if command.device.kind == "gpu":
            ns = costs.experts_gpu_ns(layer, command.tokens)
            job = Job(command.n, command, ns, self._host_free_ns, after)
            self._gpu.submit(job)
        else:
            ns = sum(costs.expert_cpu_ns(layer, tokens) for tokens in command.tokens)
            job = Job(command.n, command, ns, self._host_free_ns, after)
            self._cpu.submit(job)
            self._cpu_runs[command.n] = job
        self._jobs[command.n] = job

    def _launch_layer(self, layer: int) -> None:
        """Launch attention and router of a layer, or past the last layer what makes the token."""
        step, costs = self._step, self._costs
        assert step is not None
        self._host_free_ns += costs.launch_layer_ns
        if layer < self._workload.layers:
            ns = costs.attention_ns(layer, step.tokens, step.context_tokens, len(step.requests))
            self._launched = Job(0, layer, ns, self._host_free_ns)
        else:
            ns = costs.head_ns(sum(step.tokens_out) or 1)
            self._launched = Job(0, "head", ns, self._host_free_ns)
        self._gpu.submit(self._launched)

    def _ask(self, command: Ask) -> None:
        if self._compute is None or command.name not in self._ask_ns:
            raise CapabilityError(f"no cost is known for the ask '{command.name}'; give its time in ns")
        job = Job(command.n, command.name, self._ask_ns[command.name], self._host_free_ns)
        self._asks[command.n] = (job, command)
        self._answerer.submit(job)

    def _wake_at(self, command: WakeAt) -> None:
        self._timers[command.n] = command.at_ns
        delay_ns = max(0, command.at_ns - self._now())
        self._env.timeout(delay_ns).callbacks.append(lambda _: self._ring(Job(0, "timer", 0, 0)))

    # Times

    def _now(self) -> int:
        return int(self._env.now)

    def _named(self, numbers: Sequence[int]) -> Sequence[Job]:
        if not numbers:
            return ()
        try:
            return [self._jobs[n] for n in numbers]
        except KeyError as error:
            raise ProtocolError(f"a command waits for {error.args[0]}, which was not handed over") from None

    def _kernel_ns(self, job: Job, begins_ns: int) -> int:
        if self._costs.slow_down_ppm and self._engines["h2d"].is_busy_at(begins_ns):
            return self._costs.slowed_ns(job.ns)
        return job.ns

    def _copy_ns(self, kind: Any) -> Callable[[Job, int], int]:  # noqa: ANN401
        costs = self._costs

        def duration_ns(job: Job, begins_ns: int) -> int:
            paused = begins_ns - self._engines[kind].last_end_ns > costs.pause_threshold_ns
            return costs.copy_ns(job.size, kind, after_pause=paused)

        return duration_ns


def _engine_of(src: Place, dst: Place) -> str:
    """Return the copy engine that serves a pair of places."""
    if Tier.NVME in (src.tier, dst.tier):
        return "nvme"
    if src.tier is Tier.VRAM and dst.tier is Tier.VRAM:
        return "peer"
    return "h2d" if dst.tier is Tier.VRAM else "d2h"
