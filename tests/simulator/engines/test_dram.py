"""The host's DRAM in fair shares: worked by hand, and the same on both engines."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.hardware_profiles.round_numbers import round_machine, round_runtime
from moesim.simulator import registry
from moesim.simulator.costs import CopyKind, CostModel
from moesim.simulator.engines.compiled.engine import replay_compiled
from moesim.simulator.engines.dram import Workers
from moesim.simulator.engines.hands import copy_times
from moesim.simulator.engines.machine import Ends, Server
from moesim.simulator.errors import CapabilityError
from moesim.simulator.gpus.shared_links import Limit, SharedEngine, SharedLinks
from moesim.simulator.ledger import check
from moesim.simulator.messages import Run
from moesim.simulator.registry import parse
from moesim.simulator.runs import Prepared
from moesim.simulator.serving.spec import Serving
from moesim.simulator.terms import CPU
from moesim.simulator.testing import engine, small_run, tiny_trace
from moesim.simulator.tiers.plan import TierPlan

MB = 10**6
GB_PER_S = 10**9


class Host:
    """A CPU, a link and a drive, each with jobs in a queue of its own, over one DRAM.

    The CPU reads a megabyte in 10 µs alone and in 20 beside copies, a copy takes 100 µs.
    """

    def __init__(self, **machine: Any) -> None:
        machine = {"link_latency_ns": 0, "nvme_latency_ns": 0, **machine}
        self.costs = CostModel.for_tests(machine=machine)
        self.ends: Ends = {}
        waiting: list[Server] = []
        kinds: list[CopyKind] = ["h2d", "nvme"]
        self.copying = {
            kind: SharedEngine(kind, copy_times(self.costs, kind), self.ends, waiting, None)
            for kind in kinds
        }
        self.cpu = Workers(self.costs, self.costs.shape.experts, self.ends, waiting, None)
        users = [*self.copying.values(), self.cpu]
        limit = Limit(frozenset(range(3)), self.costs.dram_bytes_per_s)
        self.links = SharedLinks(users, [limit], slowing=frozenset([0]))

    def copy(self, n: int, kind: str, nbytes: int, at_ns: int = 0) -> None:
        """Hand a copy over."""
        self.copying[kind].submit(n, "copy", nbytes, at_ns)

    def compute(self, n: int, experts: Sequence[int], at_ns: int = 0, tokens: int = 1) -> None:
        """Hand experts of layer 0 over to the CPU."""
        counts = (tokens,) * len(experts)
        ns = self.costs.experts_cpu_ns(0, counts)
        self.cpu.submit(n, Run(n, tuple(experts), counts, CPU), ns, at_ns)

    def run(self) -> Ends:
        """Let everything happen, and return when."""
        while self.links.next_event_ns() is not None:
            self.links.step()
        return self.ends


def travel_ns(host: Host, tokens: int = 1) -> int:
    """Return what a run on the CPU takes beside its products."""
    products_ns = host.costs.product_cpu_ns(0, tokens)
    return host.costs.experts_cpu_ns(0, [tokens]) - products_ns


def test_alone_each_takes_what_it_takes() -> None:
    """A product of 10 µs and its round trip, a copy of 100, a read of 1000, not at a time."""
    host = Host()
    host.compute(1, [0])
    host.copy(2, "h2d", MB, 200_000)
    host.copy(3, "nvme", MB, 400_000)
    assert host.run() == {1: 10_000 + travel_ns(host), 2: 300_000, 3: 1_400_000}


def test_beside_copies_the_cpu_reads_at_the_lower_rate() -> None:
    """Products of 10 µs take the 20 that were measured beside copies; the copy feels nothing."""
    host = Host()
    host.copy(1, "h2d", MB)
    host.compute(2, [0])
    assert host.run() == {1: 100_000, 2: 20_000 + travel_ns(host)}
    several = Host()
    several.copy(1, "h2d", MB)
    several.compute(2, [0, 1, 2])
    expected_ns = several.costs.experts_cpu_ns(0, [1, 1, 1], while_copying=True)
    assert expected_ns == several.run()[2]


def test_a_product_is_slow_only_while_copies_run() -> None:
    """A copy ends 10 µs into a product: half is read by then, the rest takes 5 µs: 15."""
    host = Host()
    away_ns = host.costs.experts_cpu_ns(0, [1]) - 10_000 - host.costs.cpu_return_ns(1)
    host.copy(1, "h2d", MB)
    host.compute(2, [0], 90_000 - away_ns)
    assert host.run() == {1: 100_000, 2: 105_000 + host.costs.cpu_return_ns(1)}


def test_three_users_get_max_min_fair_shares() -> None:
    """Of 60 GB/s a copy and a read want 10 each; 40 are left of the 50 that the CPU wants: 25 µs.

    Then nothing slows the copy or the read: 100 µs each.
    """
    host = Host(dram_bytes_per_s=60 * GB_PER_S, nvme_bytes_per_s=10 * GB_PER_S)
    assert host.costs.dram_bytes_per_s == 60 * GB_PER_S
    host.copy(1, "h2d", MB)
    host.copy(2, "nvme", MB)
    host.compute(3, [0])
    assert host.run() == {1: 100_000, 2: 100_000, 3: 25_000 + travel_ns(host)}


def test_two_equal_users_halve_the_dram() -> None:
    """A link and a drive of 60 GB/s on a DRAM of 61 get 30.5 each: 61 MB take two of 1 ms."""
    host = Host(
        link_bytes_per_s=60 * GB_PER_S,
        nvme_bytes_per_s=60 * GB_PER_S,
        cpu_bytes_per_s=2 * GB_PER_S,
    )
    assert host.costs.dram_bytes_per_s == 61 * GB_PER_S
    host.copy(1, "h2d", 61 * MB)
    host.copy(2, "nvme", 61 * MB)
    assert host.run() == {1: 2_000_000, 2: 2_000_000}


def test_products_bound_by_arithmetic_do_not_feel_copies() -> None:
    """With many tokens the CPU reads slower than it may beside copies."""
    host = Host(cpu_flop_per_s=10**11)
    tokens = 64
    assert host.costs.product_cpu_ns(0, tokens) == host.costs.product_cpu_ns(
        0, tokens, while_copying=True
    )
    host.copy(1, "h2d", 100 * MB)
    host.compute(2, [0], tokens=tokens)
    expected_ns = host.costs.product_cpu_ns(0, tokens) + travel_ns(host, tokens)
    assert expected_ns == host.run()[2]


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


SCHEDULES = [
    f"{name}"
    for name in registry.names("schedule")
    if "cpu_experts" in registry.find("schedule", name).does
]
TIERS = TierPlan(parse("cache", "lru"), 6 * MB)
BUSY = {"cpu_bytes_per_s": 12 * GB_PER_S, "nvme_bytes_per_s": 9 * GB_PER_S}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("gpus", [1, 2])
@given(seed=st.integers(0, 3), latency_ns=st.sampled_from([0, 7, 5_000]), has_tiers=st.booleans())
def test_the_engines_agree(
    schedule: str, gpus: int, seed: int, latency_ns: int, has_tiers: bool
) -> None:
    """Clock and SimPy show equal times, counts, commands and spans; the books balance."""
    run = small_run(
        tiny_trace(layers=2, seed=seed),
        schedule=schedule,
        slots=8,
        machine={"link_latency_ns": latency_ns, **BUSY},
        tiers=TIERS if has_tiers and gpus == 1 else None,
        gpus=gpus,
        seed=seed,
        shared_dram=True,
    )
    assert outcome(run, "simpy") == outcome(run, "clock")


def test_requests_that_arrive_share_it_too() -> None:
    """Batches beside CPU experts balance, agree on both engines, and end no earlier than apart."""
    made = [
        small_run(
            tiny_trace(layers=2, decode_tokens=4),
            schedule="fcfs:max_batch=4,chunk=8/cheaper",
            slots=6,
            machine=BUSY,
            serving=Serving("poisson:rate=500,requests=12"),
            shared_dram=is_shared,
        )
        for is_shared in (False, True)
    ]
    apart, shared = (outcome(run) for run in made)
    assert outcome(made[1], "simpy") == shared
    assert shared["counts"].cpu_experts > 0
    assert shared["timings"].cpu_busy_ns > apart["timings"].cpu_busy_ns


@pytest.mark.parametrize("schedule", ["resident_first", "cpu_on_miss"])
def test_without_two_users_nothing_changes(schedule: str) -> None:
    """Copies alone, or CPU experts alone, take to the ns what they take without."""
    cache = "static:order=front" if schedule == "cpu_on_miss" else "lru"
    apart, shared = (
        outcome(
            small_run(
                tiny_trace(layers=2), cache=cache, schedule=schedule, slots=8, shared_dram=is_shared
            )
        )
        for is_shared in (False, True)
    )
    assert apart == shared


def test_the_compiled_engine_refuses_to_share_it() -> None:
    """It says which engine does."""
    pytest.importorskip("numba")
    run = small_run(tiny_trace(layers=2), shared_dram=True)
    with pytest.raises(CapabilityError, match="with --shared-dram use --engine clock"):
        replay_compiled(run)


def test_a_row_says_what_was_shared_or_left_out() -> None:
    """One note where CPU experts and copies share the DRAM, another where they do not."""
    notes = [
        small_run(tiny_trace(layers=2), schedule="cheaper", slots=6, shared_dram=is_shared)
        .replay()
        .row["notes"]
        for is_shared in (False, True)
    ]
    assert "without copies beside them" in notes[0]
    assert "share a DRAM of 100 GB/s" in notes[1]
    assert "without copies beside them" not in notes[1]


def test_the_band_is_that_of_the_figures_that_are_used() -> None:
    """A run that shares the DRAM names the rates of it among what its time rests on."""
    profile, runtime = round_machine(), round_runtime()
    shape = CostModel.for_tests().shape
    apart, shared = (
        CostModel(profile, runtime, shape, shares_dram=is_shared) for is_shared in (False, True)
    )
    assert "host.dram_bandwidth" not in str(apart.terms)
    assert "host.dram_bandwidth" in str(shared.terms)
