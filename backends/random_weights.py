"""A model of true dimensions whose weights are made up; its experts never take VRAM.

It is built without memory, its experts go straight into the store, and only what is no expert is
made where the model runs. Weights are normal random numbers of the scale that training begins with:
products of zeros run faster than real ones.
"""

from typing import Any

import torch
import transformers

from moesim.backends.loading import Checkpoint, load_config
from moesim.backends.models import Model, find_moe
from moesim.backends.shapes import config_of
from moesim.backends.sources import Source, cut
from moesim.simulator import models
from moesim.simulator.models.schema import ModelShape

SEED = 0


def build(source: Source, dtype: torch.dtype) -> tuple[Checkpoint, ModelShape]:
    """Return a model without memory, and its shape.

    Args:
        source: A shape, or what has a configuration of transformers.
        dtype: Of all its weights.

    Raises:
        ModelError, ProfileError, InputError: There is no such model, or it has too few layers.
    """
    if source.is_shape:
        shape = cut(models.load(source.model), source.layers)
        config = config_of(shape)
    else:
        config = load_config(source.model)
        named = {"_name_or_path": source.model} | config.to_dict()
        shape = cut(models.from_hf_config(named), source.layers)
        config.num_hidden_layers = shape.decoder_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: shape.decoder_layers]
    make: Any = transformers.AutoModelForCausalLM  # transformers leaves it without types
    with torch.device("meta"):
        model: Model = make.from_config(config, dtype=dtype)
    written = "" if source.format is None else f", experts in {source.format}"
    checkpoint = Checkpoint(
        model=model.eval(),
        tokenizer=None,
        name=f"{shape.name} random weights{written}",
        revision=None,
        bytes_per_parameter=dtype.itemsize,
        tokenizer_hash=None,
    )
    return checkpoint, shape


@torch.inference_mode()
def fill(model: Model, device: torch.device) -> None:
    """Make what is left of a model once its experts were taken, by its family's own rules."""
    model.to_empty(device=device)
    for layer in find_moe(model).layers:
        experts: Any = layer.experts
        experts._is_hf_initialized = True  # noqa: SLF001  transformers' mark: leave it alone
    torch.manual_seed(SEED)
    model.initialize_weights()
    model.tie_weights()
