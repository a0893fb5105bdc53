"""Decode in graphs says what all experts resident say in the same graphs, whatever the system."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="drivers move tensors")
pytest.importorskip("transformers", reason="they are models of transformers")

from moesim.backends.budget import kv_bytes_per_token, runtime_bytes  # noqa: E402 - after the skip
from moesim.backends.controllers import Deciding  # noqa: E402
from moesim.backends.drivers.cuda.driver import CudaDriver  # noqa: E402
from moesim.backends.drivers.cuda.graph_driver import GraphDriver  # noqa: E402
from moesim.backends.execution import Keep, execute  # noqa: E402
from moesim.backends.generation import Request, Sampling  # noqa: E402
from moesim.backends.store import ExpertStore  # noqa: E402
from moesim.backends.testing import first_difference, resident_logits  # noqa: E402
from moesim.simulator.errors import CapabilityError  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

FAMILIES = ("Mixtral", "Qwen3Moe", "Olmoe", "DeepseekV2", "DeepseekV3")
PROMPTS = ((5, 9, 200, 17, 33, 4), (7, 8, 9, 10))
NEW_TOKENS = 6
AXES = ("cache", "prefetch", "schedule")
ALL = 10**4
SYSTEMS = {
    "per-layer LRU": ("lru:scope=per_layer none resident_first", 9),
    "waves": ("lru none resident_first", 3),
    "gates ahead": ("lru next_gate:horizon=2 resident_first", 12),
}
NOISE = 1e-4
"""Of the largest logit, in float32: other kernels, and attention over a whole static cache."""


def run(model: Any, store: Any, policies: str, slots: int, driver: Any = GraphDriver) -> Any:
    """Execute the prompts, keeping logits and log."""
    budget = min(slots * max(store.sizes_L), store.total_bytes)
    deciding = Deciding(
        policies=dict(zip(AXES, policies.split(" "), strict=True)), budget_bytes=budget
    )
    done = execute(
        model,
        store,
        [Request(prompt=prompt) for prompt in PROMPTS],
        deciding,
        Sampling(new_tokens=NEW_TOKENS, ignore_eos=True),
        keep=Keep(logits=True, log=True),
        make_driver=driver,
    )
    parts = store.parts
    fresh = deciding.controller(experts=parts.experts, top_k=parts.top_k, sizes_L=store.sizes_L)
    assert first_difference(done.log, fresh) is None
    return done


@pytest.fixture(scope="module")
def offloaded(make_model: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that gives a family's model, its store, and its logits all resident."""
    made: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in made:
            model = make_model(family).to("cuda")
            eager = resident_logits(model, PROMPTS, NEW_TOKENS)
            store = ExpertStore.take_from(model, pin=True)
            resident = run(model, store, "lru none resident_first", ALL)
            made[family] = (model, store, resident, eager)
        return made[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_logits_equal_those_of_all_experts_resident(
    offloaded: Callable[[str], Any], family: str, system: str
) -> None:
    """A lossless system in graphs gives the bits that the same graphs give with all in place."""
    model, store, resident, _ = offloaded(family)
    policies, slots = SYSTEMS[system]

    done = run(model, store, policies, slots)

    assert done.counts.misses > 0
    for mine, yours in zip(done.logits, resident.logits, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, yours, strict=True))
    assert done.tokens == resident.tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_say_what_the_model_says(offloaded: Callable[[str], Any], family: str) -> None:
    """Graphs and kernels give the text of the model's own forward, and logits within noise."""
    _, _, resident, eager = offloaded(family)
    assert resident.tokens == [[int(each.argmax()) for each in request] for request in eager]
    for mine, yours in zip(resident.logits, eager, strict=True):
        for a, b in zip(mine, yours, strict=True):
            assert float((a - b).abs().max() / b.abs().max()) <= NOISE


def test_what_graphs_and_prompts_take_is_counted(offloaded: Callable[[str], Any]) -> None:
    """At its peak a run takes no more than its experts' room, its cache and what is said of it."""
    model, store, _, _ = offloaded("Olmoe")
    longest = max(map(len, PROMPTS)) + NEW_TOKENS
    per_token = kv_bytes_per_token(model)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    run(model, store, "lru none resident_first", 9)

    took = torch.cuda.max_memory_allocated() - before
    counted = runtime_bytes(store, longest, per_token) + per_token * longest
    assert 9 * max(store.sizes_L) < took <= 9 * max(store.sizes_L) + counted


def test_graphs_time_themselves(offloaded: Callable[[str], Any]) -> None:
    """Without a timeline the GPU's own clock says how long experts took, within the run."""
    model, store, _, _ = offloaded("Olmoe")
    timings = run(model, store, "lru none resident_first", 9).timings
    assert 0 < timings.experts_busy_ns == timings.gpu_busy_ns < timings.span_ns


@pytest.mark.parametrize("family", ["Mixtral", "DeepseekV2"])
def test_cpu_experts_agree_within_noise(offloaded: Callable[[str], Any], family: str) -> None:
    """Products of the CPU are taken in where the graphs look for them."""
    model, store, resident, _ = offloaded(family)

    done = run(model, store, "lru none cpu_on_miss", 9)

    assert done.counts.cpu_experts > 0
    assert done.tokens == resident.tokens
    for mine, yours in zip(done.logits, resident.logits, strict=True):
        for a, b in zip(mine, yours, strict=True):
            assert float((a - b).abs().max() / b.abs().max()) <= NOISE


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("GptOss", "GptOssForCausalLM: its sliding windows move on the host"),
        ("Phimoe", "PhimoeForCausalLM: its forward cannot be captured"),
    ],
)
def test_a_family_that_needs_the_host_is_refused(
    make_model: Callable[[str], Any], family: str, message: str
) -> None:
    """What cannot be captured is refused in one line with the way out, and runs without graphs."""
    model = make_model(family).to("cuda")
    expected = resident_logits(model, PROMPTS, NEW_TOKENS)
    store = ExpertStore.take_from(model, pin=True)
    with pytest.raises(CapabilityError, match=message) as caught:
        run(model, store, "lru none resident_first", 9)
    assert str(caught.value).endswith("take --backend cuda-eager, which runs it without graphs")
    done = run(model, store, "lru none resident_first", 9, CudaDriver)
    assert done.tokens == [[int(each.argmax()) for each in request] for request in expected]
