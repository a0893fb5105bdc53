"""The hands of the host: they obey commands by handing jobs to the modelled machine.

Each command takes the host's time to issue; what is handed over begins and ends by itself
(``machine.py``). Nothing here waits: when time passes is the host's business (``host.py``).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from moesim.simulator.costs import WHOLE_PPM, CopyKind, CostModel
from moesim.simulator.engines.machine import FOREVER, Ends, Gpu, Kind, Server, Span
from moesim.simulator.errors import CapabilityError, ProtocolError
from moesim.simulator.ledger import Timings
from moesim.simulator.messages import (
    Ask,
    Copies,
    Copy,
    FormStep,
    LayerDone,
    LayerRouted,
    Move,
    Order,
    Run,
    Runs,
    WakeAt,
    commands_one_by_one,
)
from moesim.simulator.terms import GPU, RAM, Phase, Place, Tier
from moesim.simulator.workload.demands import Step

_MEMO_ENTRIES = 4096
_MOST_KNOWN = 16
"""Experts of a run whose time is kept; of more hardly two have the same tokens each."""

_ENGINES: Mapping[str, CopyKind] = {
    "h2d": "h2d",
    "d2h": "d2h",
    "peer": "peer",
    "peer_out": "peer",
    "nvme": "nvme",
}
"""The copy engines, and what the copies of each cost; ``peer_out`` is the way to another GPU."""


class SizeOf(Protocol):
    """Bytes of an expert part."""

    def __call__(self, expert: int, part: int, /) -> int:
        """Return the bytes of one part of an expert."""
        ...


class Streams(Protocol):
    """One compute stream, or those of several GPUs."""

    @property
    def free_ns(self) -> int:
        """When the last kernel whose times are certain ends."""
        ...

    @property
    def looks_at_ns(self) -> int | None:
        """When there is something to look at."""
        ...

    def settle(self, nothing_before_ns: int, until: int | None = None) -> None:
        """Begin the kernels in turn as far as that is certain; see `Gpu.settle`."""
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
        splits: Whether runs are of parts of experts.

    Attributes:
        free_ns: When the host has issued all that it was told to.
        gpu: The compute stream on which attention and routers run.
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
        *,
        splits: bool = False,
    ) -> None:
        self.free_ns = 0
        self.copying: list[Server] = []
        self.asks: dict[int, Ask] = {}
        self.timers: dict[int, int] = {}
        self.form: FormStep | None = None
        self.launched = 0
        self.layer_done = -1
        self.step: Step | None = None
        self._has_prompt = False
        self._launch_ns: list[int] = []  # of a run, by how many experts it has
        self._known_launch_ns: dict[bool, list[int]] = {}
        self._attention_ns_L: list[int] = []  # of the step
        self._costs = costs
        self._layers = layers
        self._experts = experts
        self._expert_bytes = expert_bytes
        self._splits = splits
        self._ask_ns = ask_ns
        self._spans = spans
        self._issue_ns = costs.copy_issue_ns(1)
        self._run_ns: dict[tuple[int, tuple[int, ...], int], int] = {}
        self._each_ns: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        self._unnamed = 0  # kernels that no command can name have numbers below zero
        self._inputs: tuple[int, ...] = ()  # what the next attention waits for on other GPUs
        self._ends: Ends = {}
        self.waiting: list[Server] = []
        slows = costs.copies_slow_kernels
        engines: dict[str, Server] = {}
        for name, kind in _ENGINES.items():
            engines[name] = Server(
                name,
                copy_times(costs, kind),
                self._ends,
                self.waiting,
                spans,
                is_observed=slows and name == "h2d",
            )
        self._engines = engines
        self._h2d = engines["h2d"]
        self.cpu = Server("cpu", lambda ns, _: ns, self._ends, self.waiting, spans)
        self.answerer = Server("asks", lambda ns, _: ns, self._ends, self.waiting, spans)
        self._copies_hold = costs.copies_block_host
        self._obey: Mapping[type, Callable[[Any], None]] = {
            Run: self._run,
            Runs: self._run_each,
            Copy: self._copy,
            Copies: self._copy_all,
            Move: self._move,
            LayerDone: self._close_layer,
            FormStep: self._note_form,
            Ask: self._ask,
            WakeAt: self._set_timer,
        }
        self.gpu = self._new_gpu(self._h2d, "gpu")
        self._gpu_of = [self.gpu]
        self._streams: Streams = self.gpu

    def _new_gpu(self, link: Server, name: str) -> Gpu:
        """Return a compute stream beside whose kernels a link copies."""
        costs = self._costs
        slows = costs.copies_slow_kernels
        return Gpu(
            link,
            (lambda ns, is_run: costs.slowed_ns(ns, is_run=is_run)) if slows else None,
            costs.run_after_copy_ns,
            self._ends,
            self.waiting,
            self._spans,
            name,
        )

    # Obeying

    @property
    def takes_batches(self) -> bool:
        """Whether batches of commands may be obeyed as such: no copy holds the host."""
        return not self._copies_hold and self._spans is None

    def obey(self, commands: Iterator[Order]) -> int | None:
        """Obey commands in their order, up to a copy that holds the host.

        Returns:
            The number of that copy; the commands after it are left. None once all are obeyed.
        """
        obey = self._obey
        for command in commands:
            kind = type(command)
            if kind in obey:
                obey[kind](command)
                if self._copies_hold and (kind is Copy or kind is Move):
                    return command.n  # type: ignore[union-attr]  # it is one of the two
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

    def _move(self, command: Move) -> None:
        n, expert, part, src, dst, after = command
        if src.device != dst.device or src.tier is not dst.tier:
            self._copy(command)
            return
        ns = self._costs.move_ns(self._expert_bytes(expert, part))
        self.free_ns += self._issue_ns
        self._gpu_of[dst.device].submit(n, Kind.MOVE, command, ns, self.free_ns, after)

    def _run(self, command: Run) -> None:
        n, experts, tokens, device, after, part = command
        costs = self._costs
        layer = experts[0] // self._experts
        self.free_ns += self._launch_ns[len(experts)]
        if after:
            self._check_named(after)
        if device is GPU or device.kind == "gpu":
            share_ppm = WHOLE_PPM
            if self._splits:
                size = self._expert_bytes(experts[0], part)
                share_ppm = WHOLE_PPM * size // costs.shape.layers[layer].expert_bytes
            ns = self._expert_ns(layer, tokens, share_ppm)
            self._gpu_of[device.number].submit(n, Kind.EXPERTS, command, ns, self.free_ns, after)
        else:
            ns = costs.experts_cpu_ns(layer, tokens)
            self.cpu.submit(n, command, ns, self.free_ns, after)

    def _copy_all(self, command: Copies) -> None:
        first, experts, _, _, nbytes, _, src = command
        assert src is RAM
        engine = self._h2d
        if engine not in self.copying:
            self.copying.append(engine)
        numbers = range(first, first + len(experts))
        self.free_ns = engine.submit_alike(numbers, command, nbytes, self.free_ns, self._issue_ns)

    def _run_each(self, command: Runs) -> None:
        first, experts, tokens, device, after, _ = command
        if device.kind != "gpu":
            for run in commands_one_by_one([command]):
                assert isinstance(run, Run)
                self._run(run)
            return
        layer = experts[0] // self._experts
        durations_ns = self._each_ns.get((layer, tokens))
        if durations_ns is None:
            if len(self._each_ns) >= _MEMO_ENTRIES:
                self._each_ns.clear()
            durations_ns = [self._costs.experts_gpu_ns(layer, (count,)) for count in tokens]
            self._each_ns[layer, tokens] = durations_ns
        numbers = range(first, first + len(experts))
        self.free_ns = self.gpu.submit_all(
            numbers, Kind.EXPERTS, command, durations_ns, self.free_ns, self._launch_ns[1], after
        )

    def _expert_ns(self, layer: int, tokens: tuple[int, ...], share_ppm: int) -> int:
        """Return the GPU time of a run of this share of each expert."""
        if len(tokens) > _MOST_KNOWN:
            return self._costs.experts_gpu_ns(layer, tokens, part_ppm=share_ppm)
        ns = self._run_ns.get((layer, tokens, share_ppm))
        if ns is None:
            if len(self._run_ns) >= _MEMO_ENTRIES:
                self._run_ns.clear()
            ns = self._costs.experts_gpu_ns(layer, tokens, part_ppm=share_ppm)
            self._run_ns[layer, tokens, share_ppm] = ns
        return ns

    def _close_layer(self, command: LayerDone) -> None:
        self.layer_done = command.layer
        self.launch_layer(command.layer + 1)

    def _note_form(self, command: FormStep) -> None:
        self.form = command

    def _set_timer(self, command: WakeAt) -> None:
        self.timers[command.n] = command.at_ns

    def _ask(self, command: Ask) -> None:
        if command.name not in self._ask_ns:
            raise CapabilityError(
                f"a policy asks for '{command.name}', and nobody knows how long that takes; "
                f"say it: --ask {command.name}=380ms (in a sweep: the key ask)"
            )
        self.asks[command.n] = command
        self.answerer.submit(command.n, command.name, self._ask_ns[command.name], self.free_ns)

    def begin_step(self, step: Step) -> None:
        """Take note of what is served from now on."""
        self.step = step
        self._has_prompt = has_prompt = Phase.PREFILL in step.phases
        if has_prompt not in self._known_launch_ns:
            self._known_launch_ns[has_prompt] = [
                self._costs.launch_run_ns(count, is_prompt=has_prompt)
                for count in range(self._experts + 1)
            ]
        self._launch_ns = self._known_launch_ns[has_prompt]
        self._attention_ns_L = self._costs.attention_ns_L(
            step.tokens, step.context_tokens, len(step.requests), step.pairs
        )

    def routed(self, fact: LayerRouted) -> LayerRouted:
        """Take note of what the last router has chosen; return it as the controller is told."""
        return fact

    def launch_layer(self, layer: int) -> None:
        """Launch attention and router of a layer, or past the last layer what makes the token."""
        costs, has_prompt = self._costs, self._has_prompt
        self.free_ns += costs.launch_prompt_layer_ns if has_prompt else costs.launch_layer_ns
        self._unnamed = self.launched = self._unnamed - 1
        kind, ns = self.dense(layer)
        label = layer if kind is Kind.DENSE else "head"
        self.gpu.submit(self.launched, kind, label, ns, self.free_ns, self._inputs)

    def dense(self, layer: int) -> tuple[Kind, int]:
        """Return what attention and router of a layer, or past the last the head, take alone."""
        if layer < self._layers:
            return Kind.DENSE, self._attention_ns_L[layer]
        assert self.step is not None
        return Kind.HEAD, self._costs.head_ns(sum(self.step.tokens_out) or 1)

    def decide_on_gpu(self, ns: int) -> None:
        """Have the GPU busy with a decision."""
        self._unnamed -= 1
        self.gpu.submit(self._unnamed, Kind.DECIDE, "decide", ns, self.free_ns)

    # What has ended, and what will

    @property
    def link(self) -> Server:
        """The copy engine that brings experts from RAM."""
        return self._h2d

    def is_at_rest(self, now_ns: int) -> bool:
        """Return whether nothing runs, waits or is unreported, in a step without prompt tokens."""
        for engine in self.copying:
            if engine.unreported:
                return False
        return not (
            self._has_prompt or self.cpu.unreported or self.asks or self.timers
        ) and self.gpu.is_idle(now_ns)

    def settle(self, now_ns: int) -> None:
        """See what has become certain by a time, or by what was issued ahead of it."""
        self._streams.settle(max(now_ns, self.free_ns))

    def commit(self, n: int) -> int:
        """Return when a job ends, now that the host hands over nothing more before that."""
        ends_ns = self._ends[n]
        if ends_ns is None:
            self._streams.settle(FOREVER, n)
            ends_ns = self._ends[n]
            assert ends_ns is not None
        return ends_ns

    def ends_ns(self, n: int) -> int | None:
        """Return when a job ends, or None if that is not certain."""
        return self._ends[n]

    def take_copies(self, now_ns: int) -> list[int]:
        """Return the numbers of the copies that have ended and were not reported, in order."""
        copies: list[int] = []
        for engine in self.copying:
            if engine.unreported:
                copies += engine.take_ended(now_ns)
        if len(self.copying) > 1:
            copies.sort()
        return copies

    def next_end_ns(self, now_ns: int) -> int:
        """Return when the next of the servers' jobs ends or there is something to look at.

        `FOREVER` if nothing is known to.
        """
        found_ns = FOREVER
        for server in (*self.copying, self.cpu, self.answerer):
            if server.unreported:
                at_ns = server.next_end_ns()
                if at_ns is not None and now_ns < at_ns < found_ns:
                    found_ns = at_ns
        at_ns = self._streams.looks_at_ns
        if at_ns is not None and now_ns < at_ns < found_ns:
            found_ns = at_ns
        if self.timers:
            found_ns = min([found_ns, *(at for at in self.timers.values() if at > now_ns)])
        return found_ns

    def end_step(self) -> None:
        """Forget all jobs that no command may name any more: all but those under way."""
        ends = self._ends
        servers = (*self.copying, self.cpu, self.answerer)
        kept = {n: ends[n] for server in servers for n in server.unreported}
        ends.clear()
        ends.update(kept)

    def drain(self) -> int:
        """Let everything that was handed over end, and return when that is."""
        self._streams.settle(FOREVER)
        servers = (self.cpu, self.answerer, *self._engines.values())
        return max(self._streams.free_ns, *(server.free_ns for server in servers))

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


def copy_times(costs: CostModel, kind: CopyKind) -> Callable[[int, int], int]:
    """Return the duration of a copy from its bytes and the idle time before it."""
    pause_ns = costs.pause_threshold_ns
    in_a_row: dict[int, int] = {}
    after_rest: dict[int, int] = {}
    after_pause: dict[int, int] = {}

    def duration_ns(size: int, idle_ns: int) -> int:
        known = in_a_row if idle_ns <= 0 else after_rest if idle_ns <= pause_ns else after_pause
        ns = known.get(size)
        if ns is None:
            ns = known[size] = costs.copy_ns(size, kind, idle_ns=idle_ns)
        return ns

    return duration_ns


def _engine_of(src: Place, dst: Place) -> str:
    """Return the copy engine that serves a pair of places."""
    if Tier.NVME in (src.tier, dst.tier):
        return "nvme"
    if src.tier is Tier.VRAM and dst.tier is Tier.VRAM:
        return "peer_out" if dst.device else "peer"
    return "h2d" if dst.tier is Tier.VRAM else "d2h"
