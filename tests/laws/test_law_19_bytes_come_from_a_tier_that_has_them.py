"""Law 19: every byte that reaches VRAM came from a tier that had it, and no tier outgrows its room.

What is read there, by a copy or by the CPU, stays until it has been read.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import orders, shapes, traces, with_fault

from moesim.simulator import registry
from moesim.simulator.control.residency import Pool
from moesim.simulator.errors import CapabilityError
from moesim.simulator.messages import Command, Copy, Run
from moesim.simulator.registry import parse
from moesim.simulator.terms import CPU, NVME, RAM, Cause
from moesim.simulator.testing import (
    KEEP_AT_RANDOM,
    SPLIT_AT_RANDOM,
    WISH_AT_RANDOM,
    adversarial,
    engine,
    sample_spec,
    seeded,
    small_run,
    tiny_trace,
)
from moesim.simulator.tiers.plan import TierPlan
from moesim.simulator.tiers.shelf import Shelf

MB = 1_000_000
BRINGING_IN = ("adaptive_split", "periodic", "split")
"""Cache policies that do more than a shelf lets them."""


def tiers(host: str = "lru", host_slots: int = 3, *, peer: str | None = None) -> TierPlan:
    """Return RAM, exclusive if another GPU lends room for two experts."""
    return TierPlan(
        parse("cache", host),
        host_slots * MB,
        parse("cache", peer) if peer else None,
        2 * MB,
        is_exclusive=peer is not None,
    )


@pytest.mark.parametrize("sizes", ["equal", "unequal"])
@pytest.mark.parametrize("name", registry.names("cache"))
def test_every_cache_policy_serves_as_host_and_as_peer_cache(name: str, sizes: str) -> None:
    """Any policy may decide what stays in RAM and in another GPU's VRAM, or says that it can't."""
    sizes_L = [MB] * 3 if sizes == "equal" else [MB, 700_000, 900_000]
    policy = sample_spec("cache", name)
    for seed in range(6):
        plan = TierPlan(
            policy,
            (6 + seed) * MB,
            policy if seed % 3 == 1 else None,
            6 * MB,
            is_exclusive=seed % 3 == 2,
            starts_empty=seed % 2 == 0,
        )
        run = small_run(
            tiny_trace(seed=seed),
            cache=KEEP_AT_RANDOM if seed % 2 else "lru",
            prefetch=WISH_AT_RANDOM if seed < 4 else "none",
            schedule=SPLIT_AT_RANDOM,
            slots=4,
            expert_bytes_L=sizes_L,
            window_bytes=1 if seed % 2 else None,
            seed=seed,
            tiers=plan,
        )
        if name in BRINGING_IN:
            with pytest.raises(CapabilityError, match="which it can do for VRAM alone"):
                run.controller()
            return
        adversarial(run, seeded(seed)).run()


@given(st.data(), shapes(), orders())
def test_any_trace_reads_what_is_there(data: st.DataObject, shape, choose) -> None:
    """Bytes come from where they lie on any small trace, down to RAM for a single expert."""
    run = small_run(
        data.draw(traces(shape)),
        cache=data.draw(st.sampled_from(["lru", KEEP_AT_RANDOM])),
        prefetch=WISH_AT_RANDOM,
        schedule=SPLIT_AT_RANDOM,
        slots=data.draw(st.integers(2 * shape.top_k, 2 * shape.top_k + 4)),
        window_bytes=data.draw(st.sampled_from([1, None])),
        tiers=tiers(
            data.draw(st.sampled_from(["lru", "lfu", "transient"])),
            data.draw(st.integers(1, 6)),
            peer=data.draw(st.sampled_from([None, "lru", "fifo"])),
        ),
    )
    adversarial(run, choose).run()


def changed_copies(change) -> None:
    """Drive a run with a change of every copy."""
    run = small_run(tiny_trace(), slots=4, schedule=SPLIT_AT_RANDOM, tiers=tiers(peer="lru"))

    def with_change(commands: list[Command]) -> list[Command]:
        return [change(command) if isinstance(command, Copy) else command for command in commands]

    for seed in range(10):
        with_fault(run, with_change, seed=seed).run()


def test_a_copy_of_what_is_not_there_is_caught() -> None:
    """A copy out of RAM of an expert that was never read into it fails law 19."""

    def from_ram(copy: Copy) -> Copy:
        return copy._replace(src=RAM) if copy.src.device else copy

    with pytest.raises(AssertionError, match=r"law 19: .* which .*RAM.* has not"):
        changed_copies(from_ram)


def test_a_copy_from_another_slot_of_the_other_gpu_is_caught() -> None:
    """What lies in another GPU is read from the slot to which it was brought."""

    def beside(copy: Copy) -> Copy:
        return (
            copy._replace(src=copy.src._replace(slot=1 - copy.src.slot))
            if copy.src.device
            else copy
        )

    with pytest.raises(AssertionError, match=r"law 19: .* reads expert \S+ in VRAM"):
        changed_copies(beside)


def test_a_copy_that_passes_ram_by_is_caught() -> None:
    """NVMe is read into RAM and nowhere else."""

    def straight(copy: Copy) -> Copy:
        return copy._replace(src=NVME) if copy.src == RAM else copy

    with pytest.raises(AssertionError, match=r"law 19: .* passes RAM by"):
        changed_copies(straight)


def test_a_copy_that_does_not_wait_for_its_source_is_caught() -> None:
    """A copy to VRAM that begins before NVMe has been read fails law 19."""

    def at_once(copy: Copy) -> Copy:
        return copy._replace(after=()) if copy.src == RAM else copy

    with pytest.raises(AssertionError, match="law 19: .* does not wait for copy"):
        changed_copies(at_once)


def test_a_cpu_run_that_does_not_wait_for_its_weights_is_caught() -> None:
    """The CPU computes what lies in RAM, and not before it does."""
    run = small_run(tiny_trace(), slots=4, schedule="cpu_on_miss", tiers=tiers())

    def at_once(commands: list[Command]) -> list[Command]:
        return [
            command._replace(after=())
            if isinstance(command, Run) and command.device == CPU
            else command
            for command in commands
        ]

    with pytest.raises(AssertionError, match="law 19: Run.* does not wait for copy"):
        with_fault(run, at_once).run()


def test_moving_down_what_is_not_in_vram_is_caught() -> None:
    """A victim is copied from the slot that it had."""

    def elsewhere(copy: Copy) -> Copy:
        is_down = copy.cause is Cause.DEMOTION
        return copy._replace(expert=(copy.expert + 1) % 18) if is_down else copy

    with pytest.raises(AssertionError, match="law 19: .* in VRAM"):
        changed_copies(elsewhere)


def test_room_that_is_read_and_given_away_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shelf that forgets its readers lets an expert go while a copy reads it: law 19 fails."""
    monkeypatch.setattr(Shelf, "hold", lambda *_, **__: None)
    run = small_run(tiny_trace(), slots=4, tiers=tiers(host_slots=2))
    with pytest.raises(AssertionError, match="law 19: expert .* left the host cache while"):
        adversarial(run, seeded(0)).run()


def test_keeping_what_nobody_reads_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shelf that never lets go of what was read, so that none of it may leave, fails law 19."""
    monkeypatch.setattr(Shelf, "_let_go", lambda *_: None)
    with pytest.raises(AssertionError, match="law 19: the host cache keeps expert .* nobody reads"):
        adversarial(small_run(tiny_trace(), slots=4, tiers=tiers()), seeded(0)).run()


def test_a_tier_that_outgrows_its_room_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shelf that lets two in where one left fails law 19."""
    take = Pool.take

    def take_for_nothing(self: Pool, expert: int, size: int):
        place = take(self, expert, size)
        if self.capacity_bytes == 3 * MB:
            self.free_bytes += size
        return place

    monkeypatch.setattr(Pool, "take", take_for_nothing)
    run = small_run(tiny_trace(), slots=4, tiers=tiers(host_slots=3))
    with pytest.raises(AssertionError, match="law 19: host cache: pool 0 lost bytes"):
        adversarial(run, seeded(0)).run()


def test_the_engines_end_with_the_rooms_they_counted() -> None:
    """What came to RAM and did not leave is there: the book and the counts agree on a real run."""
    run = small_run(tiny_trace(), slots=4, tiers=tiers(host_slots=5))
    controller = run.controller(keep_log=True)
    engine(run, controller).run()
    controller.close()
    assert controller.shelves is not None
    ram = controller.shelves.ram
    assert ram is not None
    there = {expert for expert in range(18) if ram.is_ready(expert)}
    assert len(there) == 5
    assert controller.counts.bytes_nvme > 0
