"""Room for experts, from what the user gave and what the model takes beside them."""

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moesim.backends.drivers.cuda.graphed_batch import sizes_to
from moesim.backends.drivers.cuda.graphed_experts import kernel_layout
from moesim.backends.drivers.cuda.graphs import CONTEXT_STEP
from moesim.backends.drivers.cuda.grouped_experts import rows_bytes
from moesim.backends.models import Model
from moesim.backends.store import ExpertStore
from moesim.simulator.memory import Fixed, MemorySpec

GRAPHS_BYTES = 48 << 20
"""What graphs of any size take: 46 MiB on an H100, 32 of them the workspace of cuBLAS."""
GRAPHS_BYTES_PER_LAYER = 1 << 20
SKIPPED = "moesim-skipped"
"""Experts that compute nothing: a model runs before it has any, or after they were taken."""


@torch.inference_mode()
def kv_bytes_per_token(model: Model) -> int:
    """Return what the cache of one token takes, by running one; windows are not counted off.

    The experts are not run; the model is left with such that compute nothing.
    """
    model.set_experts_implementation(SKIPPED)
    cache = transformers.DynamicCache(config=model.config)
    ids = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: Any = cache.layers
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in layers
        for tensor in (layer.keys, layer.values)
    )


def runtime_bytes(
    store: ExpertStore,
    longest: int,
    kv_bytes_per_token: int,
    batch: int = 1,
    chunk: int | None = None,
) -> int:
    """Return what a GPU's driver takes beside weights, caches and the experts' arena.

    Graphs, with the workspace of the matrix products that they keep, and the rows of a step's
    grouped products; nothing for a store that is not page-locked.

    Args:
        store: The experts.
        longest: Tokens of the longest request; its prompt may be as long.
        kv_bytes_per_token: Graphs have room for a rounded context of each request.
        batch: The most requests that run together.
        chunk: The most prompt tokens of a step; None takes prompts whole.
    """
    if not (torch.cuda.is_available() and store.blob(0).is_pinned()):
        return 0
    sets = len(sizes_to(batch))
    graphs = GRAPHS_BYTES + GRAPHS_BYTES_PER_LAYER * len(store.sizes_L) * sets
    graphs += -longest % CONTEXT_STEP * kv_bytes_per_token * batch
    if batch > 1:  # a packed step gathers a layer's keys and values of all requests
        graphs += longest * kv_bytes_per_token * batch // len(store.sizes_L)
    layout = kernel_layout(store)
    if layout is None:
        return graphs
    tokens = (longest if chunk is None else min(chunk, longest)) + batch - 1
    if batch > 1:  # each set of graphs reads rows of its own
        tokens += sum(sizes_to(batch))
    return graphs + rows_bytes(layout, tokens * store.parts.top_k)


def expert_budget_bytes(
    spec: MemorySpec,
    store: ExpertStore,
    *,
    dense_bytes: int,
    kv_bytes: int,
    workspace_bytes: int = 0,
) -> int:
    """Return the bytes that experts get; none of the three figures means room for all of them.

    Args:
        spec: What the user gave.
        store: The experts.
        dense_bytes: Of all other weights.
        kv_bytes: Of the cache at the run's longest context.
        workspace_bytes: Of whatever else must be there.

    Raises:
        InputError: More than one figure was given, or one cannot be read.
        BudgetError: Nothing is left for experts.
    """
    return spec.expert_bytes(
        experts=store.parts.experts * len(store.sizes_L),
        largest_bytes=max(store.sizes_L),
        all_bytes=store.total_bytes,
        fixed=Fixed(dense_bytes, kv_bytes, workspace_bytes),
        usable_bytes=None,
    )


def _skip(module: Any, hidden_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor) -> Tensor:  # noqa: ANN401
    del module, ids_TK, gates_TK
    return torch.zeros_like(hidden_TD)


ALL_EXPERTS_FUNCTIONS.register(SKIPPED, _skip)
