"""Room for experts, from what the user gave and what the model takes beside them."""

from typing import Any

import torch
import transformers

from moesim.backends.models import Model
from moesim.backends.store import ExpertStore
from moesim.hardware_profiles import ProfileError
from moesim.hardware_profiles.units import format_bytes, parse_bytes
from moesim.simulator.errors import BudgetError, InputError
from moesim.simulator.memory import MemorySpec


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
    given = [name for name in ("vram", "expert_budget", "slots") if getattr(spec, name) is not None]
    if len(given) > 1:
        raise InputError(
            f"give one of --vram, --expert-budget and --slots, not {' and '.join(given)}"
        )
    if spec.slots is not None:
        return min(store.total_bytes, _slots(spec.slots, store) * max(store.sizes_L))
    if spec.expert_budget is not None:
        return min(store.total_bytes, _parse("--expert-budget", spec.expert_budget))
    if spec.vram is None:
        return store.total_bytes
    total = _parse("--vram", spec.vram)
    if total <= dense_bytes + kv_bytes:
        raise BudgetError(
            f"{format_bytes(total)} of VRAM hold no experts: dense weights "
            f"{format_bytes(dense_bytes)}, KV cache {format_bytes(kv_bytes)}; give more"
        )
    return min(store.total_bytes, total - dense_bytes - kv_bytes)


def _slots(text: str, store: ExpertStore) -> int:
    experts = store.parts.experts * len(store.sizes_L)
    try:
        if text.endswith("%"):
            share = float(text.removesuffix("%")) / 100
            slots = round(experts * share) if 0 < share <= 1 else 0
        else:
            slots = int(text)
    except ValueError:
        slots = 0
    if slots < 1:
        raise InputError(
            f"--slots {text}: expected a number of experts such as 400, or a share such as 25%"
        )
    return slots


def _parse(option: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except ProfileError as error:
        raise InputError(f"{option} {text}: {error}") from None
