"""The hands of the host: they obey commands by handing jobs to the modelled machine.

Each command takes the host's time to issue; what is handed over begins and ends by itself
(``machine.py``). Nothing here waits: when time passes is the host's business (``host.py``).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from moesim.simulator.costs import CopyKind, CostModel
from moesim.simulator.demands import Step
from moesim.simulator.errors import CapabilityError, ProtocolError
from moesim.simulator.ledger import Timings
from moesim.simulator.machine import FOREVER, Ends, Gpu, Kind, Server, Span
from moesim.simulator.messages import (
    Ask,
    Command,
    Copy,
    FormStep,
    LayerDone,
    Move,
    Run,
    WakeAt,
)
from moesim.simulator.terms import GPU, RAM, Place, Tier

_MEMO_ENTRIES = 4096


class SizeOf(Protocol):
    """Bytes of an expert part."""

    def __call__(self, expert: int, part: int, /) -> int:
        """Return the bytes of one part of an expert."""
        ...


class Hands:
    """Commands in, jobs out.

    Args:
        costs: How long things take.
        layers: MoE layers of the model.
        experts: Experts of each.
        expert_bytes: Bytes of one expert part, by expert and part.
        ask_ns: How long each kind of ask takes.
        spans: Where to note every job, if anywhere.

    Attributes:
        free_ns: When the host has issued all that it was told to.
        gpu: The compute stream.
        cpu: The workers that compute experts.
        answerer: Whoever answers asks; ``asks`` holds those without an answer.
        copying: The copy engines in use.
        timers: When to wake, by number.
        form: The step to begin next.
        launched: The number of the attention or head launched last.
        layer_done: The layer closed last.
        step: The step being served.
    """

    def __init__(
        self,
        costs: CostModel,
        layers: int,
        experts: int,
        expert_bytes: SizeOf,
        ask_ns: Mapping[str, int],
        spans: list[Span] | None,
    ) -> None:
        self.free_ns = 0
        self.copying: list[Server] = []
        self.asks: dict[int, Ask] = {}
        self.timers: dict[int, int] = {}
        self.form: FormStep | None = None
        self.launched = 0
        self.layer_done = -1
        self.step: Step | None = None
        self._costs = costs
        self._layers = layers
        self._experts = experts
        self._expert_bytes = expert_bytes
        self._ask_ns = ask_ns
        self._issue_ns = costs.copy_issue_ns(1)
        self._run_ns: dict[tuple[int, tuple[int, ...]], int] = {}
        self._unnamed = 0  # kernels that no command can name have numbers below zero
        self._ends: Ends = {}
        self.waiting: list[Server] = []
        slows = costs.slow_down_ppm > 0
        engines: dict[str, Server] = {}
        kinds: tuple[CopyKind, ...] = ("h2d", "d2h", "peer", "nvme")
        for kind in kinds:
            engines[kind] = Server(
                kind,
                _copy_ns(costs, kind),
                self._ends,
                self.waiting,
                spans,
                is_observed=slows and kind == "h2d",
            )
        self._engines = engines
        self._h2d = engines["h2d"]
        self.cpu = Server("cpu", lambda ns, _: ns, self._ends, self.waiting, spans)
        self.answerer = Server("asks", lambda ns, _: ns, self._ends, self.waiting, spans)
        slowed_ns = costs.slowed_ns if slows else None
        self.gpu = Gpu(self._h2d, slowed_ns, self._ends, self.waiting, spans)

    # Obeying

    def obey(self, commands: Iterator[Command]) -> int | None:
        """Obey commands in their order, up to a copy that holds the host.

        Returns:
            The number of that copy; the commands after it are left. None once all are obeyed.
        """
        for command in commands:
            if isinstance(command, Run):
                self._run(command)
            elif isinstance(command, Copy | Move):
                self._copy(command)
                if self._costs.copies_block_host:
                    return command.n
            elif isinstance(command, LayerDone):
                self.layer_done = command.layer
                self.launch_layer(command.layer + 1)
            elif isinstance(command, FormStep):
                self.form = command
            elif isinstance(command, Ask):
                self._ask(command)
            elif isinstance(command, WakeAt):
                self.timers[command.n] = command.at_ns
        return None

    def _copy(self, command: Copy | Move) -> None:
        n, expert, part, src, dst = command[:5]
        after = command.after
        self.free_ns += self._issue_ns
        engine = self._h2d if src is RAM else self._engines[_engine_of(src, dst)]
        if engine not in self.copying:
            self.copying.append(engine)
        if after:
            self._check_named(after)
        engine.submit(n, command, self._expert_bytes(expert, part), self.free_ns, after)

    def _run(self, command: Run) -> None:
        n, experts, tokens, device, after, _ = command
        costs = self._costs
        layer = experts[0] // self._experts
        self.free_ns += costs.launch_run_ns(len(experts))
        if after:
            self._check_named(after)
        if device is GPU or device.kind == "gpu":
            ns = self._run_ns.get((layer, tokens))
            if ns is None:
                if len(self._run_ns) >= _MEMO_ENTRIES:
                    self._run_ns.clear()
                ns = self._run_ns[layer, tokens] = costs.experts_gpu_ns(layer, tokens)
            self.gpu.submit(n, Kind.EXPERTS, command, ns, self.free_ns, after)
        else:
            ns = costs.experts_cpu_ns(layer, tokens)
            self.cpu.submit(n, command, ns, self.free_ns, after)

    def _ask(self, command: Ask) -> None:
        if command.name not in self._ask_ns:
            raise CapabilityError(
                f"no cost is known for the ask '{command.name}'; give its time in ns"
            )
        self.asks[command.n] = command
        self.answerer.submit(command.n, command.name, self._ask_ns[command.name], self.free_ns)

    def launch_layer(self, layer: int) -> None:
        """Launch attention and router of a layer, or past the last layer what makes the token."""
        step, costs = self.step, self._costs
        assert step is not None
        self.free_ns += costs.launch_layer_ns
        self._unnamed = self.launched = self._unnamed - 1
        if layer < self._layers:
            ns = costs.attention_ns(layer, step.tokens, step.context_tokens, len(step.requests))
            self.gpu.submit(self.launched, Kind.DENSE, layer, ns, self.free_ns)
        else:
            ns = costs.head_ns(sum(step.tokens_out) or 1)
            self.gpu.submit(self.launched, Kind.HEAD, "head", ns, self.free_ns)

    def decide_on_gpu(self, ns: int) -> None:
        """Have the GPU busy with a decision."""
        self._unnamed -= 1
        self.gpu.submit(self._unnamed, Kind.DECIDE, "decide", ns, self.free_ns)

    # What has ended, and what will

    def settle(self, now_ns: int) -> None:
        """See what has become certain by a time, or by what was issued ahead of it."""
        self.gpu.settle(max(now_ns, self.free_ns))

    def commit(self, n: int) -> int:
        """Return when a job ends, now that the host hands over nothing more before that."""
        ends_ns = self._ends[n]
        if ends_ns is None:
            self.gpu.settle(FOREVER, n)
            ends_ns = self._ends[n]
            assert ends_ns is not None
        return ends_ns

    def ends_ns(self, n: int) -> int | None:
        """Return when a job ends, or None if that is not certain."""
        return self._ends[n]

    def next_end_ns(self, now_ns: int) -> list[int]:
        """Return when the servers' next jobs end, and when there is something to look at."""
        found = [server.next_end_ns() for server in (*self.copying, self.cpu, self.answerer)]
        found += [self.gpu.looks_at_ns, *self.timers.values()]
        return [at_ns for at_ns in found if at_ns is not None and at_ns > now_ns]

    def end_step(self) -> None:
        """Forget all jobs that no command may name any more: all but those under way."""
        ends = self._ends
        servers = (*self.copying, self.cpu, self.answerer)
        kept = {n: ends[n] for server in servers for n in server.unreported}
        ends.clear()
        ends.update(kept)

    def drain(self) -> int:
        """Let everything that was handed over end, and return when that is."""
        self.gpu.settle(FOREVER)
        servers = (self.cpu, self.answerer, *self._engines.values())
        return max(self.gpu.free_ns, *(server.free_ns for server in servers))

    def measure(self, timings: Timings) -> None:
        """Enter what the machine did."""
        gpu = self.gpu
        timings.gpu_busy_ns = sum(gpu.busy_ns)
        timings.dense_busy_ns = gpu.busy_ns[Kind.DENSE]
        timings.experts_busy_ns = gpu.busy_ns[Kind.EXPERTS]
        timings.head_busy_ns = gpu.busy_ns[Kind.HEAD]
        timings.slow_down_ns = gpu.slow_down_ns
        timings.cpu_busy_ns = self.cpu.busy_ns
        for kind, engine in self._engines.items():
            timings.engines_busy_ns[kind] = engine.busy_ns
            timings.engine_bytes[kind] = engine.work
            timings.engine_copies[kind] = engine.jobs

    def _check_named(self, numbers: tuple[int, ...]) -> None:
        for n in numbers:
            if n not in self._ends:
                raise ProtocolError(f"a command waits for {n}, which was not handed over")


def _copy_ns(costs: CostModel, kind: CopyKind) -> Callable[[int, int], int]:
    """Return the duration of a copy from its bytes and the idle time before it."""
    known: dict[tuple[int, bool], int] = {}

    def duration_ns(size: int, idle_ns: int) -> int:
        key = size, idle_ns > costs.pause_threshold_ns
        ns = known.get(key)
        if ns is None:
            ns = known[key] = costs.copy_ns(size, kind, after_pause=key[1])
        return ns

    return duration_ns


def _engine_of(src: Place, dst: Place) -> str:
    """Return the copy engine that serves a pair of places."""
    if Tier.NVME in (src.tier, dst.tier):
        return "nvme"
    if src.tier is Tier.VRAM and dst.tier is Tier.VRAM:
        return "peer"
    return "h2d" if dst.tier is Tier.VRAM else "d2h"
