"""What a model's ``config.json`` says about its shape, where a dump of routes does not.

Serving engines return bare ids. A copy of the model's Hugging Face ``config.json`` beside the dump
tells the rest: names of the same quantity differ by family.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.traces.errors import blame
from moesim.traces.texts import integer, parse_json

CONFIG_NAME = "config.json"
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Shape of a model; None where the config does not say."""

    name: str | None = None
    decoder_layers: int | None = None
    experts: int | None = None
    top_k: int | None = None


def shape_beside(path: Path) -> ModelShape:
    """Read ``config.json`` in the folder of a dump; all None if there is none.

    Raises:
        TraceError: The file is not JSON, or a size in it is not a whole number.
    """
    config_path = (path if path.is_dir() else path.parent) / CONFIG_NAME
    if not config_path.is_file():
        return ModelShape()
    name = str(config_path)
    config = parse_json(name, config_path.read_bytes())
    inner = config.get("text_config", config)
    return ModelShape(
        name=config.get("_name_or_path") or config.get("model_type"),
        decoder_layers=_size(name, inner, ("num_hidden_layers",)),
        experts=_size(name, inner, EXPERTS),
        top_k=_size(name, inner, TOP_K),
    )


def _size(name: str, config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        if config.get(key) is not None:
            size = integer(name, key, config[key])
            if size < 1:
                blame(name, key, f"{size}", "a model has at least one")
            return size
    return None
