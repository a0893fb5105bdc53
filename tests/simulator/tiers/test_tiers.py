"""Three tiers and a neighbour: ten accesses timed by hand, and what must hold of any run.

One layer of four experts of 1 MB, top-1, ten decode tokens, a single slot in VRAM, room for two
experts in RAM, which begins empty. The host costs nothing, so that a token takes

    2.5 µs      attention 0.5, expert 1, head 1: the expert is in VRAM
    107.5 µs    and 105 more over PCIe: it is in RAM
    1207.5 µs   and 1100 more from NVMe
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.ledger import Counts, Timings, check
from moesim.simulator.messages import Copy, Run
from moesim.simulator.registry import parse
from moesim.simulator.runs import ENGINES, Prepared, prepare
from moesim.simulator.serving.spec import Serving
from moesim.simulator.sweeps.file import RunOptions
from moesim.simulator.terms import CPU, NVME, RAM, Cause
from moesim.simulator.testing import (
    SPLIT_AT_RANDOM,
    WISH_AT_RANDOM,
    engine,
    logged,
    small_run,
    tiny_trace,
    trace_of,
)
from moesim.simulator.tiers.plan import TierPlan

SAMPLE = Path(__file__).resolve().parents[3] / "traces" / "samples" / "reference-12x32.npz"
MB = 1_000_000
HIT_NS, RAM_NS, NVME_NS = 2_500, 107_500, 1_207_500
FREE: Mapping[str, Any] = {
    "copy_issue_ns": 0,
    "launch_layer_ns": 0,
    "launch_run_ns": 0,
    "launch_per_expert_ns": 0,
    "router_wait_ns": 0,
    "poll_ns": 0,
    "hand_over_ns": 0,
    "notice_ns": 0,
    "decision_ns": (0, 0, 0),
}
CHOICES = [0, 0, 1, 0, 2, 1, 0, 0, 3, 0]
EXCLUSIVE_NS = RAM_NS + 105_000
"""RAM to VRAM, after the expert that was there has gone the other way."""

PEER_NS = 2_500 + 5_000 + 50_000
"""1 MB over NVLink at 20 GB/s."""


def tiers(
    host: str | None = "lru",
    host_slots: int = 2,
    *,
    peer: str | None = None,
    peer_slots: int = 1,
    is_exclusive: bool = False,
    starts_empty: bool = True,
    size: int = MB,
) -> TierPlan:
    """Return tiers whose room is counted in experts."""
    return TierPlan(
        parse("cache", host) if host else None,
        host_slots * size,
        parse("cache", peer) if peer else None,
        peer_slots * size,
        1,
        is_exclusive=is_exclusive,
        starts_empty=starts_empty,
    )


def by_hand(plan: TierPlan | None, *, slots: int = 1, choices: Sequence[int] = CHOICES) -> Prepared:
    """Return the run of the module's table."""
    return small_run(
        trace_of([([], [[[expert]] for expert in choices])], experts=4),
        slots=slots,
        machine={"slow_down_ppm": 0, "peer_bytes_per_s": 2 * 10**10},
        runtime=FREE,
        tiers=plan,
    )


def served(run: Prepared, name: str = "clock") -> tuple[Counts, Timings]:
    """Serve a run, balance its books and return them."""
    controller = run.controller()
    timings = engine(run, controller, name=name).run()
    controller.close()
    check(controller.counts, timings)
    return controller.counts, timings


def token_times(timings: Timings) -> list[int]:
    """Return how long each token took."""
    request = timings.requests[0]
    begins = [request.began_ns, *request.token_ends_ns[:-1]]
    return [end - begin for begin, end in zip(begins, request.token_ends_ns, strict=True)]


@pytest.mark.parametrize("name", ENGINES)
def test_every_token_takes_what_was_worked_out_by_hand(name: str) -> None:
    """Each token pays for the tiers that its expert crosses, and RAM forgets the oldest fetch."""
    counts, timings = served(by_hand(tiers()), name)
    # After each token RAM has, oldest first: 0, 0, 01, 10, 02, 21, 10, 10, 03, 30.
    expected = [
        NVME_NS, HIT_NS, NVME_NS, RAM_NS, NVME_NS, NVME_NS, NVME_NS, HIT_NS, NVME_NS, RAM_NS,
    ]  # fmt: skip
    assert token_times(timings) == expected
    assert (counts.host_demands, counts.host_hits) == (8, 2)
    assert (counts.bytes_nvme, counts.bytes_total, counts.bytes_demoted) == (6 * MB, 8 * MB, 0)
    assert timings.engines_busy_ns["nvme"] == 6 * 1_100_000


@pytest.mark.parametrize("name", ENGINES)
def test_exclusive_ram_takes_what_leaves_vram(name: str) -> None:
    """A victim goes down before another comes up, beside NVMe but before a copy out of RAM."""
    counts, timings = served(by_hand(tiers(is_exclusive=True)), name)
    # After each token RAM has: nothing, nothing, 0, 1, 0, 2, 1, 1, 0, 3.
    expected = [
        NVME_NS, HIT_NS, NVME_NS, EXCLUSIVE_NS, NVME_NS, NVME_NS, NVME_NS, HIT_NS, NVME_NS,
        EXCLUSIVE_NS,
    ]  # fmt: skip
    assert token_times(timings) == expected
    assert (counts.host_hits, counts.bytes_nvme, counts.bytes_demoted) == (2, 6 * MB, 7 * MB)
    assert timings.engine_bytes["d2h"] == counts.bytes_demoted


@pytest.mark.parametrize("name", ENGINES)
def test_a_neighbour_is_copied_from_before_ram(name: str) -> None:
    """What lies in another GPU's VRAM comes over its link; the rest as if there were none."""
    plan = tiers(None, peer="static:order=uniform,staging=1")
    counts, timings = served(by_hand(plan), name)
    expected = [
        PEER_NS, HIT_NS, RAM_NS, PEER_NS, RAM_NS, RAM_NS, PEER_NS, HIT_NS, RAM_NS, PEER_NS,
    ]  # fmt: skip
    assert token_times(timings) == expected
    assert (counts.bytes_peer, counts.bytes_total) == (4 * MB, 8 * MB)
    assert timings.engine_bytes["peer"] == 4 * MB


@pytest.mark.parametrize("name", ENGINES)
def test_a_neighbour_that_keeps_what_comes_takes_victims(name: str) -> None:
    """A victim of VRAM moves over NVLink before its slot is filled; one still there is not moved.

    With room for one: 0 0 | 1 (0 goes) | 0 (comes back and is still there; 1 takes its place when
    it goes) and so on. A copy out of RAM waits for the 55 µs of the move.
    """
    counts, timings = served(by_hand(tiers(None, peer="lru")), name)
    out_ns = 55_000
    assert token_times(timings)[:4] == [RAM_NS, HIT_NS, RAM_NS + out_ns, PEER_NS]
    assert counts.bytes_demoted == timings.engine_bytes["peer_out"] > 0
    assert counts.bytes_peer == timings.engine_bytes["peer"] > 0


def test_all_in_ram_is_the_run_without_tiers() -> None:
    """RAM as a tier that holds everything from the beginning changes no time and no count."""
    for seed in range(6):
        trace = tiny_trace(seed=seed)
        options: dict[str, Any] = {
            "prefetch": WISH_AT_RANDOM if seed % 2 else "next_gate",
            "schedule": "resident_first" if seed % 3 else "cheaper",
            "slots": 5,
            "seed": seed,
        }
        without = small_run(trace, **options)
        everything = tiers(host_slots=trace.layers * trace.experts, starts_empty=False)
        counts, timings = served(small_run(trace, tiers=everything, **options))
        plain_counts, plain_timings = served(without)
        assert timings == plain_timings
        assert counts.bytes_nvme == 0
        counts.host_demands = counts.host_hits = 0
        assert counts == plain_counts


def test_ram_that_holds_everything_needs_no_tiers() -> None:
    """The room in RAM is a tier only where it is smaller than the model: the run is the same."""
    run = by_hand(None)
    assert run.memory.host_bytes is None
    assert run.controller().shelves is None


def test_hardly_any_ram_is_as_fast_as_nvme() -> None:
    """With room for the expert that passes through, every miss takes NVMe's time and PCIe's."""
    for host in ("transient", "lru"):
        alternating = [0, 1] * 5
        counts, timings = served(by_hand(tiers(host, 1), choices=alternating))
        assert token_times(timings) == [NVME_NS] * 10
        assert counts.host_hits == 0
    trace = tiny_trace(prompt_tokens=0)
    run = small_run(trace, cache="transient", slots=4, tiers=tiers("transient", 1), runtime=FREE)
    counts, timings = served(run)
    assert counts.bytes_nvme == counts.bytes_total
    # The next read waits until the one expert that RAM holds has gone up.
    assert timings.engines_busy_ns["nvme"] == counts.misses * 1_100_000
    assert timings.span_ns > counts.misses * (1_100_000 + 105_000)


def test_more_ram_never_reads_more_from_nvme() -> None:
    """LRU has the stack property: a larger host cache has all that a smaller one has."""
    for seed in range(3):
        trace = tiny_trace(seed=seed, decode_tokens=20)
        read = [
            served(small_run(trace, slots=4, tiers=tiers(host_slots=slots)))[0].bytes_nvme
            for slots in range(4, 19)
        ]
        assert read == sorted(read, reverse=True)
        assert read[0] > read[-1]


def test_the_host_cache_is_lru_over_the_misses_of_vram() -> None:
    """What is read from NVMe is what a list of the last so many fetches lacks."""
    trace = tiny_trace(seed=3, top_k=1, prompt_tokens=0, decode_tokens=40)
    plain = small_run(trace, slots=2)
    controller = plain.controller(keep_log=True)
    engine(plain, controller).run()
    fetched = [copy.expert for copy in logged(controller) if isinstance(copy, Copy)]
    for slots in (2, 5, 9):
        ages: OrderedDict[int, None] = OrderedDict()
        absent = 0
        for expert in fetched:
            absent += expert not in ages
            ages[expert] = None
            ages.move_to_end(expert)
            if len(ages) > slots:
                ages.popitem(last=False)
        counts, _ = served(small_run(trace, slots=2, tiers=tiers(host_slots=slots)))
        assert counts.bytes_nvme == absent * MB
        assert counts.host_demands == len(fetched)


@pytest.mark.parametrize("name", ENGINES)
def test_a_cpu_expert_is_read_into_ram_first(name: str) -> None:
    """Computing in place takes NVMe's time where the expert lies there, and no more than that."""
    run = small_run(
        trace_of([([], [[[expert]] for expert in CHOICES])], experts=4),
        slots=1,
        machine={"slow_down_ppm": 0},
        runtime=FREE,
        schedule="cpu_on_miss",
        tiers=tiers(),
    )
    controller = run.controller(keep_log=True)
    timings = engine(run, controller, name=name).run()
    controller.close()
    check(controller.counts, timings)
    in_place_ns = 500 + run.costs.expert_cpu_ns(0, 1) + 1_000
    # 0 0 | 1 | 0 | 2 (1 leaves) | 1 (0 leaves) | 0 (2 leaves) 0 | 3 (1 leaves) | 0
    absent = [1, 0, 1, 0, 1, 1, 1, 0, 1, 0]
    assert token_times(timings) == [in_place_ns + 1_100_000 * far for far in absent]
    assert controller.counts.bytes_nvme == 6 * MB
    assert controller.counts.bytes_total == 0


def test_each_cpu_expert_from_nvme_runs_when_it_has_come() -> None:
    """Those in RAM are one run; those read first are runs of their own, and wait for their read."""
    run = small_run(tiny_trace(seed=1), slots=4, schedule="cpu_on_miss", tiers=tiers(host_slots=6))
    controller = run.controller(keep_log=True)
    engine(run, controller).run()
    reads: set[int] = set()
    kinds = set()
    for command in logged(controller):
        if isinstance(command, Copy) and command.src == NVME:
            reads.add(command.n)
        if isinstance(command, Run) and command.device == CPU:
            waits = reads.intersection(command.after)
            assert len(waits) == len(command.after) <= 1
            assert not waits or len(command.experts) == 1
            kinds.add(bool(waits))
    assert kinds == {True, False}


def test_a_prefetch_never_waits_for_nvme_on_the_way_to_vram() -> None:
    """What is wished for is read into RAM first, and handed over for VRAM when it is there."""
    for seed in range(6):
        run = small_run(
            tiny_trace(seed=seed),
            prefetch=WISH_AT_RANDOM,
            slots=6,
            tiers=tiers(host_slots=5),
            seed=seed,
        )
        controller = run.controller(keep_log=True)
        engine(run, controller).run()
        copies = [command for command in logged(controller) if isinstance(command, Copy)]
        promoted = {copy.n for copy in copies if copy.src == NVME and copy.cause is Cause.PREFETCH}
        ahead = [copy for copy in copies if copy.src == RAM and copy.cause is Cause.PREFETCH]
        assert promoted
        assert ahead
        assert all(not copy.after for copy in ahead)


def test_reading_ahead_hides_nvme() -> None:
    """A prefetch of what comes next is faster than none, and no slower than RAM alone."""
    trace = tiny_trace(seed=2, prompt_tokens=0, decode_tokens=12)
    quick = {"nvme_bytes_per_s": 5 * 10**9, "nvme_latency_ns": 0}

    def span_ns(prefetch: str, plan: TierPlan | None) -> int:
        run = small_run(trace, slots=9, prefetch=prefetch, tiers=plan, machine=quick)
        return served(run)[1].span_ns

    plan = tiers(host_slots=9, starts_empty=False)
    assert span_ns("oracle", None) <= span_ns("oracle", plan) < span_ns("none", plan)


def test_a_faster_neighbour_lies_between_all_there_and_none() -> None:
    """TPOT with some experts at the neighbour's lies between that of all and none, by hand."""
    alternating = [0, 1, 2, 3] * 3
    everyone = tiers(None, peer="static:order=uniform,staging=1", peer_slots=4)
    half = tiers(None, peer="static:order=uniform,staging=1", peer_slots=2)
    _, all_there = served(by_hand(everyone, choices=alternating))
    _, some = served(by_hand(half, choices=alternating))
    _, none = served(by_hand(None, choices=alternating))
    assert token_times(all_there) == [PEER_NS] * 12
    assert token_times(some) == [PEER_NS, PEER_NS, RAM_NS, RAM_NS] * 3
    assert token_times(none) == [RAM_NS] * 12


def test_a_neighbour_stands_before_nvme() -> None:
    """What another GPU holds is read from NVMe by nobody."""
    counts, _ = served(by_hand(tiers("lru", 2, peer="static:order=uniform,staging=1")))
    # All but expert 0, which is four of the eight misses, come from NVMe or RAM.
    assert counts.bytes_peer == 4 * MB
    assert counts.host_demands == 4


def test_a_log_gives_the_same_commands() -> None:
    """A fresh controller fed the facts of a run with tiers answers as the first did."""
    run = small_run(
        tiny_trace(seed=4),
        prefetch=WISH_AT_RANDOM,
        schedule=SPLIT_AT_RANDOM,
        slots=5,
        tiers=tiers("lfu", 4, peer="lru", is_exclusive=True),
    )
    controller = run.controller(keep_log=True)
    engine(run, controller).run()
    again = run.controller()
    assert controller.log
    for facts, now_ns, commands in controller.log:
        assert again.handle(facts, now_ns) == commands


@given(st.data())
def test_clock_and_simpy_are_equal(data: st.DataObject) -> None:
    """Counts and times of a run with tiers are the same on both engines."""
    draw = data.draw
    run = small_run(
        tiny_trace(layers=2, experts=4, decode_tokens=3, seed=draw(st.integers(0, 99))),
        prefetch=draw(st.sampled_from(["none", WISH_AT_RANDOM])),
        schedule=draw(st.sampled_from(["resident_first", "cheaper", "two_pointers"])),
        slots=draw(st.integers(4, 7)),
        tiers=tiers(
            draw(st.sampled_from(["lru", "fifo", "lfu"])),
            draw(st.integers(1, 7)),
            peer=draw(st.sampled_from([None, "lru"])),
            is_exclusive=draw(st.booleans()),
            starts_empty=draw(st.booleans()),
        ),
        seed=draw(st.integers(0, 99)),
    )
    assert served(run, "clock") == served(run, "simpy")


def test_requests_that_arrive_are_served_from_tiers() -> None:
    """A server's requests end once, on both engines at the same times, with NVMe in use."""
    run = small_run(
        tiny_trace(),
        slots=6,
        prefetch=WISH_AT_RANDOM,
        schedule="fcfs:max_batch=2/resident_first",
        serving=Serving("poisson:rate=100,requests=6"),
        tiers=tiers(host_slots=5),
    )
    counts, timings = served(run)
    assert len(timings.requests) == 6
    assert counts.bytes_nvme > 0
    assert served(run, "simpy") == (counts, timings)


def prepared(**options: Any) -> Prepared:
    """Return a run at the cost of Mixtral, which takes 21 GiB in int4 and 84 in bf16."""
    given = {"hardware": "rtx4090", "weights_format": "int4", **options}
    shared = {"trace": str(SAMPLE), "requests": 1, "cost_of": "mixtral-8x7b", "slots": "5%"}
    return prepare(RunOptions(**shared, **given).run_spec())


def test_a_model_larger_than_ram_is_served_from_nvme() -> None:
    """Without a word of the user RAM takes what the system leaves, and the row says so."""
    run = prepared(weights_format="bf16")
    assert run.memory.host_bytes == 60 << 30
    row = run.replay().row
    assert (row["host_cache"], row["host_cache_bytes"]) == ("lru", 60 << 30)
    assert row["bytes_nvme"] >= row["bound_nvme_bytes"] > 0
    assert "NVMe holds all" in row["notes"]
    assert row["nvme_busy_ns"] > 0


def test_a_model_that_fits_knows_no_tiers() -> None:
    """Options of RAM's cache change neither the run nor its name where RAM holds all experts."""
    plain, with_options = prepared(), prepared(host_cache="lfu", host_exclusive=True)
    assert plain.tiers is with_options.tiers is None
    assert plain.run_id == with_options.run_id
    assert with_options.notes[-1] == (
        "RAM holds all experts, so that its cache policy decides nothing"
    )
    assert plain.replay().row["host_cache"] == ""


def test_what_decides_in_a_tier_is_part_of_the_run() -> None:
    """Room and policy of a tier, and how RAM begins, each give another run."""
    runs = [
        prepared(ram="8GiB"),
        prepared(ram="9GiB"),
        prepared(ram="8GiB", host_cache="lfu"),
        prepared(ram="8GiB", host_exclusive=True),
        prepared(ram="8GiB", host_empty=True),
        prepared(hardware="rtx3090x6", peer_cache="8GiB"),
        prepared(hardware="rtx3090x6", peer_cache="8GiB", peer_policy="fifo"),
    ]
    assert len({run.run_id for run in runs}) == len(runs)


def test_nvme_is_read_as_much_as_its_bound_says_at_least() -> None:
    """A run reads at least what is used and had no room anywhere, however RAM is kept."""
    for host in ("lru", "fifo", "lfu", "belady"):
        for is_exclusive in (False, True):
            run = prepared(ram="8GiB", host_cache=host, host_exclusive=is_exclusive)
            row = run.replay().row
            assert row["bytes_nvme"] >= row["bound_nvme_bytes"] > 0


def test_a_peer_has_no_bounds_and_says_why() -> None:
    """Bounds know one link; a run that has two is held against none."""
    row = prepared(hardware="rtx3090x6", peer_cache="8GiB").replay().row
    assert row["bound_tpot_ms"] is None
    assert "no bounds" in row["notes"]
    assert row["bytes_peer"] > 0
    assert row["peer_busy_ns"] > 0


def test_cheaper_lets_both_sides_wait_for_nvme() -> None:
    """What comes from NVMe goes where it is done sooner once it has come: to a CPU free by then.

    In place takes 60 µs, by copy 106. Of two experts in RAM the CPU takes one and the link the
    other, since the CPU would be done with both at 120. If the second comes from NVMe at 1100, the
    CPU is long free and done at 1160, the GPU at 1206.
    """

    def devices(plan: TierPlan | None) -> dict[int, str]:
        run = small_run(
            trace_of([([], [[[0, 3]]])], experts=4),
            slots=2,
            machine={"slow_down_ppm": 0, "cpu_bytes_per_s": 22 * 10**9},
            schedule="cheaper",
            tiers=plan,
        )
        controller = run.controller(keep_log=True)
        engine(run, controller).run()
        runs = [command for command in logged(controller) if isinstance(command, Run)]
        return {expert: run.device.kind for run in runs for expert in run.experts}

    assert devices(None) == {0: "cpu", 3: "gpu"}
    assert devices(tiers("static:order=uniform,staging=1", 3)) == {0: "cpu", 3: "cpu"}
