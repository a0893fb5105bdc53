"""A model shape from any Hugging Face ``config.json``, without transformers.

Families spell the same thing differently; the tables below are all that is known about them. Where
a config leaves a choice to its family's code (biases, norms of queries and keys), the family is
told by ``model_type``; an unknown family gets none of these, which costs less than 0.1 % of the
bytes.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.hardware_profiles import ProfileError
from moesim.hardware_profiles.files import validated
from moesim.simulator.models.schema import ModelShape

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "experts_per_token")
_EXPERT_WIDTH = ("moe_intermediate_size", "expert_intermediate_size", "intermediate_size")
_SHARED_COUNT = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_SHARED_WIDTH = ("shared_expert_intermediate_size", "shared_intermediate_size")
_QK_NORM = {"olmoe": "all", "qwen3_moe": "head", "qwen3_next": "head"}
_QUANTISED = {"mxfp4": "mxfp4", "fp8": "fp8", "fbgemm_fp8": "fp8", "awq": "int4", "gptq": "int4"}


def from_hf_config(config: str | Path | Mapping[str, Any]) -> ModelShape:
    """Return the shape of the model that a ``config.json`` describes.

    Args:
        config: The file, the folder that holds it, or its content.

    Raises:
        ProfileError: If it is no JSON object, or lacks a key that the shape needs; the message
            names the key under all its spellings.

    >>> shape = from_hf_config(
    ...     {"model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 8,
    ...      "num_experts_per_tok": 2, "hidden_size": 64, "intermediate_size": 128,
    ...      "num_attention_heads": 4, "vocab_size": 100}
    ... )
    >>> shape.expert_parameters == 3 * 64 * 128
    True
    """
    where, content = _content(config)
    reader = _Reader(where, content)
    family = str(content.get("model_type", "unknown"))
    layers = reader.number("num_hidden_layers")
    moe_layers = _moe_layers(reader, layers)
    quantised = content.get("quantization_config") or {}
    usual = _QUANTISED.get(str(quantised.get("quant_method")), "bf16")
    tree = {
        "schema": 1,
        "name": _name(config, family, content),
        "hf_id": str(content.get("_name_or_path") or family),
        "formats": [usual] if usual == "bf16" else [usual, "bf16"],
        "decoder_layers": layers,
        "moe_layers": moe_layers,
        "experts": reader.number(*_EXPERTS),
        "top_k": reader.number(*_TOP_K),
        "hidden": reader.number("hidden_size"),
        "expert_width": reader.number(*_EXPERT_WIDTH),
        "dense_width": reader.number("intermediate_size") if len(moe_layers) < layers else None,
        "shared": _shared(reader, family),
        "expert_biases": family == "gpt_oss",
        "norm_biases": family == "phimoe",
        "head_bias": bool(content.get("lm_head_bias", False)),
        "vocab": reader.number("vocab_size"),
        "tied_embeddings": bool(content.get("tie_word_embeddings", False)),
        "attention": _attention(reader, family, layers),
    }
    return validated(tree, ModelShape, where)


class _Reader:
    """Reads numbers from a config under any of several names."""

    def __init__(self, where: str, content: Mapping[str, Any]) -> None:
        self.where = where
        self.content = content

    def find(self, *names: str) -> int | None:
        """Return the first of these keys that is there, or None."""
        for name in names:
            value = self.content.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ProfileError(
                    f"{self.where}: {name}: expected a whole number of 0 or more, got {value!r}; "
                    "where layers differ, describe the model in a YAML shape instead"
                )
            return value
        return None

    def number(self, *names: str) -> int:
        """Return the first of these keys that is there."""
        value = self.find(*names)
        if value is None:
            other = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
            raise ProfileError(
                f"{self.where}: missing key {names[0]!r}{other}; add it, or describe the model in "
                "a YAML shape like those that ship"
            )
        return value


def _content(config: str | Path | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return how messages call the config, and its content: the language model's part."""
    if isinstance(config, Mapping):
        where, content = "config", config
    else:
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        where = str(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"{where}: cannot be read: {error}") from error
        except json.JSONDecodeError as error:
            raise ProfileError(
                f"{where}: line {error.lineno}: not valid JSON: {error.msg}"
            ) from error
        if not isinstance(content, Mapping):
            raise ProfileError(f"{where}: expected a JSON object, got {type(content).__name__}")
    inner = content.get("text_config")
    return where, {**content, **inner} if isinstance(inner, Mapping) else content


def _name(config: object, family: str, content: Mapping[str, Any]) -> str:
    """Return a name in the spelling of ours: from the hub id, the folder, or the family."""
    given = str(content.get("_name_or_path") or "").rstrip("/").rpartition("/")[2]
    if not given and isinstance(config, str | Path):
        path = Path(config)
        given = (path if path.is_dir() else path.parent).resolve().name
    return re.sub(r"[^a-z0-9._-]+", "-", (given or family).lower()).strip("-._") or "model"


def _moe_layers(reader: _Reader, layers: int) -> list[int]:
    """Return which decoder layers have experts, by whichever rule the config states."""
    content = reader.content
    first = reader.find("first_k_dense_replace") or 0
    dense = set(content.get("mlp_only_layers") or ())
    step = reader.find("decoder_sparse_step") or 1
    frequency = content.get("moe_layer_freq", 1)
    listed = content.get("moe_layers")
    if isinstance(listed, list):
        return [int(layer) for layer in listed]
    if isinstance(frequency, list):
        return [layer for layer, moe in enumerate(frequency) if moe and layer >= first]
    found = [
        layer
        for layer in range(first, layers)
        if layer not in dense and (layer + 1) % step == 0 and layer % int(frequency) == 0
    ]
    if not found:
        raise ProfileError(
            f"{reader.where}: no layer has experts by first_k_dense_replace={first}, "
            f"mlp_only_layers={sorted(dense)}, decoder_sparse_step={step}; is this a MoE model?"
        )
    return found


def _shared(reader: _Reader, family: str) -> dict[str, Any] | None:
    width = reader.find(*_SHARED_WIDTH)
    count = reader.find(*_SHARED_COUNT)
    if width:
        return {"count": 1, "width": width, "gate": family in ("qwen2_moe", "qwen3_next")}
    if count:
        return {"count": count, "width": reader.number(*_EXPERT_WIDTH)}
    return None


def _attention(reader: _Reader, family: str, layers: int) -> dict[str, Any]:
    heads = reader.number("num_attention_heads")
    rank = reader.find("kv_lora_rank")
    if rank is not None:
        return {
            "kind": "mla",
            "heads": heads,
            "q_rank": reader.find("q_lora_rank"),
            "kv_rank": rank,
            "nope_dim": reader.number("qk_nope_head_dim"),
            "rope_dim": reader.number("qk_rope_head_dim"),
            "v_dim": reader.number("v_head_dim"),
        }
    content = reader.content
    biases = "all" if content.get("attention_bias") else "none"
    if family == "qwen2_moe" and content.get("qkv_bias", True):
        biases = "qkv"
    window, windowed = _window(reader, layers)
    return {
        "kind": "gqa",
        "heads": heads,
        "kv_heads": reader.find("num_key_value_heads") or heads,
        "head_dim": reader.find("head_dim") or reader.number("hidden_size") // heads,
        "biases": biases,
        "qk_norm": _QK_NORM.get(family, "none"),
        "sinks": family == "gpt_oss",
        "window_tokens": window,
        "windowed_layers": windowed,
    }


def _window(reader: _Reader, layers: int) -> tuple[int | None, list[int]]:
    """Return the attention window and the layers that have it; none if it spans every context."""
    content = reader.content
    window = reader.find("sliding_window")
    longest = reader.find("max_position_embeddings")
    if not window or content.get("use_sliding_window") is False:
        return None, []
    if longest is not None and window >= longest:
        return None, []
    kinds = content.get("layer_types") or ["sliding_attention"] * layers
    return window, [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]
