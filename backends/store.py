"""Where expert weights lie: one contiguous blob per expert in host memory, slots in an arena.

One blob is one copy. In a blob the matrices stand one after another, as transformers stores them;
a kernel finds them by the blob's byte offset in its arena and the matrix' own offset in the blob.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn

from moesim.backends.drivers.cuda.pinned import pinned_bytes
from moesim.backends.models import Model, ModelError, MoeLayer, MoeParts, find_moe
from moesim.backends.row_layouts import RowLayout
from moesim.simulator.errors import CapabilityError

# E experts of a layer, B bytes of a blob.

ALIGNMENT_BYTES = 128
"""Blobs and matrices begin at multiples of this, so that kernels see the same alignment anywhere.

The experts of every model we know of are multiples of it already: nothing is padded.
"""

RANDOM_BLOCK_BYTES = 2**27
"""Of float32: random experts repeat themselves after it, at other places of each expert."""
RANDOM_SCALE = 0.02

MATRICES = ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias")


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of an expert, and where it begins in the expert's blob."""

    name: str
    begin_bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end_bytes(self) -> int:
        """Where it ends in the blob."""
        return self.begin_bytes + prod(self.shape) * self.dtype.itemsize

    def view(self, arena_B: Tensor, offset_bytes: int) -> Tensor:
        """Return the matrix of the blob that begins at an offset of an arena of bytes."""
        begin, end = offset_bytes + self.begin_bytes, offset_bytes + self.end_bytes
        return arena_B[begin:end].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class BlobLayout:
    """How the matrices of one expert of a layer follow one another, matrix by matrix."""

    matrices: tuple[Matrix, ...]
    blob_bytes: int

    @classmethod
    def of(cls, experts: nn.Module) -> Self:
        """Read the layout off the fused parameters of an experts module of transformers 5.

        Raises:
            ModelError: The module keeps its weights otherwise, or does more than gate, up, down.
        """
        kind = type(experts).__name__
        if not getattr(experts, "has_gate", False) or getattr(
            experts, "has_post_expert_norm", False
        ):
            raise ModelError(
                f"{kind}: the experts are not gate, up and down alone; offloading knows no other"
            )
        fused = dict(experts.named_parameters())
        unknown = sorted(fused.keys() - set(MATRICES))
        if unknown or not {"gate_up_proj", "down_proj"} <= fused.keys():
            raise ModelError(
                f"{kind}: expected fused parameters {', '.join(MATRICES)}, found "
                f"{', '.join(sorted(fused)) or 'none'}; give a model whose experts are in place"
            )
        matrices, end = [], 0
        for name in MATRICES:
            if name in fused:
                weights = fused[name]
                matrix = Matrix(name, end, tuple(weights.shape[1:]), weights.dtype)
                matrices.append(matrix)
                end = _aligned(matrix.end_bytes)
        return cls(tuple(matrices), end)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.matrices[0].dtype

    @property
    def pieces(self) -> int:
        """Rows of a product: one."""
        return 1

    @property
    def first_piece(self) -> int:
        """Which piece of the expert its first one is."""
        return 0

    def part(self, begin_bytes: int, end_bytes: int) -> Self:
        """Return itself: the layout of the only part there is.

        Raises:
            CapabilityError: Another part is meant.
        """
        if (begin_bytes, end_bytes) != (0, self.blob_bytes):
            raise CapabilityError(
                f"bytes {begin_bytes} to {end_bytes} of an expert laid out matrix by matrix are no "
                "part of it; open the model for a system that splits experts"
            )
        return self

    def views(self, arena_B: Tensor, offset_bytes: int) -> Mapping[str, Tensor]:
        """Return every matrix of the blob at an offset, by its name in transformers."""
        return {matrix.name: matrix.view(arena_B, offset_bytes) for matrix in self.matrices}


Layout = BlobLayout | RowLayout
Layouts = tuple[Layout, ...]


class ExpertStore:
    """The experts of one model, in host memory.

    Attributes:
        parts: The MoE blocks that they were taken from.
        layouts: How a blob is laid out, by MoE layer; row by row if experts may be split.
    """

    def __init__(self, parts: MoeParts, layouts: Layouts, layers_EB: list[Tensor]) -> None:
        self.parts = parts
        self.layouts = layouts
        self._layers_EB = layers_EB

    @classmethod
    def take_from(cls, model: Model, *, pin: bool = False, by_row: bool = False) -> Self:
        """Move a model's experts into a store, layer by layer; the model keeps none of them.

        Args:
            model: A transformers causal model with fused experts.
            pin: Whether the blobs are page-locked, as copies to a GPU need them.
            by_row: Whether parts of experts are copied and run by themselves.

        Raises:
            ModelError: The model has no MoE layer of a kind that can be offloaded.
            CapabilityError: Its experts cannot be split.
            OutOfMemoryError: Host memory does not do for the store.
        """
        parts = find_moe(model)
        layouts = _layouts(parts, by_row=by_row)
        layers_EB = [
            _repack(layer, layout, parts.experts, pin=pin)
            for layer, layout in zip(parts.layers, layouts, strict=True)
        ]
        return cls(parts, layouts, layers_EB)

    @classmethod
    def random(
        cls,
        model: Model,
        *,
        pin: bool = False,
        pool_bytes: int | None = None,
        by_row: bool = False,
    ) -> Self:
        """Make a store of random weights for a model whose own experts take no memory.

        Args:
            model: Built on the meta device; it loses its experts.
            pin: Whether the blobs are page-locked.
            pool_bytes: Layers share as many layers' blobs as fit, at least one; None shares none.
            by_row: Whether parts of experts are copied and run by themselves.

        Raises:
            ModelError: The model has no MoE layer of a kind that can be offloaded.
            CapabilityError: Its experts cannot be split.
            OutOfMemoryError: Host memory does not do for the store.
        """
        parts = find_moe(model)
        layouts = _layouts(parts, by_row=by_row)
        block_B = _random_block(layouts[0].dtype)
        made: dict[Layout, list[Tensor]] = {}
        layers_EB: list[Tensor] = []
        for layer, layout in zip(parts.layers, layouts, strict=True):
            nbytes = parts.experts * layout.blob_bytes
            rooms = made.setdefault(layout, [])
            if pool_bytes is None or not rooms or (len(rooms) + 1) * nbytes <= pool_bytes:
                room_B = _room(nbytes, pin=pin)
                for begin in range(0, nbytes, len(block_B)):
                    piece_B = room_B[begin : begin + len(block_B)]
                    piece_B.copy_(block_B[: len(piece_B)])
                rooms.append(room_B.view(parts.experts, layout.blob_bytes))
            layers_EB.append(rooms[len(layers_EB) % len(rooms)])
            for name in [*dict(layer.experts.named_parameters())]:
                delattr(layer.experts, name)
        return cls(parts, layouts, layers_EB)

    @property
    def sizes_L(self) -> tuple[int, ...]:
        """Bytes of one expert of each layer."""
        return tuple(layout.blob_bytes for layout in self.layouts)

    @property
    def pieces(self) -> int:
        """Rows that a product has: more than one where experts may be split."""
        return self.layouts[0].pieces

    @property
    def total_bytes(self) -> int:
        """Bytes of all experts."""
        return self.parts.experts * sum(self.sizes_L)

    @property
    def held_bytes(self) -> int:
        """Bytes of host memory; fewer than of all experts where layers share it."""
        rooms = {blobs_EB.data_ptr(): blobs_EB.numel() for blobs_EB in self._layers_EB}
        return sum(rooms.values())

    def blob(self, expert: int) -> Tensor:
        """Return the bytes of one expert, by its number over all layers."""
        layer, index = divmod(expert, self.parts.experts)
        return self._layers_EB[layer][index]

    def matrices(self, expert: int) -> Mapping[str, Tensor]:
        """Return the matrices of one expert where they lie in host memory."""
        return self.layouts[expert // self.parts.experts].views(self.blob(expert), 0)


def _layouts(parts: MoeParts, *, by_row: bool) -> Layouts:
    if by_row:
        return tuple(RowLayout.of(layer.experts) for layer in parts.layers)
    return tuple(BlobLayout.of(layer.experts) for layer in parts.layers)


def make_arena(nbytes: int, device: torch.device) -> Tensor:
    """Return that many bytes, every page of them touched."""
    return torch.zeros(nbytes, dtype=torch.uint8, device=device)


def _repack(layer: MoeLayer, layout: Layout, experts: int, *, pin: bool) -> Tensor:
    """Copy one layer's experts into blobs and take them off the module."""
    module: Any = layer.experts
    blobs_EB = _room(experts * layout.blob_bytes, pin=pin).view(experts, layout.blob_bytes)
    if isinstance(layout, RowLayout):
        for index in range(experts):
            blobs_EB[index].copy_(layout.pack(module, index))
        for name in [*dict(module.named_parameters())]:
            delattr(module, name)
        return blobs_EB
    for matrix in layout.matrices:
        fused = getattr(module, matrix.name).detach()
        for index in range(experts):
            matrix.view(blobs_EB[index], 0).copy_(fused[index])
        delattr(module, matrix.name)
    return blobs_EB


def _room(nbytes: int, *, pin: bool) -> Tensor:
    return pinned_bytes(nbytes) if pin else torch.zeros(nbytes, dtype=torch.uint8)


def _random_block(dtype: torch.dtype) -> Tensor:
    """Return the bytes that random experts are cut from."""
    random = torch.Generator().manual_seed(0)
    numbers = torch.empty(RANDOM_BLOCK_BYTES // 4).normal_(0.0, RANDOM_SCALE, generator=random)
    return numbers.to(dtype).view(torch.uint8)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
