"""How long a prompt and how large a batch fits beside the experts: a question of memory alone.

KV caches and activations get what the experts leave. Where no room for experts is given, they get
all but the experts of one token of one layer, without which nothing runs.
"""

from collections.abc import Callable

from moesim.simulator.costs import CostModel
from moesim.simulator.errors import BudgetError, OutOfMemoryError
from moesim.simulator.memory import MemoryPlan, MemorySpec, Server, kv_bytes, plan

__all__ = ["largest_batch", "longest_prompt"]

_MOST = 1 << 26


def longest_prompt(
    spec: MemorySpec,
    costs: CostModel,
    *,
    batch: int = 1,
    output_tokens: int = 1,
    chunk: int | None = None,
) -> tuple[int, MemoryPlan | None]:
    """Return how many prompt tokens each of some requests may have, and what VRAM then holds.

    Args:
        spec: What the user gave of memory.
        costs: Machine, runtime and model.
        batch: Requests that run together, all of that length.
        output_tokens: Length of their answers.
        chunk: Prompt tokens of one step at most; None takes prompts whole.

    Returns:
        0 and None if not one token fits; the most that is looked at if nothing grows with it.
    """

    def divide(prompt_tokens: int) -> MemoryPlan | None:
        context = prompt_tokens + output_tokens - 1
        step_tokens = min(prompt_tokens, chunk or prompt_tokens) + batch - 1
        return _divide(spec, costs, context, batch, step_tokens)

    return _most(divide)


def largest_batch(
    spec: MemorySpec, costs: CostModel, *, context_tokens: int, chunk: int | None = None
) -> tuple[int, MemoryPlan | None]:
    """Return how many requests of a length fit together, and what VRAM then holds.

    Args:
        spec: What the user gave of memory.
        costs: Machine, runtime and model.
        context_tokens: Prompt and answer of each.
        chunk: Prompt tokens of one step at most; None takes prompts whole, one a step.

    Returns:
        0 and None if not one fits.
    """

    def divide(batch: int) -> MemoryPlan | None:
        step_tokens = min(context_tokens, chunk or context_tokens) + batch - 1
        return _divide(spec, costs, context_tokens, batch, step_tokens)

    return _most(divide)


def _divide(
    spec: MemorySpec, costs: CostModel, context_tokens: int, batch: int, step_tokens: int
) -> MemoryPlan | None:
    """Return the division of VRAM, or None where it does not fit."""
    shape = costs.shape
    wanted_bytes = batch * kv_bytes(shape, context_tokens)
    try:
        divided = plan(spec, costs, context_tokens, Server(wanted_bytes, step_tokens))
    except (OutOfMemoryError, BudgetError):
        return None
    least_bytes = shape.top_k * max(layer.expert_bytes for layer in shape.layers)
    if divided.kv_bytes < wanted_bytes or divided.expert_bytes < least_bytes:
        return None
    return divided


def _most(divide: Callable[[int], MemoryPlan | None]) -> tuple[int, MemoryPlan | None]:
    """Return the largest number that fits: all smaller ones do, too."""
    fits, divided = 0, None
    step = 1
    while fits + step <= _MOST and (found := divide(fits + step)) is not None:
        fits, divided, step = fits + step, found, step * 2
    while step > 1:
        step //= 2
        if fits + step <= _MOST and (found := divide(fits + step)) is not None:
            fits, divided = fits + step, found
    return fits, divided
