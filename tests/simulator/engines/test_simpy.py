"""The SimPy engine on a machine of round numbers, in the cases that are easy to get wrong."""

from typing import Any

import numpy as np
import pytest

from moesim.simulator.engines.simpy import SimpyEngine
from moesim.simulator.messages import Copy, CpuRunEnded, LayerDone, LayerRouted, Run
from moesim.simulator.results.run_result import RunResult
from moesim.simulator.testing import small_run, tiny_trace
from moesim.simulator.testing.small_runs import EXPERT_BYTES
from moesim.traces import RoutingTrace, TraceHeader

# T tokens, L MoE layers, K chosen.

STILL = {"slow_down_ppm": 0}


def trace_of(choices_TLK: list[Any], *, experts: int, prompt_tokens: int = 0) -> RoutingTrace:
    """Return one request with these choices, the first tokens of it a prompt."""
    expert_TLK = np.array(choices_TLK, np.int16)
    tokens, layers, top_k = expert_TLK.shape
    rows = np.arange(tokens)
    return RoutingTrace(
        header=TraceHeader(
            model="made up",
            layer_ids=tuple(range(layers)),
            experts=experts,
            top_k=top_k,
            evidence="synthetic",
        ),
        expert_TLK=expert_TLK,
        gate_TLK=None,
        step_T=np.maximum(rows - prompt_tokens + 1, 0).astype(np.int32),
        request_T=np.zeros(tokens, np.int32),
        position_T=rows.astype(np.int32),
        is_prefill_T=rows < prompt_tokens,
        task_R=("",),
        arrival_ns_R=np.zeros(1, np.int64),
        prompt_tokens_R=np.full(1, prompt_tokens, np.int32),
        output_tokens_R=np.full(1, tokens - prompt_tokens + 1, np.int32),
    )


def replayed(trace: RoutingTrace, **options: Any) -> RunResult:
    """Return a small run with every span and the log kept."""
    return small_run(trace, **options).replay(keep_spans=True, keep_log=True)


def spans_of(result: RunResult, server: str) -> list[tuple[object, int, int]]:
    """Return what one server did: label, begin, end."""
    return [(what, begin, end) for at, what, begin, end in result.spans or [] if at == server]


def kinds_after(result: RunResult, kind: type) -> list[list[type]]:
    """Return the kinds of commands that answered the calls with a fact of a kind."""
    return [
        [type(command) for command in commands]
        for facts, _, commands in result.log or []
        if any(isinstance(fact, kind) for fact in facts)
    ]


def test_a_demand_larger_than_the_room_runs_in_waves() -> None:
    """Six experts through a room for three: each is copied once, after the run that leaves room."""
    prompt = [[[0, 1]], [[2, 3]], [[4, 5]]]
    result = replayed(trace_of(prompt, experts=6, prompt_tokens=3), slots=3)
    copies = [c for _, _, commands in result.log or [] for c in commands if isinstance(c, Copy)]
    assert [copy.expert for copy in copies] == [0, 1, 2, 3, 4, 5]
    assert [bool(copy.after) for copy in copies] == [False] * 3 + [True] * 3
    assert result.counts.waves == 1
    assert result.counts.misses == 6
    ends = {w.n: end for w, _, end in spans_of(result, "gpu") if isinstance(w, Run)}
    for what, begin, _ in spans_of(result, "h2d"):
        assert isinstance(what, Copy)
        assert all(ends[n] <= begin for n in what.after)


def test_kernels_are_slower_while_copies_run() -> None:
    """A kernel that begins while the link is in use takes 5 % longer, and no other does."""
    result = replayed(tiny_trace(), slots=6, machine={"slow_down_ppm": 50_000})
    link = [(begin, end) for _, begin, end in spans_of(result, "h2d")]
    seen = set()
    for what, begin, end in spans_of(result, "gpu"):
        if isinstance(what, Run):
            is_slowed = any(copy_begin <= begin < copy_end for copy_begin, copy_end in link)
            alone_ns = 1_000 * len(what.experts)
            assert end - begin == (alone_ns * 105 // 100 if is_slowed else alone_ns)
            seen.add(is_slowed)
    assert seen == {True, False}
    assert result.timings.slow_down_ns > 0


def test_the_first_copy_after_a_pause_is_longer() -> None:
    """A copy that begins after the link idled for the threshold pays extra; the next does not."""
    machine = {**STILL, "first_copy_extra_ns": 7_000, "pause_threshold_ns": 50_000}
    decode = [[[0, 1]], [[0, 1]], [[0, 1]], [[2, 3]]]
    result = replayed(
        trace_of(decode, experts=4), slots=4, machine=machine, runtime={"head_fixed_ns": 60_000}
    )
    times = [end - begin for _, begin, end in spans_of(result, "h2d")]
    assert times == [105_000, 105_000, 112_000, 105_000]


def test_copies_from_pageable_memory_hold_the_host() -> None:
    """With blocking copies nothing is launched until each copy has ended."""
    result = replayed(tiny_trace(), slots=6, runtime={"blocking": True})
    free = replayed(tiny_trace(), slots=6)
    host = spans_of(result, "host")
    for _, begin, end in spans_of(result, "h2d"):
        assert all(host_end <= begin or host_begin >= end for _, host_begin, host_end in host)
    assert result.timings.span_ns > free.timings.span_ns
    assert result.counts == free.counts


def test_cpu_experts_hold_the_layer() -> None:
    """LayerDone comes with the report of the last CPU run, and not before."""
    result = replayed(tiny_trace(), slots=6, schedule="cpu_on_miss")
    assert result.counts.cpu_experts > 0
    for facts, _, commands in result.log or []:
        routed = any(isinstance(fact, LayerRouted) for fact in facts)
        ended = any(isinstance(fact, CpuRunEnded) for fact in facts)
        on_cpu = any(isinstance(c, Run) and c.device.kind == "cpu" for c in commands)
        done = any(isinstance(command, LayerDone) for command in commands)
        if routed:
            assert done != on_cpu
        if done and not routed:
            assert ended
    assert result.timings.cpu_busy_ns > 0


def test_a_prefetch_on_its_way_is_a_late_hit() -> None:
    """An expert demanded while its prefetch is on the link is late: no second copy is made."""
    result = replayed(
        tiny_trace(), slots=12, prefetch="oracle:recall=1.0,precision=1.0", machine=STILL
    )
    counts = result.counts
    assert counts.late_hits > 0
    assert counts.bytes_prefetch_late == counts.late_hits * EXPERT_BYTES
    assert counts.bytes_total == counts.copies * EXPERT_BYTES


def test_a_perfect_prefetch_is_faster_where_the_link_has_time() -> None:
    """With long attention, copies hidden behind it save time."""
    slow_gpu = {**STILL, "memory_bytes_per_s": 10**10}
    none = replayed(tiny_trace(), slots=12, machine=slow_gpu)
    oracle = replayed(tiny_trace(), slots=12, machine=slow_gpu, prefetch="oracle")
    assert oracle.timings.span_ns < none.timings.span_ns


def test_layer_done_launches_the_next_layer_in_its_place() -> None:
    """Prefetches that follow LayerDone in the list do not delay the next layer's launch."""
    result = replayed(tiny_trace(), slots=12, prefetch="oracle")
    lists = [kinds for kinds in kinds_after(result, LayerRouted) if LayerDone in kinds]
    assert any(kinds.index(LayerDone) < len(kinds) - 1 for kinds in lists)
    assert all(Run not in kinds[kinds.index(LayerDone) :] for kinds in lists)


def test_idle_and_busy_make_the_span() -> None:
    """On every server, spans do not overlap and their lengths add up to the busy time."""
    result = replayed(tiny_trace(), slots=6, prefetch="oracle:recall=0.5")
    timings = result.timings
    busy = {"host": timings.host_busy_ns, "gpu": timings.gpu_busy_ns, "h2d": timings.link_busy_ns}
    for server, busy_ns in busy.items():
        spans = sorted((begin, end) for _, begin, end in spans_of(result, server))
        assert sum(end - begin for begin, end in spans) == busy_ns
        idle_ns = timings.span_ns - busy_ns
        gaps_ns = sum(b[0] - a[1] for a, b in zip([(0, 0), *spans], spans, strict=False))
        assert gaps_ns + timings.span_ns - spans[-1][1] == idle_ns


@pytest.mark.parametrize("host_ns", [0, 1])
def test_ties_of_a_few_nanoseconds_are_no_matter(host_ns: int) -> None:
    """With costs of zero and one ns, which force ties, the books balance and runs repeat."""
    tiny = {
        "launch_layer_ns": host_ns,
        "launch_run_ns": host_ns,
        "launch_per_expert_ns": host_ns,
        "copy_issue_ns": host_ns,
        "router_wait_ns": host_ns,
        "poll_ns": host_ns,
        "decision_ns": (host_ns, 0, 0),
    }
    machine = {"link_bytes_per_s": 10**11, "link_latency_ns": 0, "first_copy_extra_ns": 0}
    options = {"slots": 6, "runtime": tiny, "machine": machine, "prefetch": "oracle:recall=0.7"}
    first, again = replayed(tiny_trace(), **options), replayed(tiny_trace(), **options)
    assert first.spans == again.spans
    assert first.counts == again.counts


def test_memory_of_a_long_run_does_not_grow_with_it() -> None:
    """Between steps the engine keeps only jobs that may still be named."""
    run = small_run(tiny_trace(decode_tokens=40), slots=6)
    controller = run.controller()
    engine = SimpyEngine(
        controller,
        run.workload(),
        run.costs,
        expert_bytes=lambda _expert, _part: EXPERT_BYTES,
        budget_bytes=run.memory.expert_bytes,
    )
    engine.run()
    assert len(engine._hands._ends) <= 2 * run.spec.trace.experts
