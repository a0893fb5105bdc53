"""Experts live on several GPUs, each runs on its home, and the model says what it always says."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="executions run a real model")

from moesim.backends.drivers.threads import ThreadsDriver  # noqa: E402 - after the skip
from moesim.backends.drivers.threads_gpus import GpusThreadsDriver  # noqa: E402
from moesim.backends.testing import first_difference  # noqa: E402
from moesim.simulator.costs import CostModel  # noqa: E402
from moesim.simulator.engines.simpy import SimpyEngine  # noqa: E402
from moesim.simulator.errors import CapabilityError, MoesimError  # noqa: E402
from moesim.simulator.messages import Copy, Run  # noqa: E402
from moesim.simulator.registry import parse  # noqa: E402
from moesim.simulator.tiers.plan import TierPlan  # noqa: E402
from moesim.simulator.workload.demands import Workload  # noqa: E402

LRU = "lru none resident_first"
SLOTS = 10


def fresh(it: Any, decided: Any) -> Any:
    """Return another controller of the same kind."""
    parts = it.store.parts
    return decided.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=it.store.sizes_L, keep_log=True
    )


def commands(log: Any, kind: type) -> list[Any]:
    """Return every command of a kind, in order."""
    return [command for _, _, answer in log for command in answer if isinstance(command, kind)]


@pytest.mark.parametrize("gpus", [2, 3])
@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe", "GptOss"])
@pytest.mark.parametrize(
    "policies",
    [
        LRU,
        "lru:scope=per_layer none resident_first",
        "transient none on_demand",
        "lru next_gate:horizon=2 resident_first",
    ],
)
def test_logits_are_the_resident_models(
    offloaded: Callable[[str], Any], policies: str, family: str, gpus: int
) -> None:
    """Logits are equal bit by bit wherever experts live, and a fresh controller answers alike."""
    it = offloaded(family)
    decided = it.deciding(policies, 24 if "per_layer" in policies else SLOTS + 3, gpus=gpus)

    done = it.run(decided, make_driver=GpusThreadsDriver)

    for ours, theirs in zip(done.logits, it.resident, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert first_difference(done.log, fresh(it, decided)) is None
    runs = commands(done.log, Run)
    assert {run.device.number for run in runs} == set(range(gpus))
    assert all(expert % gpus == run.device.number for run in runs for expert in run.experts)


@pytest.mark.parametrize("placement", ["round_robin", "by_load"])
def test_replay_and_execution_decide_alike(offloaded: Callable[[str], Any], placement: str) -> None:
    """A timing-free system gives the same commands to threads and to SimPy, GPU by GPU."""
    it = offloaded("Qwen3Moe")
    alone = it.run(it.deciding(LRU, SLOTS))
    decided = it.deciding(LRU, SLOTS, gpus=2, placement=placement, profile_trace=alone.trace)

    done = it.run(decided, make_driver=GpusThreadsDriver)

    trace, size = done.trace, it.store.sizes_L[0]
    controller = fresh(it, decided)
    SimpyEngine(
        controller,
        Workload(trace),
        CostModel.for_tests(
            layers=trace.layers,
            experts=trace.experts,
            top_k=trace.top_k,
            expert_bytes=size,
            machine={"gpus": 2, "peer_bytes_per_s": 10**11},
        ),
        expert_bytes=lambda _expert, _part: size,
        budget_bytes=decided.budget_bytes,
        gpus=decided.spread(trace.experts, it.store.sizes_L),
    ).run()
    for kind in (Copy, Run):
        assert commands(controller.log, kind) == commands(done.log, kind)
    assert (trace.expert_TLK == alone.trace.expert_TLK).all()


def test_each_gpu_has_its_books(offloaded: Callable[[str], Any]) -> None:
    """Bytes of each link are those of its GPU's copies; activations go out and rows come back."""
    it = offloaded("Mixtral")
    done = it.run(it.deciding(LRU, SLOTS, gpus=2), make_driver=GpusThreadsDriver)

    size = it.store.sizes_L[0]
    copies = commands(done.log, Copy)
    first, second = done.timings.by_gpu
    for gpu, own in enumerate((first, second)):
        mine = [copy for copy in copies if copy.dst.device == gpu]
        assert (own.copies, own.bytes_copied) == (len(mine), len(mine) * size)
        assert own.gpu_busy_ns > 0
    assert done.counts.bytes_total == first.bytes_copied + second.bytes_copied
    width_bytes = 4 * it.model.config.hidden_size
    rows = sum(sum(run.tokens) for run in commands(done.log, Run) if run.device.number)
    assert second.bytes_sent == rows * width_bytes
    assert first.bytes_sent > 0


def test_cpu_experts_run_beside_both(offloaded: Callable[[str], Any]) -> None:
    """Misses computed from the host's store give the same text on several GPUs."""
    it = offloaded("Qwen3Moe")
    decided = it.deciding("lru transition_table:fit=online cpu_on_miss", SLOTS, gpus=2)

    done = it.run(decided, make_driver=GpusThreadsDriver)

    assert done.counts.cpu_experts > 0
    assert done.tokens == it.text


def test_a_run_without_its_inputs_is_caught(offloaded: Callable[[str], Any]) -> None:
    """A GPU that computes on the inputs of another layer gives other logits."""
    it = offloaded("Mixtral")

    class Stale(GpusThreadsDriver):
        def _send(self, work: Any, far: Any) -> None:
            super()._send(work, far)
            far.work.hidden_TD.mul_(0.5)

    done = it.run(it.deciding(LRU, SLOTS, gpus=2), make_driver=Stale)
    pairs = zip(done.logits[0], it.resident[0], strict=True)
    assert not all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_what_fails_elsewhere_ends_the_run(offloaded: Callable[[str], Any]) -> None:
    """A copy to the second GPU that fails is one line that names the command."""
    it = offloaded("Mixtral")

    class Broken(GpusThreadsDriver):
        def bring(self, gpu: int, *what: Any) -> None:
            if gpu:
                raise OSError("its link is down")
            super().bring(gpu, *what)

    with pytest.raises(MoesimError, match=r"^command \d+ failed: its link is down$"):
        it.run(it.deciding(LRU, SLOTS, gpus=2), make_driver=Broken)


@pytest.mark.parametrize(
    ("options", "driver", "message"),
    [
        ({"gpus": 2}, ThreadsDriver, "computes on one GPU; take --gpus 1"),
        ({"gpus": 2, "placement": "by_layer"}, GpusThreadsDriver, "simulated and not executed"),
        ({"gpus": 2, "placement": "by_load"}, GpusThreadsDriver, "--profile-trace"),
        (
            {"gpus": 2, "tiers": TierPlan(peer=parse("cache", "lru"), peer_bytes=10**6)},
            GpusThreadsDriver,
            "leave out --peer-cache",
        ),
    ],
)
def test_what_is_not_executed_is_refused(
    offloaded: Callable[[str], Any], options: Any, driver: Any, message: str
) -> None:
    """Each combination that no driver carries out is one line with the way out."""
    it = offloaded("Mixtral")
    with pytest.raises(CapabilityError, match=message):
        it.run(it.deciding(LRU, SLOTS, **options), make_driver=driver)
