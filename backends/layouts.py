"""Where the vectors of an expert lie in its blob, matrix by matrix or row by row.

``by-matrix`` is how transformers stores experts: gate and up [2I, D], then down [D, I].
``by-row`` puts, for each j of the intermediate dimension I, gate row, up row and down column one
after another with their scales: any range of j is one stretch of bytes, so every split and chunk
of an expert is one copy.

A product over I is cut into pieces of equal length; each piece's share is a partial row, and
partial rows are added in ascending order. So an expert that arrives in parts, whatever their
order, gives the same bits as one that is there as a whole.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from moesim.backends.formats import Format
from moesim.simulator.errors import CapabilityError

# I intermediate dimension, D width, C codes and G scales of a vector, B bytes of a blob.

LayoutName = Literal["by-matrix", "by-row"]

ALIGNMENT_BYTES = 16
"""What every vector begins at a multiple of: the widest load of one GPU thread."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one vector per j lies: vector j begins at ``begin + j * step`` of the blob.

    Attributes:
        step_bytes: From one j to the next.
        item_bytes: From one code of a vector to the next.
        scales_begin_bytes: Where the scales of j = 0 begin; 0 if the format has none.
        scales_step_bytes: From the scales of one j to those of the next.
    """

    begin_bytes: int
    step_bytes: int
    item_bytes: int
    scales_begin_bytes: int = 0
    scales_step_bytes: int = 0

    def after(self, rows: int) -> "Place":
        """Return the place of the vectors from row ``rows`` on."""
        return replace(
            self,
            begin_bytes=self.begin_bytes + rows * self.step_bytes,
            scales_begin_bytes=self.scales_begin_bytes + rows * self.scales_step_bytes,
        )


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """The bytes of one expert, or of a part of one.

    Attributes:
        intermediate: How many j it holds.
        piece: How many j each partial row adds up.
        first_piece: Which partial row of the expert its first one is.
        blob_bytes: What it takes in an arena; a multiple of 16.
    """

    name: LayoutName
    format: Format
    width: int
    intermediate: int
    gate: Place
    up: Place
    down: Place
    blob_bytes: int
    piece: int
    first_piece: int = 0

    @classmethod
    def make(
        cls, name: LayoutName, form: Format, *, width: int, intermediate: int, pieces: int = 1
    ) -> Self:
        """Lay out an expert.

        Args:
            name: ``by-matrix`` or ``by-row``.
            form: How its vectors are written.
            width: The model's.
            intermediate: The experts'.
            pieces: How many equal pieces the intermediate dimension is cut into.

        Raises:
            CapabilityError: No kernel reads such an expert.
        """
        if pieces < 1 or intermediate % pieces:
            raise CapabilityError(
                f"layout {name}: {pieces} equal pieces of {intermediate} rows do not exist"
            )
        places = _by_row if name == "by-row" else _by_matrix
        gate, up, down, blob_bytes = places(form, width, intermediate)
        piece = intermediate // pieces
        return cls(name, form, width, intermediate, gate, up, down, blob_bytes, piece)

    @property
    def pieces(self) -> int:
        """How many partial rows it adds."""
        return self.intermediate // self.piece

    def within(self, begin: int, end: int) -> Self:
        """Return where rows [begin, end) lie in a blob of this layout, which stays whole."""
        self._check(begin, end)
        return replace(
            self,
            intermediate=end - begin,
            gate=self.gate.after(begin),
            up=self.up.after(begin),
            down=self.down.after(begin),
            first_piece=self.first_piece + begin // self.piece,
        )

    def part(self, begin: int, end: int) -> Self:
        """Return the layout of rows [begin, end) as a blob of its own.

        By row that blob is bytes [begin, end) of the whole, times ``blob_bytes / intermediate``.
        """
        self._check(begin, end)
        rows = end - begin
        alone = self.make(
            self.name, self.format, width=self.width, intermediate=rows, pieces=rows // self.piece
        )
        return replace(alone, first_piece=self.first_piece + begin // self.piece)

    def pack(self, gate_ID: Tensor, up_ID: Tensor, down_DI: Tensor) -> Tensor:
        """Return the blob [B] of an expert's weights, where they are."""
        blob_B = torch.zeros(self.blob_bytes, dtype=torch.uint8, device=gate_ID.device)
        vectors = (gate_ID, up_ID, down_DI.T)
        for place, weights_ID in zip((self.gate, self.up, self.down), vectors, strict=True):
            codes_IC, scales_IG = self.format.encode(weights_ID)
            self._codes(blob_B, place).copy_(codes_IC)
            if scales_IG is not None:
                self._scales(blob_B, place).copy_(scales_IG)
        return blob_B

    def unpack(self, blob_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gate [I, D], up [I, D] and down [D, I] as the kernels read them, in float32."""

        def read(place: Place) -> Tensor:
            scales_IG = None if self.format.scales is None else self._scales(blob_B, place)
            return self.format.decode(self._codes(blob_B, place), scales_IG)

        return read(self.gate), read(self.up), read(self.down).T

    def _codes(self, blob_B: Tensor, place: Place) -> Tensor:
        size = self.format.codes.itemsize
        from_B = blob_B[place.begin_bytes :]
        return from_B.view(self.format.codes).as_strided(
            (self.intermediate, self.format.codes_of(self.width)),
            (place.step_bytes // size, place.item_bytes // size),
        )

    def _scales(self, blob_B: Tensor, place: Place) -> Tensor:
        assert self.format.scales is not None
        size = self.format.scales.itemsize
        from_B = blob_B[place.scales_begin_bytes :]
        return from_B.view(self.format.scales).as_strided(
            (self.intermediate, self.format.scales_of(self.width)),
            (place.scales_step_bytes // size, 1),
        )

    def _check(self, begin: int, end: int) -> None:
        if not 0 <= begin < end <= self.intermediate or begin % self.piece or end % self.piece:
            raise CapabilityError(
                f"layout {self.name}: no part [{begin}, {end}) of {self.intermediate} rows in "
                f"pieces of {self.piece}; begin and end parts at multiples of {self.piece}"
            )


def _by_row(form: Format, width: int, intermediate: int) -> tuple[Place, Place, Place, int]:
    """Return the places of gate, up and down, and the size of the blob."""
    vector = _aligned(form.codes_of(width) * form.codes.itemsize)
    scales = 0 if form.scales is None else form.scales_of(width) * form.scales.itemsize
    step = _aligned(3 * (vector + scales))
    gate, up, down = (
        Place(at * vector, step, form.codes.itemsize, 3 * vector + at * scales, step)
        for at in range(3)
    )
    return gate, up, down, intermediate * step


def _by_matrix(form: Format, width: int, intermediate: int) -> tuple[Place, Place, Place, int]:
    """Return the places of gate, up and down, and the size of the blob."""
    if form.code_bits % 8:
        raise CapabilityError(f"layout by-matrix: no kernel reads {form.name} so; use by-row")
    item = form.codes.itemsize
    vector, matrix = width * item, width * intermediate * item
    if vector % ALIGNMENT_BYTES or intermediate * item % ALIGNMENT_BYTES:
        raise CapabilityError(
            f"layout by-matrix: rows of {width} and {intermediate} weights in {form.name} are not "
            f"multiples of {ALIGNMENT_BYTES} bytes; use by-row"
        )
    step = 0 if form.scales is None else form.scales.itemsize
    gate, up = (
        Place(at * matrix, vector, item, 3 * matrix + at * intermediate * step, step)
        for at in range(2)
    )
    down = Place(2 * matrix, item, intermediate * item, 3 * matrix + 2 * intermediate * step, step)
    return gate, up, down, _aligned(3 * (matrix + intermediate * step))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
