"""One forward of several requests: a single row of all their tokens, each attends to its own.

A step of decode tokens and pieces of prompts needs no padding this way, and a layer sees the
tokens of all requests at once: one union of experts. Attention alone is split by request, with the
cache and the mask that the request would have by itself, and by the function that the family uses;
so it gives the same bits. Products of other sizes round otherwise, which is all that differs.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from moesim.backends.models import Model
from moesim.simulator.errors import CapabilityError

# T tokens of all requests, R requests, V vocabulary.

PACKED = "moesim-packed"
BY_LONGEST = frozenset({"longrope", "dynamic"})
"""Rotary embeddings that look at the longest position of a forward, whosoever it is."""

Cache = Any
"""A cache of transformers: one request's."""


class Share(NamedTuple):
    """What one request contributes to a forward.

    Attributes:
        cache: Its own; the forward extends it.
        position: How many tokens went through before.
        tokens: The new ones, at least one.
    """

    cache: Cache
    position: int
    tokens: Sequence[int]


def check_packable(model: Model) -> None:
    """Refuse a family whose requests would notice each other.

    Raises:
        CapabilityError: One line with the way out.
    """
    config: Any = model.config.get_text_config()
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if rope in BY_LONGEST:
        raise CapabilityError(
            f"{type(model).__name__}: its {rope} positions depend on the longest request of a step;"
            " serve one request at a time (--max-batch 1)"
        )


def forward_packed(model: Model, shares: Sequence[Share]) -> Tensor:
    """Return the logits [R, V] after each request's last token, and extend the caches."""
    device = next(model.parameters()).device
    counts = [len(share.tokens) for share in shares]
    ids: list[int] = []
    positions: list[int] = []
    for share in shares:
        ids += share.tokens
        positions += range(share.position, share.position + len(share.tokens))
    lasts_R = torch.tensor(counts).cumsum(0) - 1
    plan = _Plan(model, shares, counts)
    with _attending_by_request(model) as plan.attention:
        out = model(
            torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            past_key_values=plan,
            use_cache=True,
            logits_to_keep=lasts_R.to(device),
            moesim_plan=plan,
        )
    logits_RV: Tensor = out.logits[0]
    return logits_RV


class _Plan:
    """Which tokens are whose; stands for the caches of all requests in the eyes of the model.

    Attributes:
        attention: The name of the family's own function.
    """

    def __init__(self, model: Model, shares: Sequence[Share], counts: list[int]) -> None:
        self.attention = ""
        self.counts = counts
        self.lengths: list[int] = []  # of what each request attends to, in the layer under way
        self._caches = [share.cache for share in shares]
        embedded: Any = model.get_input_embeddings()
        self.masks = [
            create_masks_for_generate(
                model.config,
                embedded.weight.new_empty(1, count, 1),
                None,
                share.cache,
                torch.arange(share.position, share.position + count)[None],
            )
            for share, count in zip(shares, counts, strict=True)
        ]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Extend every request's cache; return what all of them hold, one after another."""
        held = [
            cache.update(*new, layer)
            for cache, *new in zip(
                self._caches,
                torch.split(keys, self.counts, 2),
                torch.split(values, self.counts, 2),
                strict=True,
            )
        ]
        self.lengths = [keys.shape[2] for keys, _ in held]
        return torch.cat([keys for keys, _ in held], 2), torch.cat(
            [values for _, values in held], 2
        )


@contextmanager
def _attending_by_request(model: Model) -> Iterator[str]:
    """Have attention split by request; yield the name of the family's own function."""
    config: Any = model.config.get_text_config()
    own = config._attn_implementation  # noqa: SLF001  its setter would check and reload
    config._attn_implementation = PACKED  # noqa: SLF001
    try:
        yield own
    finally:
        config._attn_implementation = own  # noqa: SLF001


def _attend(
    module: Any,  # noqa: ANN401  an attention module of any family
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    moesim_plan: _Plan,
    **options: Any,  # noqa: ANN401  the family's own
) -> tuple[Tensor, None]:
    """Attend request by request."""
    del attention_mask
    eager = sys.modules[type(module).__module__].eager_attention_forward
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(moesim_plan.attention, eager)
    pieces = []
    for queries, keys, values, masks in zip(
        torch.split(query, moesim_plan.counts, 2),
        torch.split(key, moesim_plan.lengths, 2),
        torch.split(value, moesim_plan.lengths, 2),
        moesim_plan.masks,
        strict=True,
    ):
        is_by_layer = isinstance(masks, dict)
        mask = masks[module.config.layer_types[module.layer_idx]] if is_by_layer else masks
        pieces.append(attend(module, queries, keys, values, mask, **options)[0])
    return torch.cat(pieces, 1), None


ALL_ATTENTION_FUNCTIONS.register(PACKED, _attend)
