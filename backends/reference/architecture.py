"""Shape of the reference model, and the way it is computed while it learns.

It is transformers' own Qwen3-MoE: 12 MoE layers, 32 experts of width 48, top-4, hidden width 192.
In training every expert is computed for every token and masked: for experts this narrow one dense
product is faster than any dispatch, and the result is the same.
"""

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


def make_config(*, layers: int = 12, experts: int = 32, top_k: int = 4) -> Qwen3MoeConfig:
    """Return the reference model's configuration; the arguments shrink it for tests."""
    make: Any = Qwen3MoeConfig
    config: Qwen3MoeConfig = make(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=192,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=experts,
        num_experts_per_tok=top_k,
        moe_intermediate_size=48,
        intermediate_size=768,
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
