"""Model shapes: bytes and parameters derived by formula, held against published numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from moesim.hardware_profiles import ProfileError
from moesim.simulator.models import (
    CostShape,
    ModelShape,
    ShapeMatch,
    from_hf_config,
    load,
    match,
    names,
)
from moesim.simulator.models.formats import weight_format

GIB, MIB = 2**30, 2**20

MIXTRAL = {
    "model_type": "mixtral",
    "num_hidden_layers": 32,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "sliding_window": None,
}
QWEN15 = {
    "model_type": "qwen2_moe",
    "num_hidden_layers": 24,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 151936,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
PHI = {
    "model_type": "phimoe",
    "num_hidden_layers": 32,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "hidden_size": 4096,
    "intermediate_size": 6400,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32064,
    "attention_bias": True,
    "lm_head_bias": True,
    "sliding_window": 131072,
    "max_position_embeddings": 131072,
}
OLMOE = {
    "model_type": "olmoe",
    "num_hidden_layers": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 50304,
}
DEEPSEEK = {
    "model_type": "deepseek_v2",
    "num_hidden_layers": 27,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 102400,
}
QWEN3 = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "head_dim": 128,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 151936,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "num_hidden_layers": 24,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 201088,
    "attention_bias": True,
    "sliding_window": 128,
    "max_position_embeddings": 131072,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "quantization_config": {"quant_method": "mxfp4"},
}
CONFIGS = {
    "mixtral-8x7b": MIXTRAL,
    "mixtral-8x22b": MIXTRAL
    | {
        "num_hidden_layers": 56,
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_attention_heads": 48,
    },
    "qwen1.5-moe-a2.7b": QWEN15,
    "phi-3.5-moe": PHI,
    "olmoe": OLMOE,
    "deepseek-v2-lite": DEEPSEEK,
    "qwen3-30b-a3b": QWEN3,
    "gpt-oss-20b": GPT_OSS,
}


def test_the_models_asked_for_ship() -> None:
    """Every model of the papers and of the recorded traces has its shape."""
    assert sorted(CONFIGS) == names()


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mixtral-8x7b", 46.7),
        ("mixtral-8x22b", 141),
        ("qwen1.5-moe-a2.7b", 14.3),
        ("phi-3.5-moe", 41.9),
        ("olmoe", 6.9),
        ("deepseek-v2-lite", 15.7),
        ("qwen3-30b-a3b", 30.5),
        ("gpt-oss-20b", 20.9),
    ],
)
def test_parameters_add_up_to_the_published_total(name: str, billions: float) -> None:
    """Within 1 % of what the model card says."""
    assert pytest.approx(billions, rel=0.01) == load(name).parameters / 1e9


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mixtral-8x7b", 12.9),
        ("mixtral-8x22b", 39),
        ("qwen1.5-moe-a2.7b", 2.7),
        ("phi-3.5-moe", 6.6),
        ("olmoe", 1.3),
        ("qwen3-30b-a3b", 3.3),
    ],
)
def test_active_parameters_are_those_published(name: str, billions: float) -> None:
    """Within 2 % of what the model card rounds to."""
    assert pytest.approx(billions, rel=0.02) == load(name).active_parameters / 1e9


@pytest.mark.parametrize(
    ("name", "expert_mib", "experts_gib", "rest_gib"),
    [
        ("mixtral-8x7b", 336, 84, 2.99),
        ("qwen3-30b-a3b", 9, 54, 2.87),
        ("olmoe", 12, 12, 0.89),
        ("phi-3.5-moe", 150, 75, 2.99),
    ],
)
def test_bf16_bytes_are_those_of_the_loaded_models(
    name: str, expert_mib: int, experts_gib: int, rest_gib: float
) -> None:
    """The same as read from the models that transformers builds."""
    shape = load(name)
    experts = len(shape.moe_layers) * shape.experts
    assert expert_mib * MIB == shape.expert_bytes("bf16")
    assert experts_gib * GIB == experts * shape.expert_bytes("bf16")
    assert rest_gib == round(shape.dense_bytes("bf16") / GIB, 2)
    assert shape.total_bytes("bf16") == experts_gib * GIB + shape.dense_bytes("bf16")


def test_a_published_residency_is_met_to_four_digits() -> None:
    """MoEpic gives 26.67 GB for Qwen1.5-MoE fully resident at 16 bits (binary gigabytes)."""
    assert round(load("qwen1.5-moe-a2.7b").total_bytes("bf16") / GIB, 2) == 26.67


def test_mxfp4_has_four_and_a_quarter_bits_and_16_bit_biases() -> None:
    """An expert of gpt-oss: 3 matrices of 2880 x 2880 in blocks of 32, and 3 biases."""
    shape = load("gpt-oss-20b")
    weights, biases = 3 * 2880 * 2880, 3 * 2880
    assert weights * 17 // 32 + 2 * biases == shape.expert_bytes()
    assert shape.expert_bytes() == shape.expert_bytes("mxfp4")
    assert pytest.approx(shape.total_bytes(), rel=0.005) == 13.8e9
    assert 2 * (weights + biases) == shape.expert_bytes("bf16")
    assert shape.dense_bytes("mxfp4") == shape.dense_bytes("bf16")


def test_int4_counts_its_scales() -> None:
    """Groups of 128 cost an eighth of a bit per weight, short groups count as whole."""
    shape = load("mixtral-8x7b")
    weights = 3 * 4096 * 14336
    assert weights // 2 + weights // 128 * 2 == shape.expert_bytes("int4")
    assert weights // 2 + weights // 64 * 2 == shape.expert_bytes("int4-g64")
    assert weights == shape.expert_bytes("fp8")
    assert weight_format("int4").expert.matrix_bytes(2, 100) == 2 * (100 // 2 + 2)
    assert weight_format("int4-g64").expert.matrix_bytes(3, 100) == 3 * (100 // 2 + 4)


def test_below_four_bits_only_the_experts_are_that_narrow() -> None:
    """Mixtral-offloading and MoEpic keep attention at 4 bits under experts of 2."""
    shape = load("mixtral-8x7b")
    assert shape.layer_dense_bytes(0, "int2-g16") == shape.layer_dense_bytes(0, "int4-g16")
    assert shape.expert_bytes("int2-g16") < shape.expert_bytes("int4-g16")


@pytest.mark.parametrize("name", names())
def test_every_format_that_its_users_run_shrinks_the_model_in_order(name: str) -> None:
    """Fewer bits, fewer bytes; the parts always add up to the whole."""
    shape = load(name)
    for form in shape.formats:
        costs = shape.cost_shape(form)
        assert shape.total_bytes(form) == costs.expert_bytes_total + costs.resident_bytes
        assert shape.expert_bytes(form) <= shape.expert_bytes("bf16")


def test_an_unknown_format_lists_the_known_ones() -> None:
    """The message shows how group sizes are written."""
    with pytest.raises(ProfileError, match=r"no weight format 'int5'; there are .*int4-g64"):
        load("olmoe").expert_bytes("int5")


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [("mixtral-8x7b", 131_072), ("qwen3-30b-a3b", 98_304), ("deepseek-v2-lite", 31_104)],
)
def test_the_kv_cache_of_a_token_follows_from_the_heads(name: str, kv_bytes: int) -> None:
    """Two vectors per KV head, or one compressed vector and its rope, per layer at 16 bits."""
    shape = load(name)
    assert kv_bytes == shape.kv_bytes_per_token == shape.cost_shape().kv_bytes_per_token


def test_dense_layers_and_shared_experts_are_dense() -> None:
    """DeepSeek-V2-Lite's first layer is folded into the one before the first router."""
    shape = load("deepseek-v2-lite")
    costs = shape.cost_shape("bf16")
    assert len(costs.layers) == 26
    assert shape.layer_dense_bytes(0) + shape.layer_dense_bytes(1) == costs.layers[0].dense_bytes
    assert shape.layer_dense_bytes(2) == costs.layers[1].dense_bytes
    feed_forward = 3 * 2048 * 2
    shared, dense = 2 * 1408 * feed_forward, 10944 * feed_forward
    router = 64 * 2048 * 2
    assert dense - shared - router == shape.layer_dense_bytes(0) - shape.layer_dense_bytes(1)
    assert 2 * shape.attention.kv_bytes_per_token == costs.layers[0].kv_bytes_per_token


def test_trailing_dense_layers_belong_to_the_head() -> None:
    """What comes after the last experts is read before the next token."""
    config = MIXTRAL | {"num_hidden_layers": 3, "mlp_only_layers": [2]}
    shape = from_hf_config(config)
    whole = shape.cost_shape()
    assert shape.moe_layers == (0, 1)
    assert len(whole.layers) == 2
    head = 2 * (32000 * 4096 + 4096)
    assert shape.layer_dense_bytes(2) + head == whole.head_bytes
    embedding = 2 * 32000 * 4096
    read = sum(layer.dense_bytes for layer in whole.layers) + whole.head_bytes
    assert whole.resident_bytes == read + embedding


def test_windowed_layers_are_kept_apart() -> None:
    """Half of gpt-oss sees 128 positions; its shapes say which half."""
    costs = load("gpt-oss-20b").cost_shape()
    per_layer = 2 * 8 * 64 * 2
    assert costs.window_tokens == 128
    assert (0, per_layer) == (
        costs.layers[0].kv_bytes_per_token,
        costs.layers[0].windowed_kv_bytes_per_token,
    )
    assert (per_layer, 0) == (
        costs.layers[1].kv_bytes_per_token,
        costs.layers[1].windowed_kv_bytes_per_token,
    )


def test_expert_flops_are_two_per_weight() -> None:
    """A multiply and an add for each weight of an expert and each token."""
    assert load("mixtral-8x7b").expert_flops_per_token == 2 * 3 * 4096 * 14336


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_config_gives_the_shape_that_ships(name: str) -> None:
    """The reader of config.json and the YAML files agree on everything but names."""
    ours = load(name).model_dump(exclude={"name", "hf_id", "aliases", "formats"})
    theirs = from_hf_config(CONFIGS[name]).model_dump(
        exclude={"name", "hf_id", "aliases", "formats"}
    )
    assert ours == theirs


def test_a_quantised_config_has_its_format() -> None:
    """The checkpoint's own format is the usual one."""
    assert from_hf_config(GPT_OSS).formats == ("mxfp4", "bf16")
    assert from_hf_config(MIXTRAL).formats == ("bf16",)


def test_a_folder_with_a_config_is_a_model(tmp_path: Path) -> None:
    """The folder's name is the model's, a nested text_config is found."""
    folder = tmp_path / "My_Model"
    folder.mkdir()
    config = {"model_type": "outer", "text_config": OLMOE}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shape = from_hf_config(folder)
    assert shape.name == "my_model"
    assert load("olmoe").parameters == shape.parameters
    assert shape == from_hf_config(folder / "config.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_local_experts": None}, "missing key 'num_local_experts' (or num_experts, n_routed_"),
        ({"num_experts_per_tok": None}, "missing key 'num_experts_per_tok' (or moe_k, moe_topk"),
        ({"hidden_size": None}, "missing key 'hidden_size'; add it, or describe the model"),
        ({"hidden_size": "4096"}, "hidden_size: expected a whole number of 0 or more, got '4096'"),
        ({"intermediate_size": [1, 2]}, "intermediate_size: expected a whole number"),
        ({"num_experts_per_tok": 9}, "top_k: expected at most 8 experts, got 9"),
        ({"first_k_dense_replace": 32}, "no layer has experts by first_k_dense_replace=32"),
    ],
)
def test_a_config_that_lacks_something_says_what(change: dict[str, Any], expected: str) -> None:
    """The message has the key under all its spellings and the way out."""
    with pytest.raises(ProfileError) as error:
        from_hf_config(MIXTRAL | change)
    assert str(error.value).startswith(f"config: {expected}")


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    """File and line are in the message; so is a file that is not there."""
    path = tmp_path / "config.json"
    with pytest.raises(ProfileError, match=r"config\.json: cannot be read"):
        from_hf_config(path)
    path.write_text('{\n"a": }', encoding="utf-8")
    with pytest.raises(ProfileError, match=r"config\.json: line 2: not valid JSON"):
        from_hf_config(path)
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(ProfileError, match="expected a JSON object, got list"):
        from_hf_config(path)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"decoder_sparse_step": 2}, (1, 3, 5)),
        ({"first_k_dense_replace": 4}, (4, 5)),
        ({"mlp_only_layers": [0, 3]}, (1, 2, 4, 5)),
        ({"moe_layer_freq": 2}, (0, 2, 4)),
        ({"moe_layer_freq": [0, 1, 1, 0, 1, 1]}, (1, 2, 4, 5)),
        ({"moe_layers": [2, 5]}, (2, 5)),
    ],
)
def test_each_rule_for_layers_with_experts_is_understood(
    rule: dict[str, Any], expected: tuple[int, ...]
) -> None:
    """Families state which layers have experts in six ways."""
    assert expected == from_hf_config(MIXTRAL | {"num_hidden_layers": 6} | rule).moe_layers


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (
            "openai/gpt-oss-20b (32 experts, top-4, 24 layers), greedy decode",
            (24, 32, 4),
            ShapeMatch("gpt-oss-20b", ""),
        ),
        (
            "Qwen3-30B-A3B-Q4_K_M.gguf",
            (48, 128, 6),
            ShapeMatch("qwen3-30b-a3b", "top-6 where the model has top-8"),
        ),
        (
            "ESFT-vanilla-lite (DeepSeek-V2-Lite aligned; 64 routed experts, top-6)",
            (26, 64, 6),
            ShapeMatch("deepseek-v2-lite", ""),
        ),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", (32, 8, 2), ShapeMatch("mixtral-8x7b", "")),
        ("mistralai/Mixtral-8x22B-v0.1", (56, 8, 2), ShapeMatch("mixtral-8x22b", "")),
        ("microsoft/Phi-3.5-MoE-instruct", (32, 16, 2), ShapeMatch("phi-3.5-moe", "")),
        ("allenai/OLMoE-1B-7B-0924", (16, 64, 8), ShapeMatch("olmoe", "")),
        ("Qwen/Qwen1.5-MoE-A2.7B-Chat", (24, 60, 4), ShapeMatch("qwen1.5-moe-a2.7b", "")),
        ("openai/gpt-oss-120b", (36, 128, 4), None),
        ("openai/gpt-oss-20b", (24, 32, 5), None),
        ("openai/gpt-oss-20b", (12, 32, 4), None),
        ("notgpt-oss-20b", (24, 32, 4), None),
        ("", (24, 32, 4), None),
    ],
)
def test_a_trace_finds_its_shape_by_name_and_shape(
    model: str, shape: tuple[int, int, int], expected: ShapeMatch | None
) -> None:
    """Only a trace that has the model's layers and experts gets its costs."""
    layers, experts, top_k = shape
    assert expected == match(model, layers=layers, experts=experts, top_k=top_k)


def test_the_recorded_traces_find_their_shapes(shared_data: Path) -> None:
    """Each trace beside the repository is of a model that ships."""
    found = {}
    for folder in sorted((shared_data / "traces").iterdir()):
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        found[folder.name] = match(
            meta["model"],
            layers=len(meta["layer_ids"]),
            experts=meta["n_experts"],
            top_k=meta["top_k"],
        )
    assert {
        "bigmoe-qwen": ShapeMatch("qwen3-30b-a3b", "top-6 where the model has top-8"),
        "deepseek-v2-lite-esft": ShapeMatch("deepseek-v2-lite", ""),
        "gpt-oss-20b": ShapeMatch("gpt-oss-20b", ""),
    } == found


def test_an_unknown_model_lists_those_that_exist() -> None:
    """The closest name comes first."""
    with pytest.raises(ProfileError, match=r"no model shape 'mixtral'; there are \['mixtral-8x"):
        load("mixtral")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("experts: 8", "experts: eight", "experts: input should be a valid integer"),
        ("hidden: 4096\n", "", "hidden: missing"),
        ("top_k: 2", "topk: 2", "topk: unknown key; did you mean 'top_k'?"),
        ("moe_layers: all", "moe_layers: [0, 32]", "moe_layers: expected layers of 0 to 31"),
        ("moe_layers: all", "moe_layers: [1, 0]", "moe_layers: expected growing numbers"),
        ("moe_layers: all", "moe_layers: {from: 1}", "dense_width: missing; layers without"),
        ("formats: [bf16", "formats: [bf17", "formats.0: no weight format 'bf17'"),
        ("kind: gqa", "kind: gpa", "attention: input tag 'gpa'"),
        ("heads: 32", "heads: 0", "attention.gqa.heads: input should be greater than or equal"),
    ],
)
def test_a_faulty_shape_file_names_the_key(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    """One line per fault, with file, key and value."""
    source = Path(__file__).parents[2] / "simulator" / "models" / "mixtral-8x7b.yaml"
    text = source.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mixtral-8x7b.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ProfileError) as error:
        load(path)
    lines = str(error.value).splitlines()
    assert sum(line.startswith(f"mixtral-8x7b.yaml: {expected}") for line in lines) == 1


def test_a_trace_with_bytes_alone_gives_a_shape() -> None:
    """Decode costs follow from bytes; the shape says that they are guessed."""
    shape = CostShape.from_bytes(
        [3_000, 2_000], [500, 400], experts=4, top_k=2, head_bytes=100, bits_per_weight=4
    )
    assert shape.origin == "bytes"
    assert [layer.expert_bytes for layer in shape.layers] == [3_000, 2_000]
    assert shape.expert_bytes_total == 4 * 5_000
    assert shape.resident_bytes == 1_000
    assert shape.layers[0].expert_flops_per_token == 2 * 2 * 3_000


@pytest.mark.parametrize(
    ("experts", "dense", "expected"),
    [
        ([1], [1, 2], "expert_bytes has 1 layers and dense_bytes 2"),
        ([1, 0], [1, 2], r"expert_bytes\[1\]: expected a size above 0, got 0"),
        ([1, 1], [1, -2], r"dense_bytes\[1\]: expected a size of 0 or more, got -2"),
    ],
)
def test_bytes_that_cannot_be_are_refused(
    experts: list[int], dense: list[int], expected: str
) -> None:
    """The message names list, layer and value."""
    with pytest.raises(ValueError, match=expected):
        CostShape.from_bytes(experts, dense, experts=4, top_k=2)


def test_sizes_of_a_trace_replace_those_of_the_format(shared_data: Path) -> None:
    """A GGUF of Qwen3 has two sizes of experts; its products are the model's."""
    meta_file = shared_data / "traces" / "bigmoe-qwen" / "meta.json"
    meta = json.loads(meta_file.read_text(encoding="utf-8"))
    own = load("qwen3-30b-a3b").cost_shape("int4")
    shape = own.with_bytes(meta["expert_bytes"], meta["dense_bytes"])
    assert {2_654_208, 3_059_712} == {layer.expert_bytes for layer in shape.layers}
    assert own.layers[0].expert_flops_per_token == shape.layers[0].expert_flops_per_token
    assert own.head_bytes == shape.head_bytes
    dense = sum(layer.dense_bytes for layer in own.layers)
    assert own.resident_bytes - dense + sum(meta["dense_bytes"]) == shape.resident_bytes
    with pytest.raises(ValueError, match="expert_bytes has 1 layers and qwen3-30b-a3b int4 48"):
        own.with_bytes([1], [1])


def test_costs_of_another_model_keep_its_sizes_and_say_so() -> None:
    """A 12-layer trace on Mixtral's costs: 12 of its layers, experts as large as Mixtral's."""
    mixtral = load("mixtral-8x7b").cost_shape("bf16")
    stretched = mixtral.for_trace(layers=12, experts=32, top_k=4)
    assert stretched.name == "mixtral-8x7b bf16 costs on 12x32 top-4"
    assert (len(stretched.layers), stretched.experts, stretched.top_k) == (12, 32, 4)
    assert {336 * MIB} == {layer.expert_bytes for layer in stretched.layers}
    tables = mixtral.resident_bytes - sum(layer.dense_bytes for layer in mixtral.layers)
    assert tables + 12 * mixtral.layers[0].dense_bytes == stretched.resident_bytes
    assert mixtral == mixtral.for_trace(layers=32, experts=8, top_k=2)


def test_a_lowered_top_k_keeps_the_model() -> None:
    """Fewer experts per token is no other model: layers and bytes stay."""
    qwen = load("qwen3-30b-a3b").cost_shape()
    lowered = qwen.for_trace(layers=48, experts=128, top_k=6)
    assert qwen.layers == lowered.layers
    assert qwen.resident_bytes == lowered.resident_bytes
    assert lowered.name == "qwen3-30b-a3b bf16 with top-6"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_transformers_counts_the_same_parameters(name: str) -> None:
    """The model that transformers builds from the config has exactly as many parameters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = {key: value for key, value in CONFIGS[name].items() if key != "quantization_config"}
    family = config.pop("model_type")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(family, **config)
        )
    built = sum(parameter.numel() for parameter in model.parameters())
    assert built == load(name).parameters


def test_a_shape_is_frozen() -> None:
    """Nobody changes a model under a run."""
    shape: ModelShape = load("olmoe")
    with pytest.raises(ValueError, match="frozen"):
        shape.experts = 65
