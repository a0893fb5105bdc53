"""Where expert weights lie: one contiguous blob per expert in host memory, slots in an arena.

One blob is one copy. What is in a blob is the layout's business: matrix by matrix
(``blob_layouts.py``) or row by row (``row_layouts.py``).
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from moesim.backends.blob_layouts import BlobLayout
from moesim.backends.drivers.cuda.pinned import pinned_bytes
from moesim.backends.formats import Format
from moesim.backends.models import Model, MoeLayer, MoeParts, find_moe
from moesim.backends.row_layouts import RowLayout
from moesim.simulator.errors import CapabilityError

# E experts of a layer, B bytes of a blob.

RANDOM_BLOCK_BYTES = 2**27
"""Of float32: random experts repeat themselves after it, at other places of each expert."""
RANDOM_EXPERTS = 4
"""Those with scales repeat themselves after so many, whole."""
RANDOM_SCALE = 0.02

Layout = BlobLayout | RowLayout
Layouts = tuple[Layout, ...]


class ExpertStore:
    """The experts of one model, in host memory.

    Attributes:
        parts: The MoE blocks that they were taken from.
        layouts: How a blob is laid out, by MoE layer; row by row if experts may be split.
        by_row: Whether it is row by row; see ``relaying.py``.
        is_random: Whether the weights are made up.
        pin: Whether the blobs are page-locked.
        ways: The layouts matrix by matrix (False) and row by row (True), or why there are none.
        layers_EB: The blobs of each layer; layers may share them.
    """

    def __init__(
        self,
        parts: MoeParts,
        ways: Mapping[bool, Layouts | CapabilityError],
        layers_EB: list[Tensor],
        *,
        by_row: bool,
        pin: bool,
        is_random: bool,
    ) -> None:
        self.parts = parts
        self.layouts = chosen(ways, by_row=by_row)
        self.by_row = by_row
        self.pin = pin
        self.is_random = is_random
        self.ways = ways
        self.layers_EB = layers_EB

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
        ways = _ways(parts)
        layers_EB = [
            _repack(layer, layout, parts.experts, pin=pin)
            for layer, layout in zip(parts.layers, chosen(ways, by_row=by_row), strict=True)
        ]
        return cls(parts, ways, layers_EB, by_row=by_row, pin=pin, is_random=False)

    @classmethod
    def random(
        cls,
        model: Model,
        *,
        pin: bool = False,
        pool_bytes: int | None = None,
        by_row: bool = False,
        form: Format | None = None,
    ) -> Self:
        """Make a store of random weights for a model whose own experts take no memory.

        Args:
            model: Built on the meta device; it loses its experts.
            pin: Whether the blobs are page-locked.
            pool_bytes: Layers share as many layers' blobs as fit, at least one; None shares none.
            by_row: Whether parts of experts are copied and run by themselves.
            form: How experts are written; None is as the model has them.

        Raises:
            ModelError: The model has no MoE layer of a kind that can be offloaded.
            CapabilityError: Its experts cannot be split, or not be written so.
            OutOfMemoryError: Host memory does not do for the store.
        """
        parts = find_moe(model)
        ways = _ways(parts, form)
        layouts = chosen(ways, by_row=by_row)
        block_B = _random_block(layouts[0])
        made: dict[Layout, list[Tensor]] = {}
        layers_EB: list[Tensor] = []
        for layer, layout in zip(parts.layers, layouts, strict=True):
            nbytes = parts.experts * layout.blob_bytes
            rooms = made.setdefault(layout, [])
            if pool_bytes is None or not rooms or (len(rooms) + 1) * nbytes <= pool_bytes:
                room_B = make_room(nbytes, pin=pin)
                for begin in range(0, nbytes, len(block_B)):
                    piece_B = room_B[begin : begin + len(block_B)]
                    piece_B.copy_(block_B[: len(piece_B)])
                rooms.append(room_B.view(parts.experts, layout.blob_bytes))
            layers_EB.append(rooms[len(layers_EB) % len(rooms)])
            for name in [*dict(layer.experts.named_parameters())]:
                delattr(layer.experts, name)
        return cls(parts, ways, layers_EB, by_row=by_row, pin=pin, is_random=True)

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
        rooms = {blobs_EB.data_ptr(): blobs_EB.numel() for blobs_EB in self.layers_EB}
        return sum(rooms.values())

    def blob(self, expert: int) -> Tensor:
        """Return the bytes of one expert, by its number over all layers."""
        layer, index = divmod(expert, self.parts.experts)
        return self.layers_EB[layer][index]

    def matrices(self, expert: int) -> Mapping[str, Tensor]:
        """Return the matrices of one expert where they lie in host memory."""
        return self.layouts[expert // self.parts.experts].views(self.blob(expert), 0)


def _ways(parts: MoeParts, form: Format | None = None) -> dict[bool, Layouts | CapabilityError]:
    """Return the layouts matrix by matrix, and those row by row or why there are none.

    Codes with scales lie row by row in any case: in pieces, for which the kernels are tuned.
    """
    if form is not None:
        pieces = tuple(RowLayout.of(layer.experts, form) for layer in parts.layers)
        return {False: pieces, True: pieces}
    by_matrix = tuple(BlobLayout.of(layer.experts) for layer in parts.layers)
    try:
        by_row = tuple(RowLayout.of(layer.experts) for layer in parts.layers)
    except CapabilityError as error:
        return {False: by_matrix, True: error}
    return {False: by_matrix, True: by_row}


def chosen(ways: Mapping[bool, Layouts | CapabilityError], *, by_row: bool) -> Layouts:
    """Return the layouts of one way.

    Raises:
        CapabilityError: The experts cannot be split.
    """
    found = ways[by_row]
    if isinstance(found, CapabilityError):
        raise found
    return found


def make_arena(nbytes: int, device: torch.device) -> Tensor:
    """Return that many bytes, every page of them touched."""
    return torch.zeros(nbytes, dtype=torch.uint8, device=device)


def _repack(layer: MoeLayer, layout: Layout, experts: int, *, pin: bool) -> Tensor:
    """Copy one layer's experts into blobs and take them off the module."""
    module: Any = layer.experts
    blobs_EB = make_room(experts * layout.blob_bytes, pin=pin).view(experts, layout.blob_bytes)
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


def make_room(nbytes: int, *, pin: bool) -> Tensor:
    """Return so many bytes of host memory, page-locked or not, all zero."""
    return pinned_bytes(nbytes) if pin else torch.zeros(nbytes, dtype=torch.uint8)


def _random_block(layout: Layout) -> Tensor:
    """Return the bytes that random experts are cut from: whole experts where they have scales."""
    random = torch.Generator().manual_seed(0)
    if isinstance(layout, RowLayout) and layout.rows.format.scales is not None:
        rows = layout.rows
        made = [
            torch.empty(3, rows.intermediate, rows.width).normal_(
                0.0, RANDOM_SCALE, generator=random
            )
            for _ in range(RANDOM_EXPERTS)
        ]
        return torch.cat([rows.pack(gate_ID, up_ID, down_ID.T) for gate_ID, up_ID, down_ID in made])
    numbers = torch.empty(RANDOM_BLOCK_BYTES // 4).normal_(0.0, RANDOM_SCALE, generator=random)
    return numbers.to(layout.dtype).view(torch.uint8)
