"""Offloading changes nothing of what a model says: logits, text, whatever the system."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="executions run a real model")
transformers = pytest.importorskip("transformers", reason="they are models of transformers")

FAMILIES = ("Mixtral", "Qwen3Moe", "Olmoe", "DeepseekV2", "Phimoe", "GptOss", "DeepseekV3")
REORDERING_NOISE = 1e-5
"""Of the largest logit: transformers adds experts in order of their numbers, we by router rank."""

SYSTEMS = {
    "per-layer LRU": ("lru:scope=per_layer none resident_first", 9),
    "waves": ("lru none resident_first", 3),
    "staging": ("transient none on_demand", 3),
    "online prefetch": ("lfu transition_table:fit=online resident_first", 12),
    "gates ahead": ("lru next_gate:horizon=2 resident_first", 12),
}


def assert_equal_logits(ours: Any, theirs: Any) -> None:
    """Compare every step's logits bit by bit."""
    assert len(ours) == len(theirs)
    for mine, yours in zip(ours, theirs, strict=True):
        assert len(mine) == len(yours)
        assert all(torch.equal(a, b) for a, b in zip(mine, yours, strict=True))


def largest_difference(ours: Any, theirs: Any) -> float:
    """Return the largest difference of two logits over the largest logit of its step."""
    return max(
        float((a - b).abs().max() / b.abs().max())
        for mine, yours in zip(ours, theirs, strict=True)
        for a, b in zip(mine, yours, strict=True)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_logits_equal_those_of_the_resident_model(
    offloaded: Callable[[str], Any], family: str, system: str
) -> None:
    """A lossless system gives the resident model's logits bit by bit, and eager's within noise."""
    it = offloaded(family)
    policies, slots = SYSTEMS[system]

    done = it.run(it.deciding(policies, slots))

    assert done.counts.misses > 0
    assert_equal_logits(done.logits, it.resident)
    assert it.text == done.tokens
    assert largest_difference(done.logits, it.eager) <= REORDERING_NOISE


@pytest.mark.parametrize("family", FAMILIES)
def test_cpu_experts_agree_within_noise(offloaded: Callable[[str], Any], family: str) -> None:
    """Misses computed from the host store give the same text, and logits within noise."""
    it = offloaded(family)

    done = it.run(it.deciding("lru transition_table:fit=online cpu_on_miss", 9))

    assert done.counts.cpu_experts > 0
    assert it.text == done.tokens
    assert largest_difference(done.logits, it.resident) <= REORDERING_NOISE


@pytest.fixture(scope="module")
def reference(repository: Path, offload: Callable[[Any], Any]) -> Any:
    """Return the trained reference model, its experts taken."""
    transformers.utils.logging.disable_progress_bar()
    weights = repository / "backends" / "reference" / "weights"
    model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    return offload(model.eval())


@pytest.mark.parametrize(
    ("policies", "share"),
    [
        ("lru:scope=per_layer none resident_first", 0.25),
        ("lru next_gate:horizon=1 resident_first", 0.5),
        ("transient none on_demand", 0.25),
    ],
)
def test_the_trained_model_says_the_same(reference: Any, policies: str, share: float) -> None:
    """The reference model's logits and greedy text are those of all experts resident."""
    experts = reference.store.parts.experts * len(reference.store.sizes_L)

    done = reference.run(reference.deciding(policies, round(experts * share)))

    assert_equal_logits(done.logits, reference.resident)
    assert reference.text == done.tokens
    assert largest_difference(done.logits, reference.eager) <= REORDERING_NOISE
