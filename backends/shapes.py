"""A shape of ours as a configuration of transformers: true dimensions, no weights.

Which family a shape belongs to is told by its hub id. What the tables leave out is the family's own
default and changes neither a size nor a product.
"""

from collections.abc import Callable
from typing import Any

import transformers

from moesim.backends.models import ModelError
from moesim.simulator.models.attention import Attention
from moesim.simulator.models.schema import ModelShape

Options = dict[str, Any]


def _mixtral(shape: ModelShape) -> Options:
    return {"num_local_experts": shape.experts, "intermediate_size": shape.expert_width}


def _phimoe(shape: ModelShape) -> Options:
    return _mixtral(shape) | {"attention_bias": True, "lm_head_bias": shape.head_bias}


def _olmoe(shape: ModelShape) -> Options:
    return {"num_experts": shape.experts, "intermediate_size": shape.expert_width}


def _qwen3_moe(shape: ModelShape) -> Options:
    return {"num_experts": shape.experts, "moe_intermediate_size": shape.expert_width}


def _qwen2_moe(shape: ModelShape) -> Options:
    shared = 0 if shape.shared is None else shape.shared.count * shape.shared.width
    return _qwen3_moe(shape) | {"shared_expert_intermediate_size": shared}


def _deepseek_v2(shape: ModelShape) -> Options:
    return {
        "n_routed_experts": shape.experts,
        "n_shared_experts": 0 if shape.shared is None else shape.shared.count,
        "moe_intermediate_size": shape.expert_width,
        "intermediate_size": shape.dense_width,
        "first_k_dense_replace": shape.moe_layers[0],
    }


def _gpt_oss(shape: ModelShape) -> Options:
    windowed = shape.attention.windowed_layers
    kinds = ("full_attention", "sliding_attention")
    return _mixtral(shape) | {
        "sliding_window": shape.attention.window_tokens,
        "layer_types": [kinds[layer in windowed] for layer in range(shape.decoder_layers)],
    }


FAMILIES: dict[str, tuple[str, Callable[[ModelShape], Options]]] = {
    "DeepSeek-V2": ("deepseek_v2", _deepseek_v2),
    "gpt-oss": ("gpt_oss", _gpt_oss),
    "Mixtral": ("mixtral", _mixtral),
    "OLMoE": ("olmoe", _olmoe),
    "Phi-3.5-MoE": ("phimoe", _phimoe),
    "Qwen1.5-MoE": ("qwen2_moe", _qwen2_moe),
    "Qwen3": ("qwen3_moe", _qwen3_moe),
}
"""By how the model's name on the hub begins: transformers' type, and the family's own options."""


def config_of(shape: ModelShape) -> Any:  # noqa: ANN401  a configuration of transformers
    """Return the configuration of a model of this shape.

    Raises:
        ModelError: Its family is not known here.
    """
    model = shape.hf_id.rpartition("/")[2]
    family = next((family for family in FAMILIES if model.startswith(family)), None)
    if family is None:
        raise ModelError(
            f"shape {shape.name}: no family is known for hf_id {shape.hf_id}; known are "
            f"{', '.join(sorted(FAMILIES))}; give a folder with a config.json instead"
        )
    kind, own = FAMILIES[family]
    return transformers.AutoConfig.for_model(
        kind,
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.decoder_layers,
        num_experts_per_tok=shape.top_k,
        tie_word_embeddings=shape.tied_embeddings,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        **_attention(shape.attention),
        **own(shape),
    )


def _attention(attention: Attention) -> Options:
    common = {"num_attention_heads": attention.heads}
    if attention.kind == "mla":
        return common | {
            "num_key_value_heads": attention.heads,
            "q_lora_rank": attention.q_rank,
            "kv_lora_rank": attention.kv_rank,
            "qk_nope_head_dim": attention.nope_dim,
            "qk_rope_head_dim": attention.rope_dim,
            "v_head_dim": attention.v_dim,
        }
    return common | {"num_key_value_heads": attention.kv_heads, "head_dim": attention.head_dim}
