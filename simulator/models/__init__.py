"""Shapes of public Mixture-of-Experts models, and of any other from its ``config.json``."""

from moesim.simulator.models.catalogue import ShapeMatch, load, match, names
from moesim.simulator.models.cost_shape import CostLayer, CostShape
from moesim.simulator.models.hf_config import from_hf_config
from moesim.simulator.models.schema import ModelShape

__all__ = [
    "CostLayer",
    "CostShape",
    "ModelShape",
    "ShapeMatch",
    "from_hf_config",
    "load",
    "match",
    "names",
]
