"""Batches on a GPU: in graphs and without, each request says what it says alone.

Run them on a machine with a GPU: ``pytest -m gpu tests/backends/drivers/test_cuda_batches.py``.
"""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="drivers move tensors")
pytest.importorskip("transformers", reason="they are models of transformers")

from moesim.backends.budget import kv_bytes_per_token, runtime_bytes  # noqa: E402 - after the skip
from moesim.backends.controllers import Deciding  # noqa: E402
from moesim.backends.drivers.cuda.driver import CudaDriver  # noqa: E402
from moesim.backends.drivers.cuda.graph_driver import GraphDriver  # noqa: E402
from moesim.backends.drivers.cuda.graphed_experts import GroupedRows, KernelExperts  # noqa: E402
from moesim.backends.execution import Keep, execute  # noqa: E402
from moesim.backends.generation import Request, Sampling  # noqa: E402
from moesim.backends.store import ExpertStore  # noqa: E402
from moesim.backends.testing import first_difference, resident_logits  # noqa: E402
from moesim.simulator.engines.counts import count  # noqa: E402
from moesim.simulator.serving.arrivals import OpenLoop  # noqa: E402
from moesim.simulator.serving.recorded import RecordedRequests  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

FAMILIES = ("Mixtral", "Qwen3Moe", "Olmoe", "DeepseekV2", "DeepseekV3")
PROMPTS = [tuple((7 * n + 3 * at) % 290 + 5 for at in range(3 + n % 9)) for n in range(40)]
NEW_TOKENS = 6
ALL = 10**4
NOISE = 1e-4
"""Of the largest logit, in float32: other kernels, and attention over whole slots."""
SYSTEMS = {
    "per-layer LRU": ("lru:scope=per_layer", "none", "resident_first", 9),
    "waves": ("lru", "none", "resident_first", 3),
    "gates ahead": ("lru", "next_gate:horizon=2", "resident_first", 12),
    "CPU experts": ("lru", "none", "cpu_on_miss", 9),
}


def run(
    it: Any, system: Any, batch: int, chunk: int | None = None, driver: Any = GraphDriver
) -> Any:
    """Execute a batch's prompts and a few more, which all arrive at once."""
    model, store, alone = it
    cache, prefetch, schedule, slots = system
    options = f"max_batch={batch}" + ("" if chunk is None else f",chunk={chunk}")
    policies = {
        "cache": cache,
        "prefetch": prefetch,
        "schedule": f"fcfs:{options}/{schedule}",
    }
    budget = min(slots * max(store.sizes_L), store.total_bytes)
    deciding = Deciding(policies=policies, budget_bytes=budget)
    prompts = PROMPTS[: batch + 3]
    asked = [
        Request(prompt=prompt, forced=[int(each.argmax()) for each in mine])
        for prompt, mine in zip(prompts, alone, strict=False)
    ]
    done = execute(
        model,
        store,
        asked,
        deciding,
        Sampling(new_tokens=NEW_TOKENS, ignore_eos=True),
        keep=Keep(logits=True, log=True),
        make_driver=driver,
        arrivals=OpenLoop([0] * len(asked)),
    )
    parts = store.parts
    fresh = deciding.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=store.sizes_L, keep_log=True
    )
    return deciding, done, fresh


def differences(ours: Any, theirs: Any) -> float:
    """Return the largest difference of two logits over the largest of its step."""
    return max(
        float((a - b).abs().max() / b.abs().max())
        for mine, yours in zip(ours, theirs, strict=False)
        for a, b in zip(mine, yours, strict=True)
    )


@pytest.fixture(scope="module")
def offloaded(make_model: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that gives a family's model, its store, and each request's own logits."""
    made: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in made:
            model = make_model(family).to("cuda")
            alone = resident_logits(model, PROMPTS, NEW_TOKENS)
            made[family] = (model, ExpertStore.take_from(model, pin=True), alone)
        return made[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("driver", [GraphDriver, CudaDriver])
def test_each_request_says_what_it_says_alone(
    offloaded: Callable[[str], Any], family: str, batch: int, driver: Any
) -> None:
    """Batches of every size give each request's text, and its logits within noise."""
    it = offloaded(family)
    _, done, _ = run(it, SYSTEMS["per-layer LRU"], batch, driver=driver)
    assert done.counts.misses > 0
    assert differences(done.logits, it[2]) <= NOISE
    for mine, theirs in zip(done.logits, it[2], strict=False):
        assert [int(a.argmax()) for a in mine] == [int(b.argmax()) for b in theirs]


@pytest.mark.parametrize("family", ["Mixtral", "Olmoe", "DeepseekV3"])
@pytest.mark.parametrize("system", ["per-layer LRU", "waves", "gates ahead"])
@pytest.mark.parametrize("chunk", [None, 5])
def test_a_batch_gives_the_bits_of_all_experts_resident(
    offloaded: Callable[[str], Any], family: str, system: str, chunk: int | None
) -> None:
    """The same steps with every expert in place give the same bits; the log is answered alike."""
    it = offloaded(family)
    _, resident, _ = run(it, ("lru", "none", "resident_first", ALL), 8, chunk)

    _, done, fresh = run(it, SYSTEMS[system], 8, chunk)

    for mine, theirs in zip(done.logits, resident.logits, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert first_difference(done.log, fresh) is None


@pytest.mark.parametrize("driver", [GraphDriver, CudaDriver])
@pytest.mark.parametrize("chunk", [None, 5])
def test_a_replay_decides_alike(
    offloaded: Callable[[str], Any], driver: Any, chunk: int | None
) -> None:
    """A replay of what was served forms the same steps and gives the same commands."""
    it = offloaded("Qwen3Moe")
    deciding, done, fresh = run(it, SYSTEMS["waves"], 8, chunk, driver)
    count(fresh, RecordedRequests(done.trace), budget_bytes=deciding.budget_bytes)
    ours = [command for _, _, answer in done.log for command in answer]
    assert [command for _, _, answer in fresh.log for command in answer] == ours


@pytest.mark.parametrize("family", ["Mixtral", "DeepseekV2"])
@pytest.mark.parametrize("batch", [2, 16])
def test_cpu_experts_agree_within_noise(
    offloaded: Callable[[str], Any], family: str, batch: int
) -> None:
    """Products of the CPU are taken in by either kernel's rows."""
    it = offloaded(family)
    _, done, _ = run(it, SYSTEMS["CPU experts"], batch)
    assert done.counts.cpu_experts > 0
    assert differences(done.logits, it[2]) <= NOISE


def test_few_rows_take_the_decode_kernel_and_many_the_grouped_one(
    offloaded: Callable[[str], Any],
) -> None:
    """Where tokens share experts each is read once for all of them."""
    _, store, _ = offloaded("Mixtral")  # 8 experts top-2
    budget = store.total_bytes
    deciding = Deciding(
        policies={"cache": "lru", "prefetch": "none", "schedule": "resident_first"},
        budget_bytes=budget,
    )
    parts = store.parts
    controller = deciding.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=store.sizes_L
    )
    with GraphDriver(controller, store, budget) as driver:
        kinds = {rows: type(driver._experts_of(rows)) for rows in (1, 4, 8)}
    assert kinds == {1: KernelExperts, 4: KernelExperts, 8: GroupedRows}


@pytest.mark.parametrize("batch", [4, 32])
def test_what_a_batch_takes_is_counted(offloaded: Callable[[str], Any], batch: int) -> None:
    """At its peak a run takes no more than its experts' room, its slots and what is said of it."""
    it = offloaded("Olmoe")
    model, store, _ = it
    longest = max(map(len, PROMPTS)) + NEW_TOKENS
    per_token = kv_bytes_per_token(model)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    run(it, SYSTEMS["per-layer LRU"], batch)

    took = torch.cuda.max_memory_allocated() - before
    counted = runtime_bytes(store, longest, per_token, batch) + per_token * longest * batch
    room = 9 * max(store.sizes_L)
    assert room < took <= room + counted
