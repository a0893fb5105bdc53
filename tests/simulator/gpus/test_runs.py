"""Runs on several GPUs: by hand, under hostile policies and times, and against runs of one GPU."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator import registry
from moesim.simulator.engines.compiled.engine import replay_compiled
from moesim.simulator.errors import BudgetError, CapabilityError, InputError
from moesim.simulator.gpus import hands
from moesim.simulator.gpus.placement import PLACEMENTS
from moesim.simulator.gpus.plan import GpuPlan
from moesim.simulator.gpus.shared_links import Limit
from moesim.simulator.ledger import check
from moesim.simulator.messages import Copy, Run
from moesim.simulator.registry import Axis
from moesim.simulator.runs import Prepared
from moesim.simulator.serving.spec import Serving
from moesim.simulator.testing import (
    adversarial,
    engine,
    sample_spec,
    seeded,
    small_run,
    tiny_trace,
    trace_of,
)

CACHES = [sample_spec("cache", name) for name in registry.names("cache")]
WHOLE = [spec for spec in CACHES if "split" not in spec.cls.does]


def outcome(run: Prepared, name: str = "clock") -> dict[str, Any]:
    """Return all that a run on an engine decided and measured."""
    controller = run.controller(keep_log=True)
    served = engine(run, controller, name=name)
    timings = served.run()
    controller.close()
    check(controller.counts, timings)
    return {
        "token ends": [request.token_ends_ns for request in timings.requests],
        "counts": controller.counts,
        "timings": timings,
        "log": controller.log,
        "spans": sorted(served.spans or [], key=str),
    }


def decided(found: dict[str, Any]) -> list[Any]:
    """Return all commands of a log, with the time of each answer; pools have no numbers."""
    return [
        (
            now_ns,
            [
                c._replace(dst=c.dst._replace(pool=0)) if isinstance(c, Copy) else c
                for c in commands
            ],
        )
        for _, now_ns, commands in found["log"]
    ]


def two_hits(**machine: Any) -> Prepared:
    """Return a decode token that needs both experts of a layer, each on its own GPU and there."""
    trace = trace_of([([], [[[0, 1]]])], experts=4)
    static = "static:order=front"
    return small_run(trace, cache=static, gpus=2, machine={"slow_down_ppm": 0, **machine})


def test_an_exchange_over_nvlink_by_hand() -> None:
    """Activations go to GPU 1 before its run, its result comes back before the head.

    The choice is read at 17 510: arrival 1 010, step 1 000, launch 10 000, attention 500, read
    5 000. Deciding takes 1 230 ns (two experts, three commands). GPU 0's run is issued 6 000 later;
    the copy of the activations 2 000 after that, at 26 740, and the run of GPU 1 at 32 740. A copy
    takes 20 000 + 1 000 for 8 192 bytes, so that run begins at 47 740, ends 1 000 later, and its
    result is back at 69 740. The head takes 1 000, reading it 5 000.
    """
    run = two_hits(peer_latency_ns=20_000, peer_bytes_per_s=8_192_000_000)
    found = outcome(run)
    jobs = {(track, begin, end) for track, _, begin, end in found["spans"] if track != "host"}
    assert jobs == {
        ("gpu 0", 12_010, 12_510),
        ("gpu 0", 24_740, 25_740),
        ("exchange 0", 26_740, 47_740),
        ("gpu 1", 47_740, 48_740),
        ("exchange 1", 48_740, 69_740),
        ("gpu 0", 69_740, 70_740),
    }
    assert found["token ends"] == [[75_740]]
    assert [own.bytes_sent for own in found["timings"].by_gpu] == [8_192, 8_192]


def test_an_exchange_through_the_host_by_hand() -> None:
    """Without NVLink each way is a copy to the host and one from it: 2 x 31 000 in place of 21 000.

    The copy that is issued at 26 740 arrives at 88 740; the result, sent at 89 740, at 151 740.
    """
    run = two_hits(pairs=(), link_latency_ns=30_000, link_bytes_per_s=8_192_000_000)
    assert outcome(run)["token ends"] == [[151_740 + 1_000 + 5_000]]


def test_an_exchange_on_a_narrow_way_back_by_hand() -> None:
    """Half the bandwidth to the host doubles 1 000 of each of the two ways: 62 000 more than 0."""
    wide, narrow = (
        outcome(
            two_hits(
                pairs=(),
                link_latency_ns=30_000,
                link_bytes_per_s=8_192_000_000,
                shared_back=[([0, 1], most)],
            )
        )
        for most in (10**11, 4_096_000_000)
    )
    assert wide["token ends"] == [[151_740 + 1_000 + 5_000]]
    assert narrow["token ends"] == [[151_740 + 2 * 1_000 + 1_000 + 5_000]]


@pytest.mark.parametrize("gpus", [2, 3])
@pytest.mark.parametrize("placement", ["round_robin", "by_layer"])
@given(seed=st.integers(0, 9), most=st.sampled_from([3 * 10**8, 10**9, 10**10]))
def test_the_engines_agree_on_a_shared_way_back(
    gpus: int, placement: str, seed: int, most: int
) -> None:
    """Clock and SimPy show equal times, counts, commands and spans where exchanges get shares."""
    run = small_run(
        tiny_trace(seed=seed),
        slots=12,
        gpus=gpus,
        placement=placement,
        seed=seed,
        machine={"gpus": 3, "pairs": (), "shared_back": [([0, 1, 2], most)]},
    )
    assert outcome(run, "simpy") == outcome(run, "clock")


def test_a_pipeline_by_hand() -> None:
    """With whole layers placed the residual goes over once, and nothing else does.

    Layer 0's run of two experts is issued 7 000 after a decision of 1 220 ns, at 25 730, and takes
    2 000: 27 730. The residual's copy, issued at 27 730, takes 21 000; layer 1's attention begins
    at 48 730 on GPU 1 and takes 500. Its choice is read 5 000 later and decided in 1 220; the run
    is issued at 62 450 and the head 10 000 later, when the run is over: 72 450, 1 000, 5 000.
    """
    trace = trace_of([([], [[[0, 1], [0, 1]]])], experts=4)
    run = small_run(
        trace,
        cache="static:order=front",
        gpus=2,
        placement="by_layer",
        machine={
            "slow_down_ppm": 0,
            "peer_latency_ns": 20_000,
            "peer_bytes_per_s": 8_192_000_000,
        },
    )
    found = outcome(run)
    tracks = [(track, begin, end) for track, _, begin, end in found["spans"] if track != "host"]
    assert ("exchange 0", 27_730, 48_730) in tracks
    assert ("gpu 1", 48_730, 49_230) in tracks
    assert found["token ends"] == [[78_450]]
    devices = [
        command.device.number
        for _, _, commands in found["log"]
        for command in commands
        if isinstance(command, Run)
    ]
    assert devices == [0, 1]


@pytest.mark.parametrize(("gpus", "copy_ns"), [(1, 100_000), (2, 200_000), (4, 400_000)])
def test_a_switch_halves_the_share_when_its_users_double(gpus: int, copy_ns: int) -> None:
    """A megabyte for each of so many GPUs at once over one switch of 10 GB/s: exactly so long."""
    trace = trace_of([([], [[list(range(gpus))]])], experts=4)
    run = small_run(
        trace,
        slots=4,
        gpus=gpus,
        machine={"gpus": 4, "link_latency_ns": 0, "shared": [(range(4), 10**10)]},
        runtime={"copy_issue_ns": 0},
    )
    spans = outcome(run)["spans"]
    assert [end - begin for track, _, begin, end in spans if track.startswith("h2d")] == [
        copy_ns
    ] * gpus


@pytest.mark.parametrize("gpus", [2, 3])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("cache", WHOLE, ids=lambda spec: spec.text)
def test_every_cache_policy_serves_several_gpus(cache: Any, placement: str, gpus: int) -> None:
    """Under any, laws hold against a driver that ends things as it likes, and the books balance."""
    trace = tiny_trace(layers=3)
    run = small_run(
        trace,
        cache=cache,
        prefetch="next_gate:horizon=1",
        slots=16,
        gpus=gpus,
        placement=placement,
        machine={"gpus": 3, "shared": [([0, 1, 2], 15 * 10**9)]},
    )
    adversarial(run, seeded(1)).run()
    found = outcome(run)
    assert found["counts"].demands > 0
    for _, _, commands in found["log"]:
        for command in commands:
            assert run.gpus is not None
            if isinstance(command, Copy):
                assert command.dst.device == run.gpus.home[command.expert]
            elif isinstance(command, Run) and command.device.kind == "gpu":
                assert {run.gpus.home[e] for e in command.experts} == {command.device.number}


@pytest.mark.parametrize("cache", [spec for spec in CACHES if spec not in WHOLE], ids=str)
def test_split_experts_are_refused_by_name(cache: Any) -> None:
    """A policy that splits experts says that several GPUs hold whole ones."""
    run = small_run(tiny_trace(), cache=cache, gpus=2)
    with pytest.raises(CapabilityError, match="--gpus 1"):
        run.controller()


durations = st.integers(0, 3)
AXES: tuple[Axis, ...] = ("cache", "prefetch", "schedule")
SPECS = {axis: [sample_spec(axis, name) for name in registry.names(axis)] for axis in AXES}
SPECS["cache"] = WHOLE


def any_run(data: st.DataObject, *, least_issue_ns: int = 0, **machine: Any) -> Prepared | None:
    """Return a run of any policies with durations of few ns, which force ties."""
    draw = data.draw
    gpus = draw(st.integers(2, 3))
    run = small_run(
        tiny_trace(layers=3, decode_tokens=4, seed=draw(st.integers(0, 9))),
        cache=draw(st.sampled_from(SPECS["cache"])),
        prefetch=draw(st.sampled_from(SPECS["prefetch"])),
        schedule=draw(st.sampled_from(SPECS["schedule"])),
        slots=draw(st.integers(12, 18)),
        expert_bytes_L=[100] * 3,
        window_bytes=draw(st.sampled_from([1, 150, 1 << 24])),
        gpus=gpus,
        placement=draw(st.sampled_from(PLACEMENTS)),
        machine={
            "gpus": 3,
            "link_bytes_per_s": 10**11 // draw(st.integers(1, 12)),
            "link_latency_ns": draw(durations),
            "peer_latency_ns": draw(durations),
            "peer_bytes_per_s": 10**15,
            "pairs": draw(st.sampled_from([(), [(0, 1)], [(1, 2)]])),
            "first_copy_extra_ns": draw(durations),
            "pause_threshold_ns": draw(st.integers(1, 20)),
            "slow_down_ppm": draw(st.sampled_from([0, 500_000, 1_000_000])),
            "cpu_bytes_per_s": 10**11,
            "dram_bytes_per_s": 10**11 // draw(st.integers(1, 8)),
            "cpu_flop_per_s": 10**15,
            **machine,
        },
        runtime={
            "blocking": draw(st.booleans()) and draw(st.booleans()),
            "copy_issue_ns": draw(st.integers(least_issue_ns, 3)),
            "launch_layer_ns": draw(durations),
            "launch_run_ns": draw(durations),
            "router_wait_ns": draw(durations),
            "poll_ns": draw(durations),
            "dense_fixed_ns": draw(durations),
            "expert_fixed_ns": draw(durations),
            "expert_after_copy_ns": draw(durations),
            "copy_start_ns": draw(durations),
            "expert_while_copying_ns": draw(durations),
            "head_fixed_ns": draw(durations),
            "hand_over_ns": draw(durations),
            "notice_ns": draw(durations),
            "decision_ns": (draw(durations), draw(st.integers(0, 1)), draw(st.integers(0, 1))),
            "decision_place": draw(st.sampled_from(["host", "device"])),
        },
    )
    try:
        run.controller()
    except BudgetError:
        return None
    return run


@given(st.data())
def test_the_engines_agree_whatever_ties(data: st.DataObject) -> None:
    """The clock and SimPy give equal figures, logs and spans, shared links included."""
    draw = data.draw
    shared = draw(st.sampled_from([(), [([0, 1], 10**10)], [([0, 1, 2], 3 * 10**10)]]))
    run = any_run(data, shared=shared)
    if run is not None:
        assert outcome(run, "simpy") == outcome(run, "clock")


@given(st.data())
def test_a_switch_without_end_is_as_many_links(data: st.DataObject) -> None:
    """Links that share what never binds give what links give that share nothing.

    Copies take a ns to hand over: else one may be handed over in the instant in which a kernel
    looks whether any runs, and which was first depends on when the host was last awake.
    """
    run = any_run(data, least_issue_ns=1, dram_bytes_per_s=10**15)
    if run is None:
        return
    apart = outcome(run)
    endless = [Limit(frozenset(range(run.gpus.gpus)), 10**15)] if run.gpus else []
    with patch.object(hands, "limits_of", lambda *_: endless):
        together = outcome(run)
    assert apart == together


@given(st.data())
def test_a_gpu_on_which_nothing_lives_changes_nothing(data: st.DataObject) -> None:
    """With all homes on GPU 0 of two, times and decisions are those of one GPU."""
    run = any_run(data, least_issue_ns=1, dram_bytes_per_s=10**15)
    if run is None:
        return
    assert run.gpus is not None
    fixed = run.gpus.fixed_G[0]
    run.gpus = GpuPlan(
        "none",
        (0,) * len(run.gpus.home),
        (0,) * len(run.gpus.router_L),
        (run.memory.expert_bytes, 0),
        (fixed, fixed),
    )
    try:
        alone = outcome(replace(run, gpus=None))
    except BudgetError:
        return
    beside = outcome(run)
    assert alone["token ends"] == beside["token ends"]
    assert alone["counts"] == beside["counts"]
    assert decided(alone) == decided(beside)
    for figure in ("gpu_busy_ns", "link_busy_ns", "slow_down_ns", "host_busy_ns", "span_ns"):
        assert getattr(alone["timings"], figure) == getattr(beside["timings"], figure)


def test_a_run_of_one_gpu_knows_nothing_of_others() -> None:
    """Neither how many it could have nor what their links share changes its id or its row."""
    trace = tiny_trace()
    alone = small_run(trace, slots=8)
    machine = {"gpus": 2, "shared": [([0, 1], 10**9)]}
    beside = small_run(trace, slots=8, machine=machine)
    assert alone.run_id == beside.run_id
    assert alone.replay().row == beside.replay().row
    assert alone.replay().row["by_gpu"] is None


def test_a_row_says_what_each_gpu_did() -> None:
    """Bytes add up, and the row's busy times are those of the busiest."""
    row = small_run(tiny_trace(), slots=8, gpus=2).replay().row
    assert (row["gpus"], row["placement"]) == (2, "round_robin")
    assert row["bytes_total"] == sum(own["bytes_copied"] for own in row["by_gpu"])
    assert row["link_busy_ns"] == max(own["link_busy_ns"] for own in row["by_gpu"])
    assert row["gpu_busy_ns"] == max(own["gpu_busy_ns"] for own in row["by_gpu"])
    assert row["bytes_exchanged"] == sum(own["bytes_sent"] for own in row["by_gpu"]) > 0
    assert row["expert_budget_bytes"] == sum(own["expert_budget_bytes"] for own in row["by_gpu"])
    assert row["bound_tpot_ms"] is None
    assert "no bounds" in row["notes"]


def test_several_gpus_serve_a_stream_of_requests() -> None:
    """Every request that arrives is served once, in batches, under both engines alike."""
    run = small_run(
        tiny_trace(),
        schedule="fcfs:max_batch=2/resident_first",
        slots=8,
        gpus=2,
        serving=Serving(arrivals="poisson:rate=2000,requests=6"),
        kv="1MiB",
    )
    served = outcome(run)
    assert served == outcome(run, "simpy")
    assert len(served["token ends"]) == 6
    assert all(served["token ends"])


def test_what_several_gpus_cannot_do_is_refused_by_name() -> None:
    """The compiled engine, and more GPUs than there are, name the way out."""
    run = small_run(tiny_trace(), slots=8, gpus=2)
    with pytest.raises(CapabilityError, match="--engine clock"):
        replay_compiled(run)
    with pytest.raises(InputError, match="--gpus 3: round has 2"):
        small_run(tiny_trace(), gpus=3)
