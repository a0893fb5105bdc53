"""Tiny random models of every MoE family that the recorder knows."""

import os
from collections.abc import Callable
from typing import Any

import pytest

# Models this small gain nothing from threads, and threads that wait for each other on a busy host
# cost more than the tests. torch reads it when it is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

COMMON = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
DEEPSEEK = COMMON | {
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "routed_scaling_factor": 2.5,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": COMMON | {"intermediate_size": 16, "num_local_experts": 8, "num_experts_per_tok": 2},
    "Qwen2Moe": COMMON
    | {
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
    },
    "Qwen3Moe": COMMON
    | {
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
    },
    "Olmoe": COMMON | {"intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 3},
    "GptOss": COMMON
    | {
        "intermediate_size": 16,
        "head_dim": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
    },
    "DeepseekV2": DEEPSEEK | {"topk_method": "group_limited_greedy"},
    "DeepseekV3": DEEPSEEK | {"norm_topk_prob": True},
    "Phimoe": COMMON | {"intermediate_size": 16, "num_local_experts": 8, "num_experts_per_tok": 2},
}


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], Any]:
    """Return a function that builds a family's tiny model with seeded random weights."""
    torch = pytest.importorskip("torch", reason="the backends' tests run a real model")
    transformers = pytest.importorskip("transformers", reason="the backends' tests run a model")

    def make(family: str) -> Any:
        config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.linspace(-0.2, 0.2, len(buffer)))
        return model

    return make
