"""Upcycling: a dense model becomes a MoE by copying its feed-forward part into every expert.

The gates of a token sum to 1, so the MoE begins as the very function that the dense model was; only
the router is new. Its experts part from each other while it goes on learning.
"""

from dataclasses import replace
from typing import Any

import torch
import transformers

from moesim.backends.models import Model
from moesim.backends.reference.architecture import Shape, make_config


def dense_shape(shape: Shape) -> Shape:
    """Return the shape with one expert in each layer, which is a dense model."""
    return replace(shape, experts=1, top_k=1)


@torch.no_grad()
def upcycle(dense: Model, shape: Shape) -> Model:
    """Return a MoE of the shape, on the same device, that computes what the dense model does."""
    make: Any = transformers.Qwen3MoeForCausalLM
    moe: Model = make(make_config(shape)).to(next(dense.parameters()).device)
    trained = dict(dense.named_parameters())
    for name, parameter in moe.named_parameters():
        if ".mlp.gate." not in name:
            parameter.copy_(trained[name].expand_as(parameter))
    return moe
