"""A model made ready to run offloaded: experts in the store, everything else on the device."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from moesim.backends import random_weights
from moesim.backends.budget import expert_budget_bytes, kv_bytes_per_token, runtime_bytes
from moesim.backends.formats import FORMATS
from moesim.backends.loading import Checkpoint, load_checkpoint
from moesim.backends.models import Model
from moesim.backends.served import parameter_bytes
from moesim.backends.sources import Source
from moesim.backends.store import ExpertStore
from moesim.hardware_profiles import ProfileError
from moesim.hardware_profiles.units import format_bytes
from moesim.simulator import models
from moesim.simulator.errors import OutOfMemoryError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.models.cost_shape import CostShape
from moesim.simulator.models.schema import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model whose experts were taken.

    Attributes:
        checkpoint: Its model lacks the experts and is on the device.
        store: Holds them.
        dense_bytes: Of all weights that are no experts.
        kv_bytes_per_token: Of the cache.
        model_shape: Its dimensions, where they are known and its weights have 16 bits, or fewer
            those of its experts.
    """

    checkpoint: Checkpoint
    store: ExpertStore
    dense_bytes: int
    kv_bytes_per_token: int
    model_shape: ModelShape | None = None

    @property
    def costs_of(self) -> CostShape:
        """What its costs are charged for."""
        store = self.store
        if self.model_shape is not None:
            # Where experts are codes with scales, the store knows what they take; products are
            # made of 16 bits all the same.
            shape = self.model_shape.cost_shape("bf16")
            layers = [
                replace(layer, expert_bytes=size)
                for layer, size in zip(shape.layers, store.sizes_L, strict=True)
            ]
            return replace(shape, layers=tuple(layers))
        return CostShape.from_bytes(
            store.sizes_L,
            [parameter_bytes(layer.decoder_layer) for layer in store.parts.layers],
            experts=store.parts.experts,
            top_k=store.parts.top_k,
            name=self.checkpoint.name,
            bits_per_weight=8 * store.layouts[0].dtype.itemsize,
        )

    def budget_bytes(
        self, spec: MemorySpec, longest: int, batch: int = 1, chunk: int | None = None
    ) -> int:
        """Return the room for experts that a user's figure gives.

        Args:
            spec: The figure.
            longest: Tokens of the longest request.
            batch: The most requests that run together; each may be the longest.
            chunk: The most prompt tokens of a step; None takes prompts whole.

        Raises:
            InputError: More than one figure was given, or one cannot be read.
            BudgetError: Nothing is left for experts.
        """
        per_token = self.kv_bytes_per_token
        return expert_budget_bytes(
            spec,
            self.store,
            dense_bytes=self.dense_bytes,
            kv_bytes=per_token * longest * batch,
            workspace_bytes=runtime_bytes(self.store, longest, per_token, batch, chunk),
        )


def open_model(
    source: Source,
    device: torch.device,
    before: Callable[[Checkpoint], None] | None = None,
    *,
    by_row: bool = False,
) -> Opened:
    """Load or make a model, move its experts into the store and the rest to the device.

    Args:
        source: Which model, whose weights.
        device: Where it will run; the store is page-locked for a GPU.
        before: Looks at a loaded model while it still has its experts, in host memory.
        by_row: Whether parts of experts are copied and run by themselves.

    Raises:
        ModelError, ProfileError, InputError: There is no such model, or it cannot be offloaded.
        OutOfMemoryError: It does not fit.
    """
    pin = device.type != "cpu"
    shape = None
    if source.is_random:
        dtype = torch.bfloat16 if pin else torch.float32
        checkpoint, shape = random_weights.build(source, dtype)
        store = ExpertStore.random(
            checkpoint.model,
            pin=pin,
            pool_bytes=source.pool_bytes,
            by_row=by_row,
            form=None if source.format is None else FORMATS[source.format],
        )
        _on_device(checkpoint.model, device, lambda: random_weights.fill(checkpoint.model, device))
    else:
        checkpoint = load_checkpoint(source.model, torch.device("cpu"), runs_on=device)
        if before is not None:
            before(checkpoint)
        store = ExpertStore.take_from(checkpoint.model, pin=pin, by_row=by_row)
        _on_device(checkpoint.model, device, lambda: checkpoint.model.to(device))
        shape = _shape_of(checkpoint)
    is_as_written = source.format is not None
    if (
        shape is not None
        and not is_as_written
        and set(store.sizes_L) != {shape.expert_bytes("bf16")}
    ):
        shape = None
    return Opened(
        checkpoint=checkpoint,
        store=store,
        dense_bytes=parameter_bytes(checkpoint.model),
        kv_bytes_per_token=kv_bytes_per_token(checkpoint.model),
        model_shape=shape,
    )


def _shape_of(checkpoint: Checkpoint) -> ModelShape | None:
    named = {"_name_or_path": checkpoint.name} | checkpoint.model.config.to_dict()
    try:
        return models.from_hf_config(named)
    except ProfileError:
        return None


def _on_device(model: Model, device: torch.device, bring: Callable[[], object]) -> None:
    try:
        bring()
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(
            f"{format_bytes(parameter_bytes(model))} of weights beside the experts do not fit into"
            f" the memory of {device}; take a smaller model or another GPU"
        ) from None
