"""Shapes of the reference model and the topology twins, and how they are computed while they learn.

All are transformers' own Qwen3-MoE. The reference model has 12 MoE layers, 32 experts of width 48,
top-4, hidden width 192; a twin has exactly the layers, experts and top-k of a public model and is
narrow otherwise. In training every expert is computed for every token and masked: for experts this
narrow one dense product is faster than a dispatch, and the result is the same. Where there are very
many experts, `use_grouped_experts` is faster.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3MoeConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moesim.backends.models import Model
from moesim.backends.reference.vocabulary import PADDING, SEPARATOR, VOCABULARY_TOKENS

# T tokens, E experts of a layer, D hidden width, I expert width.
Experts = Any  # an experts module of transformers, whatever its family
DENSE_MASKED = "moesim_dense_masked"
GROUPED = "moesim_grouped"


@dataclass(frozen=True, slots=True)
class Shape:
    """Layers, experts of a layer, experts chosen, hidden width and width of an expert."""

    layers: int
    experts: int
    top_k: int
    width: int = 128
    expert_width: int = 32


REFERENCE = Shape(12, 32, 4, 192, 48)
TWINS = {
    "olmoe": Shape(16, 64, 8),
    "mixtral-8x7b": Shape(32, 8, 2),
    "qwen3-30b-a3b": Shape(48, 128, 8),
    "qwen1.5-moe-a2.7b": Shape(24, 60, 4),
    "phi-3.5-moe": Shape(32, 16, 2),
}
HEAD_WIDTH = 32


def make_config(shape: Shape = REFERENCE) -> Qwen3MoeConfig:
    """Return the configuration of a shape."""
    make: Any = Qwen3MoeConfig
    config: Qwen3MoeConfig = make(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // HEAD_WIDTH,
        num_key_value_heads=2,
        head_dim=HEAD_WIDTH,
        num_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        moe_intermediate_size=shape.expert_width,
        intermediate_size=4 * shape.width,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        max_position_embeddings=2_048,
        initializer_range=0.04,
        tie_word_embeddings=False,
        bos_token_id=SEPARATOR,
        eos_token_id=SEPARATOR,
        pad_token_id=PADDING,
    )
    return config


def _all_experts(
    hidden_TD: Tensor, gate_TE: Tensor, gate_up_E2ID: Tensor, down_EDI: Tensor
) -> Tensor:
    experts, twice_width, width = gate_up_E2ID.shape
    both = nn.functional.linear(hidden_TD, gate_up_E2ID.reshape(experts * twice_width, width))
    gated, up = both.view(-1, experts, twice_width).chunk(2, dim=-1)
    inner_TEI = nn.functional.silu(gated) * up * gate_TE.unsqueeze(-1).to(both.dtype)
    down_DEI = down_EDI.permute(1, 0, 2).reshape(width, -1)
    return nn.functional.linear(inner_TEI.flatten(1), down_DEI)


def dense_masked(
    experts: Experts,
    hidden_TD: Tensor,
    expert_TK: Tensor,
    gate_TK: Tensor,
) -> Tensor:
    """Compute every expert and weigh those not chosen with 0: transformers' seam for experts."""
    gate_TE = torch.zeros(
        (len(hidden_TD), experts.num_experts), dtype=gate_TK.dtype, device=gate_TK.device
    ).scatter(1, expert_TK, gate_TK)
    out_TD = _all_experts(hidden_TD, gate_TE, experts.gate_up_proj, experts.down_proj)
    return out_TD.to(hidden_TD.dtype)


def use_dense_experts(model: Model) -> None:
    """Make the model compute its experts densely."""
    ALL_EXPERTS_FUNCTIONS.register(DENSE_MASKED, dense_masked)
    model.set_experts_implementation(DENSE_MASKED)


class _CastToBfloat16:
    """The experts' weights in bfloat16, as autocast would have them for a product it knows."""

    def __init__(self, experts: Experts) -> None:
        self._experts = experts
        self.gate_up_proj = experts.gate_up_proj.to(torch.bfloat16)
        self.down_proj = experts.down_proj.to(torch.bfloat16)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module has
        return getattr(self._experts, name)


def grouped(experts: Experts, hidden_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
    """Sort the tokens by expert and compute each expert's own, in bfloat16: transformers' way."""
    forward: Any = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    cast = _CastToBfloat16(experts)
    out_TD: Tensor = forward(
        cast, hidden_TD.to(torch.bfloat16), expert_TK, gate_TK.to(torch.bfloat16)
    )
    return out_TD.to(hidden_TD.dtype)


def use_grouped_experts(model: Model) -> None:
    """Make the model compute only the chosen experts; for a GPU."""
    ALL_EXPERTS_FUNCTIONS.register(GROUPED, grouped)
    model.set_experts_implementation(GROUPED)
