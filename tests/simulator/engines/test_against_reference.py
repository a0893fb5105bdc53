"""The engines' times against a second derivation of them, as plain and as slow as can be.

An engine computes ends long before they come and wakes its host only where there is something to
see. Here the same run is timed once more from what was decided alone: the job that may begin first
begins first, one after another, and a kernel looks at all copies to know whether one runs. Small
numbers of nanoseconds force ties, where such engines go wrong.
"""

from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.controller import Controller
from moesim.simulator.costs import CostModel
from moesim.simulator.messages import (
    Command,
    Copy,
    CopyEnded,
    CpuRunEnded,
    Fact,
    LayerDone,
    LayerRouted,
    Run,
    RunBegan,
    StepBegan,
    StepEnded,
)
from moesim.simulator.registry import parse
from moesim.simulator.runs import ENGINES, Prepared
from moesim.simulator.terms import Tier
from moesim.simulator.testing import (
    SPLIT_AT_RANDOM,
    WISH_AT_RANDOM,
    engine,
    small_run,
    tiny_trace,
)
from moesim.simulator.tiers.plan import TierPlan


class Recorder:
    """Passes everything on to a controller and notes each call."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.residency = controller.residency
        self.initial = controller.initial
        self.compute = controller.compute
        self.calls: list[tuple[list[Fact], int, list[Command], bool]] = []

    @property
    def listens(self) -> bool:
        return self._controller.listens

    def handle(self, facts: list[Fact], now_ns: int) -> list[Command]:
        commands = self._controller.handle(facts, now_ns)
        self.calls.append((list(facts), now_ns, commands, self.listens))
        return commands


@dataclass
class Job:
    """What one server is to do, and when it did it."""

    server: str
    label: object
    ns: int
    issued_ns: int
    after: tuple[int, ...] = ()
    number: int = 0
    begins_ns: int = -1
    ends_ns: int = -1


SERVERS = ("gpu", "h2d", "cpu", "d2h", "peer", "peer_out", "nvme")


def server_of(copy: Copy) -> str:
    """Return the engine that carries a copy out."""
    src, dst = copy.src, copy.dst
    if src.tier is Tier.NVME:
        return "nvme"
    if src.tier is Tier.RAM:
        return "h2d"
    if dst.tier is Tier.RAM:
        return "d2h"
    return "peer_out" if dst.device else "peer"


class Reference:
    """Times all jobs of a run from the calls of its controller."""

    def __init__(self, run: Prepared, calls: list[Any]) -> None:
        self.costs: CostModel = run.costs
        self.trace = run.spec.trace
        self.sizes_L = run.sizes_L
        self.jobs: list[Job] = []
        self.free_ns: list[int] = []  # when the host is free after each call
        self.kernel = Job("gpu", "nothing yet", 0, 0, ends_ns=0)  # attention or head
        self.launched: list[Job] = []  # the kernel launched last by the end of each call
        self.rows = self._rows()
        for facts, now_ns, commands, _ in calls:
            self._call(facts, now_ns, commands)
        self._time()

    def _rows(self) -> list[tuple[int, int, int, bool]]:
        """Return (tokens, context, gives a token, is a prompt) of each step as it is served."""
        trace, rows = self.trace, []
        for request in range(trace.requests):
            mine = trace.request_T == request
            steps = sorted(set(trace.step_T[mine].tolist()))
            for step in steps:
                of_step = mine & (trace.step_T == step)
                is_prompt = bool(trace.is_prefill_T[of_step].any())
                context = int(trace.position_T[of_step].max()) + 1
                rows.append((int(of_step.sum()), context, 1, is_prompt))
        return rows

    def _call(self, facts: list[Fact], now_ns: int, commands: list[Command]) -> None:
        costs, last = self.costs, facts[-1]
        experts = len(set(last.experts)) if isinstance(last, LayerRouted) else 0
        decision_ns = costs.decision_ns("", experts, len(commands))
        free_ns = now_ns
        if costs.decides_on == "host":
            free_ns += decision_ns
        else:
            self.jobs.append(Job("gpu", "decide", decision_ns, now_ns))
        for command in commands:
            if isinstance(command, Copy):
                free_ns += costs.copy_issue_ns(1)
                size = self.sizes_L[command.expert // self.trace.experts]
                job = Job(server_of(command), command, size, free_ns, command.after, command.n)
                self.jobs.append(job)
                if costs.copies_block_host:
                    self._time()
                    free_ns = max(free_ns, job.ends_ns)
            elif isinstance(command, Run):
                _, _, _, is_prompt = self.step
                free_ns += costs.launch_run_ns(len(command.experts), is_prompt=is_prompt)
                layer = command.experts[0] // self.trace.experts
                if command.device.kind == "gpu":
                    ns = costs.experts_gpu_ns(layer, command.tokens)
                else:
                    ns = costs.experts_cpu_ns(layer, command.tokens)
                server = command.device.kind
                self.jobs.append(Job(server, command, ns, free_ns, command.after, command.n))
            elif isinstance(command, LayerDone):
                free_ns = self._launch(command.layer + 1, free_ns)
        if isinstance(last, StepBegan):
            self.step = self.rows[last.step]
            free_ns = self._launch(0, free_ns)
        self.free_ns.append(free_ns)
        self.launched.append(self.kernel)

    def _launch(self, layer: int, free_ns: int) -> int:
        tokens, context, gives, is_prompt = self.step
        costs = self.costs
        free_ns += costs.launch_prompt_layer_ns if is_prompt else costs.launch_layer_ns
        if layer < self.trace.layers:
            job = Job("gpu", layer, self.costs.attention_ns(layer, tokens, context, 1), free_ns)
        else:
            job = Job("gpu", "head", self.costs.head_ns(gives), free_ns)
        self.jobs.append(job)
        self.kernel = job
        return free_ns

    def _time(self) -> None:
        """Let the job that may begin first begin, again and again; copies before kernels."""
        costs = self.costs
        waiting = list(self.jobs)
        ends_ns: dict[int, int] = {}
        free_ns = dict.fromkeys(SERVERS, 0)
        copies: list[Job] = []
        while waiting:
            heads = {}
            for job in waiting:
                heads.setdefault(job.server, job)
            may_begin = [
                (max([job.issued_ns, free_ns[job.server], *self._awaited(job, ends_ns)]), job)
                for job in heads.values()
                if all(n in ends_ns for n in job.after)
            ]
            begins_ns, job = min(may_begin, key=lambda pair: (pair[0], pair[1].server == "gpu"))
            ns = job.ns
            if job.server == "h2d":
                ns = costs.copy_ns(job.ns, idle_ns=begins_ns - free_ns["h2d"])
                copies.append(job)
            elif isinstance(job.label, Copy):
                kind = job.server.removesuffix("_out")
                idle_ns = begins_ns - free_ns[job.server]
                ns = costs.copy_ns(job.ns, kind, idle_ns=idle_ns)  # type: ignore[arg-type]  # it is one
            elif job.server == "gpu" and any(c.begins_ns <= begins_ns < c.ends_ns for c in copies):
                ns = costs.slowed_ns(ns, is_run=isinstance(job.label, Run))
            job.begins_ns, job.ends_ns = begins_ns, begins_ns + ns
            free_ns[job.server] = job.ends_ns
            if job.number:
                ends_ns[job.number] = job.ends_ns
            waiting.remove(job)

    def _awaited(self, job: Job, ends_ns: dict[int, int]) -> list[int]:
        """Return from when each job that this one waits for lets it begin."""
        more_ns = self.costs.run_after_copy_ns if job.server == "gpu" else 0
        return [ends_ns[n] + more_ns for n in job.after]


def check_calls(run: Prepared, reference: Reference, calls: list[Any]) -> None:
    """Check that every call came when it had to, and told all that had ended and nothing else."""
    reading_ns = run.costs.sync_ns + run.costs.poll_ns
    unreported: dict[int, Job] = {}
    by_number = {job.number: job for job in reference.jobs if job.number}
    free_ns, listens, launched = 0, False, reference.launched[0]
    for at, (facts, now_ns, commands, listens_after) in enumerate(calls):
        told = {fact.n for fact in facts if isinstance(fact, CopyEnded | CpuRunEnded)}
        ended = {n for n, job in unreported.items() if job.ends_ns <= now_ns}
        last = facts[-1]
        if isinstance(last, LayerRouted) or any(isinstance(fact, StepEnded) for fact in facts):
            router_ns = max(free_ns, launched.ends_ns)
            assert router_ns + reading_ns == now_ns
            assert ended == told
            if listens:
                missed = [n for n, job in unreported.items() if job.ends_ns <= router_ns]
                assert missed == [], f"call {at} should have been preceded by a poll"
        elif isinstance(last, CopyEnded | CpuRunEnded):
            assert max(free_ns, min(job.ends_ns for job in unreported.values())) == now_ns
            assert ended == told
        else:
            assert any(isinstance(fact, RunBegan | StepBegan) for fact in facts)
            assert told == set()
            assert free_ns == now_ns
        for n in told:
            del unreported[n]
        for command in commands:
            is_on_cpu = isinstance(command, Run) and command.device.kind == "cpu"
            if is_on_cpu or isinstance(command, Copy):
                unreported[command.n] = by_number[command.n]
        free_ns, listens, launched = reference.free_ns[at], listens_after, reference.launched[at]


def check_engine(run: Prepared) -> Reference:
    """Serve a run on every engine and check every span and every call."""
    for name in ENGINES:
        reference = check_one(run, name)
    return reference


def check_one(run: Prepared, name: str) -> Reference:
    """Serve a run on one engine and check it."""
    recorder = Recorder(run.controller())
    served = engine(run, recorder, name=name)
    timings = served.run()
    reference = Reference(run, recorder.calls)
    assert served.spans is not None
    for server in SERVERS:
        expected = [
            (job.label, job.begins_ns, job.ends_ns)
            for job in reference.jobs
            if job.server == server
        ]
        actual = [(what, begin, end) for at, what, begin, end in served.spans if at == server]
        for one, other in zip(expected, actual, strict=True):
            assert one == other, server
    check_calls(run, reference, recorder.calls)
    last_ns = max(job.ends_ns for job in reference.jobs)
    assert max(last_ns, reference.free_ns[-1]) == timings.span_ns
    return reference


durations = st.integers(0, 4)


@given(st.data())
def test_every_time_is_that_of_the_reference(data: st.DataObject) -> None:
    """Spans, reports and calls are the reference's, with durations of few ns and any policies."""
    draw = data.draw
    layers = draw(st.integers(1, 3))
    run = small_run(
        tiny_trace(
            layers=layers,
            experts=4,
            prompt_tokens=draw(st.integers(0, 3)),
            decode_tokens=3,
            seed=draw(st.integers(0, 30)),
        ),
        cache=draw(st.sampled_from(["lru", "fifo", "belady:admit=bypass", "transient"])),
        prefetch=draw(st.sampled_from(["none", WISH_AT_RANDOM, "next_gate"])),
        schedule=draw(
            st.sampled_from(["resident_first", "on_demand", SPLIT_AT_RANDOM, "cpu_on_miss"])
        ),
        slots=draw(st.integers(4, 9)),
        expert_bytes_L=[100] * layers,
        window_bytes=draw(st.sampled_from([1, 150, 1_000])),
        machine={
            "memory_bytes_per_s": 10**15,
            "flop_per_s": 10**18,
            "link_bytes_per_s": 10**11 // draw(st.integers(1, 12)),
            "pageable_bytes_per_s": 10**11 // draw(st.integers(1, 12)),
            "link_latency_ns": 0,
            "first_copy_extra_ns": draw(durations),
            "pause_threshold_ns": draw(st.integers(1, 20)),
            "slow_down_ppm": draw(st.sampled_from([0, 500_000, 1_000_000])),
            "cpu_bytes_per_s": 10**11 // draw(st.integers(1, 12)),
            "cpu_flop_per_s": 10**18,
        },
        runtime={
            "blocking": draw(st.booleans()) and draw(st.booleans()),
            "source": draw(st.sampled_from(["pinned", "pageable"])),
            "copy_issue_ns": draw(st.integers(1, 4)),
            "launch_layer_ns": draw(durations),
            "launch_run_ns": draw(durations),
            "launch_per_expert_ns": draw(durations),
            "launch_prompt_layer_ns": draw(durations),
            "launch_prompt_expert_ns": draw(durations),
            "launch_prompt_run_ns": draw(durations),
            "router_wait_ns": draw(durations),
            "poll_ns": draw(durations),
            "dense_fixed_ns": draw(st.integers(1, 6)),
            "expert_fixed_ns": draw(st.integers(1, 6)),
            "head_fixed_ns": draw(st.integers(1, 6)),
            "expert_after_copy_ns": draw(durations),
            "copy_start_ns": draw(durations),
            "expert_while_copying_ns": draw(durations),
            "hand_over_ns": draw(durations),
            "notice_ns": draw(durations),
            "decision_ns": (draw(durations), draw(st.integers(0, 1)), draw(st.integers(0, 1))),
        },
        seed=draw(st.integers(0, 30)),
    )
    run.costs.decides_on = draw(st.sampled_from(["host", "device"]))
    check_engine(run)


@given(st.data())
def test_every_time_is_that_of_the_reference_in_tiers_too(data: st.DataObject) -> None:
    """The same where experts come from NVMe and from another GPU, and go down again."""
    draw = data.draw
    size = 100
    layers = draw(st.integers(1, 2))
    lru = parse("cache", "lru")
    has_host, has_peer = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    plan = TierPlan(
        parse("cache", draw(st.sampled_from(["lru", "transient", "lfu"]))) if has_host else None,
        draw(st.integers(1, 6)) * size,
        lru if has_peer else None,
        draw(st.integers(1, 3)) * size,
        is_exclusive=has_host and draw(st.booleans()),
        starts_empty=draw(st.booleans()),
    )
    rate = st.integers(1, 12).map(lambda ns: 10**11 // ns)
    run = small_run(
        tiny_trace(
            layers=layers,
            experts=4,
            prompt_tokens=draw(st.integers(0, 3)),
            decode_tokens=3,
            seed=draw(st.integers(0, 30)),
        ),
        cache=draw(st.sampled_from(["lru", "fifo", "transient"])),
        prefetch=draw(st.sampled_from(["none", WISH_AT_RANDOM, "next_gate"])),
        schedule=draw(st.sampled_from(["resident_first", SPLIT_AT_RANDOM, "cpu_on_miss"])),
        slots=draw(st.integers(4, 7)),
        expert_bytes_L=[size] * layers,
        window_bytes=draw(st.sampled_from([1, 150, 1_000])),
        machine={
            "memory_bytes_per_s": 10**15,
            "flop_per_s": 10**18,
            "link_bytes_per_s": draw(rate),
            "peer_bytes_per_s": draw(rate),
            "peer_latency_ns": draw(durations),
            "nvme_bytes_per_s": draw(rate),
            "nvme_latency_ns": draw(durations),
            "link_latency_ns": 0,
            "first_copy_extra_ns": draw(durations),
            "pause_threshold_ns": draw(st.integers(1, 20)),
            "slow_down_ppm": draw(st.sampled_from([0, 500_000])),
            "cpu_bytes_per_s": draw(rate),
            "cpu_flop_per_s": 10**18,
        },
        runtime={
            "blocking": draw(st.booleans()) and draw(st.booleans()),
            "copy_issue_ns": draw(st.integers(1, 4)),
            "launch_layer_ns": draw(durations),
            "launch_run_ns": draw(durations),
            "launch_per_expert_ns": draw(durations),
            "router_wait_ns": draw(durations),
            "poll_ns": draw(durations),
            "dense_fixed_ns": draw(st.integers(1, 6)),
            "expert_fixed_ns": draw(st.integers(1, 6)),
            "head_fixed_ns": draw(st.integers(1, 6)),
            "expert_after_copy_ns": draw(durations),
            "copy_start_ns": draw(durations),
            "hand_over_ns": draw(durations),
            "notice_ns": draw(durations),
            "decision_ns": (draw(durations), 0, draw(st.integers(0, 1))),
        },
        tiers=plan,
        seed=draw(st.integers(0, 30)),
    )
    check_engine(run)


def test_a_last_decision_on_the_gpu_is_inside_the_run() -> None:
    """The run lasts until the decision after its last token, which copies slow down, is over."""
    run = small_run(
        tiny_trace(layers=1, experts=4, prompt_tokens=0, decode_tokens=3),
        cache="transient",
        prefetch=WISH_AT_RANDOM,
        slots=4,
        window_bytes=1,
        machine={
            "slow_down_ppm": 500_000,
            "memory_bytes_per_s": 2 * 10**10,
            "link_bytes_per_s": 10**11,
            "link_latency_ns": 0,
        },
        runtime={"decision_ns": (30_000, 0, 0)},
    )
    run.costs.decides_on = "device"
    check_engine(run)


def test_the_reference_sees_what_it_should() -> None:
    """On one run with everything in it kernels are slowed, copies pause, and waves wait."""
    run = small_run(
        tiny_trace(prompt_tokens=6),
        prefetch=WISH_AT_RANDOM,
        slots=3,
        machine={"slow_down_ppm": 50_000, "pause_threshold_ns": 1_000},
        window_bytes=1,
    )
    reference = check_engine(run)
    runs = [job for job in reference.jobs if isinstance(job.label, Run) and job.server == "gpu"]
    assert {job.ends_ns - job.begins_ns == job.ns for job in runs} == {True, False}
    copies = [job for job in reference.jobs if isinstance(job.label, Copy)]
    assert {job.ends_ns - job.begins_ns for job in copies} == {105_000, 305_000}
    assert any(job.after for job in copies)
