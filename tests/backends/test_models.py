"""The seam: MoE parts are found in every family, and what can't be served is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the seam looks into torch modules")
transformers = pytest.importorskip("transformers", reason="the seam looks into transformers models")

from moesim.backends.models import ModelError, expert_bytes, find_moe  # noqa: E402 - after the skip

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("family", "layer_ids", "experts", "top_k"),
    [
        ("Mixtral", [0, 1, 2], 8, 2),
        ("Qwen2Moe", [0, 1, 2], 8, 3),
        ("Qwen3Moe", [0, 1, 2], 8, 3),
        ("Olmoe", [0, 1, 2], 8, 3),
        ("GptOss", [0, 1, 2], 8, 2),
        ("DeepseekV2", [1, 2], 8, 3),
        ("DeepseekV3", [1, 2], 8, 3),
        ("Phimoe", [0, 1, 2], 8, 2),
    ],
)
def test_every_family_shows_its_moe_layers(
    make_model: Callable[[str], Any],
    family: str,
    layer_ids: list[int],
    experts: int,
    top_k: int,
) -> None:
    """Layer indices count dense layers; experts and top-k are the config's."""
    parts = find_moe(make_model(family))
    assert layer_ids == [layer.layer_id for layer in parts.layers]
    assert (experts, top_k) == (parts.experts, parts.top_k)


def test_the_rule_of_phi_moe_is_not_claimed(make_model: Callable[[str], Any]) -> None:
    """A router whose rule a trace can't say is recorded without one."""
    assert find_moe(make_model("Phimoe")).selection is None


def test_the_bias_of_deepseek_v3_is_part_of_its_rule(make_model: Callable[[str], Any]) -> None:
    """The correction bias of every layer is in the rule, since ids depend on it."""
    rule = find_moe(make_model("DeepseekV3")).selection
    assert rule is not None
    assert rule.bias_LE is not None
    assert [len(row) for row in rule.bias_LE] == [8, 8]
    assert pytest.approx([-0.2, 0.2]) == [rule.bias_LE[0][0], rule.bias_LE[1][-1]]


def test_bytes_of_an_expert_are_those_of_its_matrices(make_model: Callable[[str], Any]) -> None:
    """One Mixtral expert is three matrices; the rest of the layer is counted apart."""
    model = make_model("Mixtral")
    layer = find_moe(model).layers[0]
    in_layer = sum(parameter.numel() for parameter in layer.decoder_layer.parameters())
    one, rest = expert_bytes(layer, 2)
    assert one == 3 * 32 * 16 * 2
    assert in_layer * 2 == 8 * one + rest


def test_a_dense_model_is_refused() -> None:
    """A model without experts is told so by its class."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    with pytest.raises(ModelError, match="LlamaForCausalLM: no MoE layer found"):
        find_moe(model)


def test_llama_4_is_refused_by_name() -> None:
    """Llama 4 computes all experts at once, so there is nothing to hook; the message says it."""
    config = transformers.Llama4TextConfig(
        **SMALL, num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=1
    )
    model = transformers.Llama4ForCausalLM(config)
    with pytest.raises(ModelError, match="Llama 4 computes all its experts densely"):
        find_moe(model)
