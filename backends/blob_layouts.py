"""Experts of a model laid out matrix by matrix, as transformers stores them; a blob is one copy.

A kernel finds a matrix by the blob's byte offset in its arena and the matrix' own in the blob.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Self

import torch
from torch import Tensor, nn

from moesim.backends.models import ModelError
from moesim.simulator.errors import CapabilityError

# B bytes of a blob.

ALIGNMENT_BYTES = 128
"""Blobs and matrices begin at multiples of this, so that kernels see the same alignment anywhere.

The experts of every model we know of are multiples of it already: nothing is padded.
"""

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


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
