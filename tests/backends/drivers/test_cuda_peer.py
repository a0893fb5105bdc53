"""Two GPUs: one computes, the other lends memory, and what comes from there is the expert.

Run them on a machine with two GPUs: ``pytest -m gpu tests/backends/drivers/test_cuda_peer.py``.
"""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="drivers move tensors")
pytest.importorskip("transformers", reason="they are models of transformers")

from moesim.backends.controllers import Deciding  # noqa: E402 - after the skip
from moesim.backends.drivers.cuda.driver import CudaDriver  # noqa: E402
from moesim.backends.drivers.cuda.graph_driver import GraphDriver  # noqa: E402
from moesim.backends.drivers.cuda.lent import lent_vram  # noqa: E402
from moesim.backends.execution import Keep, execute  # noqa: E402
from moesim.backends.generation import Request, Sampling  # noqa: E402
from moesim.backends.store import ExpertStore  # noqa: E402
from moesim.backends.testing import first_difference  # noqa: E402
from moesim.simulator.engines.counts import count  # noqa: E402
from moesim.simulator.errors import OutOfMemoryError  # noqa: E402
from moesim.simulator.messages import Copy  # noqa: E402
from moesim.simulator.registry import parse  # noqa: E402
from moesim.simulator.terms import RAM, Cause, Place, Tier  # noqa: E402
from moesim.simulator.tiers.plan import TierPlan  # noqa: E402
from moesim.simulator.workload.demands import Workload  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs"),
]

PROMPTS = ((5, 9, 200, 17, 33, 4), (7, 8, 9, 10))
NEW_TOKENS = 12
AXES = ("cache", "prefetch", "schedule")
LRU = "lru none resident_first"
SLOTS, LENT = 9, 10
PLACED, TAKES = "static:order=uniform", "lru"


def lending(store: Any, peer: str) -> TierPlan:
    """Return what GPU 1 lends: room for some experts."""
    return TierPlan(peer=parse("cache", peer), peer_bytes=LENT * store.sizes_L[0], peer_gpu=1)


def decided(policies: str, slots: int, store: Any, tiers: TierPlan | None = None) -> Deciding:
    """Return policies by ``cache prefetch schedule``."""
    budget = min(slots * max(store.sizes_L), store.total_bytes)
    chosen = dict(zip(AXES, policies.split(" "), strict=True))
    return Deciding(policies=chosen, budget_bytes=budget, tiers=tiers)


def run(model: Any, store: Any, deciding: Deciding, driver: Any) -> Any:
    """Execute the prompts, keeping logits, log and jobs."""
    return execute(
        model,
        store,
        [Request(prompt=prompt) for prompt in PROMPTS],
        deciding,
        Sampling(new_tokens=NEW_TOKENS, ignore_eos=True),
        keep=Keep(logits=True, log=True, spans=True),
        make_driver=driver,
    )


def fresh(store: Any, deciding: Deciding) -> Any:
    """Return another controller of the same kind."""
    parts = store.parts
    return deciding.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=store.sizes_L, keep_log=True
    )


@pytest.fixture(scope="module")
def model_and_store(make_model: Callable[[str], Any]) -> tuple[Any, Any]:
    """Return a model on GPU 0 and the store of its experts."""
    model = make_model("Olmoe").to("cuda:0")
    return model, ExpertStore.take_from(model, pin=True)


@pytest.mark.parametrize("driver", [CudaDriver, GraphDriver])
@pytest.mark.parametrize("peer", [TAKES, PLACED])
@pytest.mark.parametrize(
    "policies",
    [LRU, "lru:scope=per_layer none resident_first", "lru next_gate:horizon=2 resident_first"],
)
def test_logits_are_those_of_all_resident(
    model_and_store: tuple[Any, Any], policies: str, peer: str, driver: Any
) -> None:
    """Whatever lies on the other GPU, logits are equal bit by bit, books balance, logs repeat."""
    model, store = model_and_store
    expected = run(model, store, decided(LRU, 10**4, store), driver).logits
    deciding = decided(policies, SLOTS, store, lending(store, peer))

    done = run(model, store, deciding, driver)

    assert done.counts.bytes_peer > 0
    for ours, theirs in zip(done.logits, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert first_difference(done.log, fresh(store, deciding)) is None
    moved = done.timings.engine_bytes
    assert moved["peer"] == done.counts.bytes_peer
    assert moved.get("peer_out", 0) == done.counts.bytes_demoted
    assert {"peer", "h2d"} <= {name for name, _, _, _ in done.spans}


@pytest.mark.parametrize("peer", [TAKES, PLACED])
def test_decisions_are_the_replays(model_and_store: tuple[Any, Any], peer: str) -> None:
    """A timing-free system commands on two GPUs what it commands without a clock."""
    model, store = model_and_store
    deciding = decided(LRU, SLOTS, store, lending(store, peer))

    done = run(model, store, deciding, GraphDriver)

    counted = fresh(store, deciding)
    count(counted, Workload(done.trace), budget_bytes=deciding.budget_bytes)
    replayed = [command for _, _, answer in counted.log for command in answer]
    assert [command for _, _, answer in done.log for command in answer] == replayed


def test_bytes_go_there_and_back(model_and_store: tuple[Any, Any]) -> None:
    """An expert that goes down and up again, through other slots, is the same byte for byte."""
    _, store = model_and_store
    size = store.sizes_L[0]
    deciding = decided(LRU, SLOTS, store, lending(store, TAKES))
    here = [Place(Tier.VRAM, 0, 0, slot, slot * size) for slot in range(SLOTS)]
    there = [Place(Tier.VRAM, 1, 0, slot, slot * size) for slot in range(LENT)]
    with GraphDriver(fresh(store, deciding), store, deciding.budget_bytes) as driver:
        for command in (
            Copy(1, 4, 0, RAM, here[2], Cause.DEMAND),
            Copy(2, 4, 0, here[2], there[9], Cause.DEMOTION, (1,)),
            Copy(3, 7, 0, RAM, here[2], Cause.DEMAND, (2,)),
            Copy(4, 4, 0, there[9], here[8], Cause.DEMAND, (2,)),
        ):
            driver._obey[Copy](command)
        torch.cuda.synchronize()
        for place, expert in ((here[2], 7), (here[8], 4)):
            begin = place.offset_bytes
            assert torch.equal(driver._arena_B[begin : begin + size].cpu(), store.blob(expert))
        lent_B = driver._lent.arena_B
        assert torch.equal(lent_B[9 * size :].cpu(), store.blob(4))
        assert lent_B.device == torch.device("cuda", 1)


def test_more_than_it_has_is_not_lent() -> None:
    """Room that the other GPU has not is one line that names the option."""
    with pytest.raises(OutOfMemoryError, match="give a smaller --peer-cache"):
        lent_vram(2**40, torch.device("cuda", 0), 1)
