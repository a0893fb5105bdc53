"""Room for experts, from what the user gave and what the model takes beside them."""

from typing import Any

import torch
import transformers

from moesim.backends.models import Model
from moesim.backends.store import ExpertStore
from moesim.simulator.memory import Fixed, MemorySpec


@torch.inference_mode()
def kv_bytes_per_token(model: Model) -> int:
    """Return what the cache of one token takes, by running one; windows are not counted off."""
    cache = transformers.DynamicCache(config=model.config)
    ids = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: Any = cache.layers
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in layers
        for tensor in (layer.keys, layer.values)
    )


def expert_budget_bytes(
    spec: MemorySpec, store: ExpertStore, *, dense_bytes: int, kv_bytes: int
) -> int:
    """Return the bytes that experts get; none of the three figures means room for all of them.

    Args:
        spec: What the user gave.
        store: The experts.
        dense_bytes: Of all other weights.
        kv_bytes: Of the cache at the run's longest context.

    Raises:
        InputError: More than one figure was given, or one cannot be read.
        BudgetError: Nothing is left for experts.
    """
    return spec.expert_bytes(
        experts=store.parts.experts * len(store.sizes_L),
        largest_bytes=max(store.sizes_L),
        all_bytes=store.total_bytes,
        fixed=Fixed(dense_bytes, kv_bytes),
        usable_bytes=None,
    )
