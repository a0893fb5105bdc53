"""Which model executes and whose weights it has, as a user says it; light without torch.

``checkpoint`` loads weights. ``random`` makes them at the true shape, for routes that are forced
from a trace: times, bytes and decisions are those of the model, its text is not.
"""

from dataclasses import dataclass
from pathlib import Path

from moesim.hardware_profiles import ProfileError
from moesim.hardware_profiles.units import parse_bytes
from moesim.simulator import models
from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.models.schema import ModelShape

CHECKPOINT, RANDOM = "checkpoint", "random"
WEIGHTS = (CHECKPOINT, RANDOM)
FORMATS = ("fp8", "int4")
"""In which experts may be written by themselves; see ``formats.py``."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model and its weights.

    Attributes:
        model: A checkpoint's folder or hub id; with random weights also a shape's name or file.
        weights: One of ``WEIGHTS``.
        layers: How many MoE layers to keep, from the first; None keeps all. Random weights only.
        pinned_pool: Host memory that all experts share, such as ``8GiB``; None gives each its own.
        format: How experts are written, one of ``FORMATS``; None is as everything else.
    """

    model: str
    weights: str = CHECKPOINT
    layers: int | None = None
    pinned_pool: str | None = None
    format: str | None = None

    @property
    def is_random(self) -> bool:
        """Whether the weights are made up."""
        return self.weights == RANDOM

    @property
    def is_shape(self) -> bool:
        """Whether the model is a shape of ours: a name or a YAML file, and no folder."""
        is_named = self.model in models.names() or self.model.endswith((".yaml", ".yml"))
        return is_named and not Path(self.model).is_dir()

    @property
    def pool_bytes(self) -> int | None:
        """The shared host memory, in bytes."""
        return None if self.pinned_pool is None else parse_bytes(self.pinned_pool)

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            InputError: One line that names the option, its value and the way out.
        """
        if self.weights not in WEIGHTS:
            raise UnknownNameError("kind of weights", self.weights, WEIGHTS)
        if self.is_shape and not self.is_random:
            raise InputError(f"{self.model}: is a shape and has no weights; add --weights random")
        if self.format is not None and self.format not in FORMATS:
            raise UnknownNameError("format of experts", self.format, FORMATS)
        made_up = (self.layers, self.pinned_pool, self.format)
        if not self.is_random and made_up != (None, None, None):
            raise InputError("--layers, --pinned-pool and --format go with --weights random")
        try:
            usable = self.pool_bytes is None or self.pool_bytes > 0
        except ProfileError:
            usable = False
        if not usable:
            raise InputError(f"--pinned-pool {self.pinned_pool}: give a size such as 8GiB")


def cut(shape: ModelShape, layers: int | None) -> ModelShape:
    """Return a shape with only its first MoE layers; its name says how many.

    Raises:
        InputError: It has not so many.

    >>> cut(models.load("deepseek-v2-lite"), 4).decoder_layers
    5
    """
    if layers is None or layers == len(shape.moe_layers):
        return shape
    if not 0 < layers < len(shape.moe_layers):
        raise InputError(
            f"--layers {layers}: {shape.name} has {len(shape.moe_layers)} MoE layers; give 1 to "
            "as many"
        )
    decoder_layers = shape.moe_layers[layers - 1] + 1
    attention = shape.attention
    windowed = tuple(layer for layer in attention.windowed_layers if layer < decoder_layers)
    return shape.model_copy(
        update={
            "name": f"{shape.name}-{layers}-layers",
            "decoder_layers": decoder_layers,
            "moe_layers": shape.moe_layers[:layers],
            "attention": attention.model_copy(update={"windowed_layers": windowed}),
        }
    )
