"""Shapes of the reference model and the topology twins, and how they are computed while they learn.

The reference model and most twins are transformers' own Qwen3-MoE; two twins have the architecture
of the model they stand for, since it is part of how they route: Qwen1.5-MoE has a shared expert and
does not normalise its gates, Phi-3.5-MoE chooses by SparseMixer. The reference model has 12 MoE
layers, 32 experts of width 48, top-4, hidden width 192; a twin has exactly the layers, experts and
top-k of a public model and is narrow otherwise. In training every expert is computed for every
token and masked: for experts this narrow one dense product is faster than a dispatch, and the
result is the same. Where there are very many experts, `use_grouped_experts` is faster.
"""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moesim.backends.models import Model
from moesim.backends.reference.vocabulary import PADDING, SEPARATOR, VOCABULARY_TOKENS

# T tokens, E experts of a layer, D hidden width, I expert width.
Experts = Any  # an experts module of transformers, whatever its family
DENSE_MASKED = "moesim_dense_masked"
GROUPED = "moesim_grouped"


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's shape.

    Attributes:
        layers: All of them MoE.
        experts: Routed experts of a layer.
        top_k: Experts chosen for a token.
        width: Hidden width.
        expert_width: Inner width of an expert.
        family: Prefix of transformers' classes.
    """

    layers: int
    experts: int
    top_k: int
    width: int = 128
    expert_width: int = 32
    family: str = "Qwen3Moe"


REFERENCE = Shape(12, 32, 4, 192, 48)
TWINS = {
    "olmoe": Shape(16, 64, 8),
    "mixtral-8x7b": Shape(32, 8, 2),
    "qwen3-30b-a3b": Shape(48, 128, 8),
    "qwen1.5-moe-a2.7b": Shape(24, 60, 4, family="Qwen2Moe"),
    "phi-3.5-moe": Shape(32, 16, 2, family="Phimoe"),
}
HEAD_WIDTH = 32
SHARED_EXPERTS = 4  # Qwen1.5-MoE's shared expert is as wide as four of the routed ones


def make_config(shape: Shape = REFERENCE) -> PretrainedConfig:
    """Return the configuration of a shape."""
    make: Any = getattr(transformers, f"{shape.family}Config")
    config: PretrainedConfig = make(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // HEAD_WIDTH,
        num_key_value_heads=2,
        num_experts_per_tok=shape.top_k,
        max_position_embeddings=2_048,
        initializer_range=0.04,
        tie_word_embeddings=False,
        bos_token_id=SEPARATOR,
        eos_token_id=SEPARATOR,
        pad_token_id=PADDING,
        **_of_family(shape),
    )
    return config


def _of_family(shape: Shape) -> dict[str, Any]:
    """Return the arguments that differ between the families."""
    if shape.family == "Phimoe":
        return {"num_local_experts": shape.experts, "intermediate_size": shape.expert_width}
    arguments = {
        "num_experts": shape.experts,
        "moe_intermediate_size": shape.expert_width,
        "intermediate_size": 4 * shape.width,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    if shape.family == "Qwen2Moe":
        shared = SHARED_EXPERTS * shape.expert_width
        return arguments | {"shared_expert_intermediate_size": shared, "norm_topk_prob": False}
    return arguments | {"head_dim": HEAD_WIDTH, "norm_topk_prob": True}


def make_model(shape: Shape = REFERENCE) -> Model:
    """Return a model of the shape with random weights, from torch's own random stream."""
    make: Any = getattr(transformers, f"{shape.family}ForCausalLM")
    model: Model = make(make_config(shape))
    return model


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
