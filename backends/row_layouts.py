"""Experts of a model laid out row by row, so that every part of one is a single stretch of bytes.

For each j of the intermediate dimension: gate row, up row, down column (``layouts.py``). A product
is made piece by piece, each piece's share is a row of its own, and those are added in ascending
order: a split expert gives the bits of the whole one, whichever part came first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from moesim.backends.formats import Format, format_of
from moesim.backends.layouts import ExpertLayout
from moesim.simulator.errors import CapabilityError
from moesim.simulator.terms import PIECES

# D width, P pieces of a part, R rows of a piece, B bytes.

ROWS = "rows"
"""What the weights of a part are called, beside transformers' names of matrices."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How the rows of one expert of a layer, or of a part of one, follow one another.

    Attributes:
        rows: The same, as kernels know it.
        dtype: Of the weights, or of what a product makes of them where they are codes with scales.
    """

    rows: ExpertLayout
    dtype: torch.dtype

    @classmethod
    def of(cls, experts: nn.Module, form: Format | None = None) -> Self:
        """Read the layout off the fused parameters of an experts module of transformers 5.

        Args:
            experts: The module.
            form: How its weights are written; by default as they are.

        Raises:
            CapabilityError: Its experts are not gate, up and down, each output in a row of its own.
        """
        module: Any = experts
        name = type(experts).__name__
        fused = dict(experts.named_parameters())
        is_plain = fused.keys() == {"gate_up_proj", "down_proj"} and not module.is_transposed
        if not is_plain or not module.is_concatenated:
            raise CapabilityError(
                f"{name}: experts with biases, or with gate and up otherwise than one after "
                "another, cannot be split; use a system that keeps them whole"
            )
        down = fused["down_proj"]
        width, intermediate = down.shape[1:]
        if intermediate % PIECES:
            raise CapabilityError(
                f"{name}: {intermediate} rows do not make {PIECES} equal pieces, so that the "
                "experts cannot be split; use a system that keeps them whole"
            )
        form = form or format_of(down.dtype)
        rows = ExpertLayout.make(
            "by-row", form, width=width, intermediate=intermediate, pieces=PIECES
        )
        return cls(rows, down.dtype)

    @property
    def blob_bytes(self) -> int:
        """What it takes."""
        return self.rows.blob_bytes

    @property
    def pieces(self) -> int:
        """How many pieces it has."""
        return self.rows.pieces

    @property
    def first_piece(self) -> int:
        """Which piece of the expert its first one is."""
        return self.rows.first_piece

    def pack(self, experts: nn.Module, index: int) -> Tensor:
        """Return the blob [B] of one expert of a module."""
        module: Any = experts
        gate_ID, up_ID = module.gate_up_proj.detach()[index].chunk(2)
        return self.rows.pack(gate_ID, up_ID, module.down_proj.detach()[index])

    def part(self, begin_bytes: int, end_bytes: int) -> Self:
        """Return the layout of a stretch of a blob.

        Raises:
            CapabilityError: It does not begin and end with pieces.
        """
        row_bytes = self.blob_bytes // self.rows.intermediate
        (begin, rest), (end, more) = divmod(begin_bytes, row_bytes), divmod(end_bytes, row_bytes)
        if rest or more:
            raise CapabilityError(
                f"bytes {begin_bytes} to {end_bytes} of an expert are no rows of {row_bytes} bytes"
            )
        return replace(self, rows=self.rows.part(begin, end))

    def views(self, arena_B: Tensor, offset_bytes: int) -> Mapping[str, Tensor]:
        """Return its rows [P, R, 3, D] where they begin at an offset."""
        rows = self.rows
        stretch_B = arena_B[offset_bytes : offset_bytes + rows.blob_bytes]
        if rows.format.scales is not None:
            gate_ID, up_ID, down_DI = rows.unpack(stretch_B)
            decoded = torch.stack([gate_ID, up_ID, down_DI.T], dim=1).to(self.dtype)
            return {ROWS: decoded.view(rows.pieces, rows.piece, 3, -1)}
        vectors = stretch_B.view(rows.format.codes).view(rows.pieces, rows.piece, 3, -1)
        return {ROWS: vectors[..., : rows.width]}
