"""Another GPU lends memory: experts lie there, leave VRAM for it and come back, in an execution."""

import time
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="executions run a real model")

from moesim.backends.base import RealDriver  # noqa: E402 - after the skip
from moesim.backends.drivers.cuda.lent import lender_of  # noqa: E402
from moesim.backends.drivers.threads import ThreadsDriver  # noqa: E402
from moesim.backends.means import PEER_OUT  # noqa: E402
from moesim.backends.testing import first_difference  # noqa: E402
from moesim.simulator.costs import CostModel  # noqa: E402
from moesim.simulator.engines.counts import count  # noqa: E402
from moesim.simulator.engines.simpy import SimpyEngine  # noqa: E402
from moesim.simulator.errors import CapabilityError, UnavailableError  # noqa: E402
from moesim.simulator.messages import Copy  # noqa: E402
from moesim.simulator.registry import parse  # noqa: E402
from moesim.simulator.terms import Cause, Tier  # noqa: E402
from moesim.simulator.tiers.plan import TierPlan  # noqa: E402
from moesim.simulator.workload.demands import Workload  # noqa: E402

SLOTS, LENT = 9, 10
LRU = "lru none resident_first"
TAKES, PLACED = "lru", "static:order=uniform"


def lending(it: Any, peer: str, slots: int = LENT) -> TierPlan:
    """Return what another GPU lends: room for so many experts."""
    return TierPlan(peer=parse("cache", peer), peer_bytes=slots * max(it.store.sizes_L), peer_gpu=1)


def deciding(it: Any, policies: str = LRU, peer: str = TAKES) -> Any:
    """Return policies beside another GPU."""
    return it.deciding(policies, SLOTS, tiers=lending(it, peer))


def fresh(it: Any, decided: Any) -> Any:
    """Return another controller of the same kind."""
    parts = it.store.parts
    return decided.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=it.store.sizes_L, keep_log=True
    )


def commands(log: Any) -> list[Any]:
    """Return every command in order."""
    return [command for _, _, answer in log for command in answer]


def replayed(it: Any, decided: Any, trace: Any) -> list[Any]:
    """Return the commands of a replay in virtual time."""
    size = it.store.sizes_L[0]
    shape = {"layers": trace.layers, "experts": trace.experts, "top_k": trace.top_k}
    controller = fresh(it, decided)
    SimpyEngine(
        controller,
        Workload(trace),
        CostModel.for_tests(**shape, expert_bytes=size, machine={"peer_bytes_per_s": 10**11}),
        expert_bytes=lambda _expert, _part: size,
        budget_bytes=decided.budget_bytes,
    ).run()
    return commands(controller.log)


def assert_resident_logits(it: Any, done: Any) -> None:
    """Compare every step's logits with those of the resident model, bit by bit."""
    for ours, theirs in zip(done.logits, it.resident, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe"])
@pytest.mark.parametrize("peer", [TAKES, "lfu", PLACED])
def test_replay_and_execution_decide_alike(
    offloaded: Callable[[str], Any], family: str, peer: str
) -> None:
    """The controller gives threads, SimPy and the counter one list of commands, places included."""
    it = offloaded(family)
    decided = deciding(it, peer=peer)
    assert decided.timing_free

    done = it.run(decided)

    executed = commands(done.log)
    counted = fresh(it, decided)
    count(counted, Workload(done.trace), budget_bytes=decided.budget_bytes)
    assert done.counts.bytes_peer > 0
    assert replayed(it, decided, done.trace) == executed
    assert commands(counted.log) == executed


@pytest.mark.parametrize("peer", [TAKES, PLACED])
@pytest.mark.parametrize(
    "policies",
    [
        LRU,
        "lru:scope=per_layer none resident_first",
        "transient none on_demand",
        "lru next_gate:horizon=2 resident_first",
        "lfu transition_table:fit=online resident_first",
    ],
)
def test_what_comes_from_there_is_the_expert(
    offloaded: Callable[[str], Any], policies: str, peer: str
) -> None:
    """Logits are the resident model's, and a fresh controller answers the fact log alike."""
    it = offloaded("Qwen3Moe")
    decided = deciding(it, policies, peer)

    done = it.run(decided)

    assert done.counts.bytes_peer > 0
    assert_resident_logits(it, done)
    assert first_difference(done.log, fresh(it, decided)) is None


def test_each_way_has_an_engine_of_its_own(offloaded: Callable[[str], Any]) -> None:
    """Bytes are counted by the engine that moved them, and a timeline shows which did."""
    it = offloaded("Mixtral")
    done = it.run(deciding(it))

    counts, moved = done.counts, done.timings.engine_bytes
    assert moved["peer"] == counts.bytes_peer > 0
    assert moved["peer_out"] == counts.bytes_demoted > 0
    assert moved["h2d"] == counts.bytes_total - counts.bytes_peer
    shown = {label.n: name for name, label, _, _ in done.spans if isinstance(label, Copy)}
    for copy in (command for command in commands(done.log) if isinstance(command, Copy)):
        from_lent = "peer" if copy.src.device else "h2d"
        assert shown[copy.n] == ("peer_out" if copy.dst.device else from_lent)


def test_slots_of_the_other_gpu_are_named(offloaded: Callable[[str], Any]) -> None:
    """Commands say where in the lent memory an expert lies, and read it where it was brought."""
    it = offloaded("Mixtral")
    done = it.run(deciding(it))

    lies: dict[Any, int] = {}
    for copy in (command for command in commands(done.log) if isinstance(command, Copy)):
        if copy.dst.device:
            assert (copy.dst.tier, copy.cause) == (Tier.VRAM, Cause.DEMOTION)
            lies[copy.dst] = copy.expert
        if copy.src.device:
            assert lies[copy.src] == copy.expert
    assert len(lies) == LENT


def test_more_room_there_leaves_less_to_ram(offloaded: Callable[[str], Any]) -> None:
    """With room for every expert nothing comes from RAM; without any, all of it does."""
    it = offloaded("Mixtral")
    experts = it.store.parts.experts * len(it.store.sizes_L)
    moved = [
        it.run(it.deciding(LRU, SLOTS, tiers=tiers)).timings.engine_bytes.get("h2d", 0)
        for tiers in (None, lending(it, PLACED), lending(it, PLACED, experts))
    ]
    assert moved[0] > moved[1] > moved[2] == 0


def test_a_driver_that_reads_another_slot_is_caught(offloaded: Callable[[str], Any]) -> None:
    """Bytes from a wrong place of the other GPU give other logits: the comparison can fail."""
    it = offloaded("Mixtral")
    size = it.store.sizes_L[0]

    class Careless(ThreadsDriver):
        def copy_lent_bytes(self, way: Any, nbytes: int) -> None:
            if way.engine != PEER_OUT:
                way = way._replace(source_bytes=(way.source_bytes + size) % (LENT * size))
            super().copy_lent_bytes(way, nbytes)

    done = it.run(deciding(it), make_driver=Careless)
    with pytest.raises(AssertionError):
        assert_resident_logits(it, done)


def test_a_copy_that_does_not_wait_for_the_victim_is_caught(
    offloaded: Callable[[str], Any],
) -> None:
    """Whoever takes a victim's room before it has been read moves the wrong expert down."""
    it = offloaded("Mixtral")

    class Hasty(ThreadsDriver):
        def start_copy(self, command: Copy, offset_bytes: int) -> None:
            super().start_copy(command._replace(after=()), offset_bytes)

        def copy_lent_bytes(self, way: Any, nbytes: int) -> None:
            time.sleep(0.002 if way.engine == PEER_OUT else 0)
            super().copy_lent_bytes(way, nbytes)

    done = it.run(deciding(it), make_driver=Hasty)
    with pytest.raises(AssertionError):
        assert_resident_logits(it, done)


def test_a_failed_copy_from_there_ends_the_run(offloaded: Callable[[str], Any]) -> None:
    """What goes wrong on the other GPU's link is one line, as on the host's."""
    it = offloaded("Mixtral")

    class Broken(ThreadsDriver):
        def copy_lent_bytes(self, way: Any, nbytes: int) -> None:
            raise OSError("the bridge is out")

    with pytest.raises(Exception, match=r"^command \d+ failed: the bridge is out$"):
        it.run(deciding(it), make_driver=Broken)


def test_a_driver_without_another_gpu_says_so(offloaded: Callable[[str], Any]) -> None:
    """A driver that only copies from RAM refuses by name, with the way out."""
    it = offloaded("Mixtral")

    class Lone(ThreadsDriver):
        name = "lone"
        place_in_lent = RealDriver.place_in_lent
        start_lent_copy = RealDriver.start_lent_copy

    for peer in (TAKES, PLACED):
        with pytest.raises(CapabilityError, match="the lone driver copies from RAM alone.*leave"):
            it.run(deciding(it, peer=peer), make_driver=Lone)


def test_a_policy_there_is_granted_what_it_needs_or_refused(
    offloaded: Callable[[str], Any],
) -> None:
    """A peer cache that sees the future is refused by its name where routes are the model's own."""
    it = offloaded("Mixtral")
    with pytest.raises(CapabilityError, match=r"peer cache belady sees the future"):
        it.run(deciding(it, peer="belady"))


@pytest.mark.parametrize(("gpus", "reach"), [(1, True), (2, False)])
def test_one_gpu_is_not_two(monkeypatch: pytest.MonkeyPatch, gpus: int, reach: bool) -> None:
    """Without a second GPU, or one within reach, the error is one line with the way out."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda *_: reach)
    expected = "this machine has 1 in all" if gpus == 1 else "do not reach each other's memory"
    with pytest.raises(UnavailableError, match=expected) as caught:
        lender_of(torch.device("cuda", 0), 1)
    assert "leave it out" in str(caught.value)
    assert "\n" not in str(caught.value)
