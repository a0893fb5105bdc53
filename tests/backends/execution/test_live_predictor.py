"""A trained predictor decides in an execution as in a replay, and no trace carries its answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="executions run a real model")

from moesim.backends.predictors.files import Predictors, write_predictors  # noqa: E402  after the skip
from moesim.backends.predictors.learning import train  # noqa: E402
from moesim.backends.predictors.light import fit_light  # noqa: E402
from moesim.backends.predictors.sequence import Size  # noqa: E402
from moesim.backends.predictors.uses import prompts_of  # noqa: E402
from moesim.backends.testing import first_difference  # noqa: E402
from moesim.simulator.engines.counts import count  # noqa: E402
from moesim.simulator.messages import Answered  # noqa: E402
from moesim.simulator.workload.demands import Workload  # noqa: E402

SLOTS = 3 * 3 + 2
"""Three of eight experts of three layers, and two that pass through."""


@pytest.fixture
def predictor(tmp_path: Path, offloaded: Callable[[str], Any]) -> Path:
    """Return the file of networks that were trained on what the model does with its prompts."""
    it = offloaded("Qwen3Moe")
    prompts = prompts_of(it.run(it.deciding("lru none resident_first", SLOTS)).trace)
    networks = {
        variant: train(
            prompts,
            Size(*prompts.use_RLE.shape[1:], variant, width=16, blocks=1, heads=2),
            epochs=2,
            horizon=1,
            seed=0,
        )
        for variant in ("all_layers", "by_layer")
    }
    path = tmp_path / "predictor.safetensors"
    write_predictors(Predictors(networks, fit_light(prompts), {}), path)
    return path


@pytest.mark.parametrize("variant", ["all_layers", "by_layer"])
@pytest.mark.parametrize("ask", ["false", "true"])
def test_an_execution_asks_the_predictor(
    offloaded: Callable[[str], Any], predictor: Path, variant: str, ask: str
) -> None:
    """The text stays, sets change, and a fresh controller fed the log gives the same commands."""
    it = offloaded("Qwen3Moe")
    options = f"period=1,predictor=network,file={predictor},variant={variant},ask={ask}"
    deciding = it.deciding(f"periodic:{options} none resident_first", SLOTS)

    done = it.run(deciding)

    assert it.text == done.tokens
    assert done.counts.bytes_rebalance > 0
    answers = [fact for facts, _, _ in done.log for fact in facts if isinstance(fact, Answered)]
    assert len(answers) == (2 if ask == "true" else 0)
    parts = it.store.parts
    shape = {"experts": parts.experts, "top_k": parts.top_k, "sizes_L": it.store.sizes_L}
    assert first_difference(done.log, deciding.controller(**shape)) is None
    if ask == "false":
        replayed = deciding.controller(**shape)
        count(replayed, Workload(done.trace), budget_bytes=deciding.budget_bytes)
        assert replayed.counts.misses == done.counts.misses
        assert replayed.counts.bytes_rebalance == done.counts.bytes_rebalance


def test_all_experts_at_first_in_an_execution(offloaded: Callable[[str], Any]) -> None:
    """The first prompt is the full model's; the second has three of eight experts and is rerouted.

    The peak is all experts; what is decided is what a fresh controller decides.
    """
    it = offloaded("Qwen3Moe")
    cache = "periodic:period=1,window=1,first=all,held=3,staging=0"
    deciding = it.deciding(f"{cache} none fallback/resident_first", 3 * 8)

    done = it.run(deciding)

    assert done.tokens[0] == it.text[0]
    assert done.counts.rerouted > 0
    assert done.counts.misses == 0
    assert done.counts.peak_expert_bytes == 3 * 8 * it.store.sizes_L[0]
    assert done.counts.bytes_rebalance == 3 * 3 * it.store.sizes_L[0]
    parts = it.store.parts
    shape = {"experts": parts.experts, "top_k": parts.top_k, "sizes_L": it.store.sizes_L}
    assert first_difference(done.log, deciding.controller(**shape)) is None
