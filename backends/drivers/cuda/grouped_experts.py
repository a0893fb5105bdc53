"""A prompt's experts: each run is one grouped product over the slots, whatever it computes.

Rows are sorted by expert on the device; the host says only which experts a run computes, where
they lie and how many rows each has, in page-locked memory that one block reads. So the host waits
for the router and for nothing else. Each row has a place of its own and the sum is in router order:
the result does not depend on which experts shared a run.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from moesim.backends.drivers.cuda.pinned import mapped, pinned_bytes
from moesim.backends.experts import LayerWork
from moesim.backends.layouts import ExpertLayout

# T tokens, K chosen, S = T x K rows in (token, rank) order, E experts of a layer, N tiles of rows,
# P partial rows, I intermediate dimension, D width.

WORDS = 3
"""Of a tile in the plan: expert, rows of it that come before, offset in the arena."""


class GroupedExperts:
    """One layer of many tokens after the other.

    Args:
        arena_B: All that may hold an expert.
        layout: Of every expert.
        experts: Of a layer.

    Attributes:
        rows_PSD: Products of the open layer; at one place as long as no layer has more rows.
    """

    def __init__(self, arena_B: Tensor, layout: ExpertLayout, experts: int) -> None:
        # Here, not above: they need triton, which has no wheel for every machine.
        from moesim.backends.drivers.cuda.kernels import (  # noqa: PLC0415
            grouped,
            merge,
            tiles,
            tuning,
        )

        self._grouped, self._merge, self._tiles = grouped, merge, tiles
        self._tile = tuning.GROUPED_TOKENS
        self._arena_B = arena_B
        self._layout = layout
        device = arena_B.device
        self._experts_E = torch.arange(experts + 1, device=device)
        self._work: LayerWork | None = None
        self._most = 0
        self._dtype: torch.dtype | None = None
        self._at = 0

    def open(self, work: LayerWork) -> None:
        """Sort a layer's rows; what was launched for the layer before has ended."""
        hidden_TD = work.hidden_TD.contiguous()
        rows = len(work.choices)
        if rows > self._most or hidden_TD.dtype != self._dtype:
            self._room(rows, len(self._experts_E) - 1, hidden_TD.dtype)
        sorted_S, order_S = torch.sort(work.ids_TK.reshape(-1), stable=True)
        self._starts_E = torch.searchsorted(sorted_S, self._experts_E.to(sorted_S.dtype))
        self._order_S = order_S.to(torch.int32)
        width, pieces = self._layout.width, self._layout.pieces
        self.rows_PSD = self._rows[: pieces * rows * width].view(pieces, rows, width)
        self._hidden_TD = hidden_TD
        self._work = work
        self._at = 0

    def run(
        self,
        experts: Sequence[int],
        tokens: Sequence[int],
        offsets_bytes: Sequence[int],
        part: ExpertLayout | None = None,
    ) -> None:
        """Launch the products of experts of the open layer.

        Args:
            experts: Counted within the layer.
            tokens: How many tokens chose each.
            offsets_bytes: Where each lies in the arena.
            part: The part of them that lies there; None is all.
        """
        tile = self._tile
        plan = [
            (expert, before, offset)
            for expert, count, offset in zip(experts, tokens, offsets_bytes, strict=True)
            for before in range(0, count, tile)
        ]
        begin, end = self._at, self._at + len(plan)
        self._at = end
        self._plan[WORDS * begin : WORDS * end] = list(chain.from_iterable(plan))
        groups = self._grouped.Groups(
            self._order_S, self._tiles_N2[begin:end], self._offsets_N[begin:end]
        )
        self._tiles.lay_out_tiles(
            self._seen_N3[begin:end], self._starts_E, tile, groups.tiles_N2, groups.offsets_N
        )
        self._grouped.grouped_experts(
            self._hidden_TD,
            self._arena_B,
            groups,
            part or self._layout,
            self._activation,
            self.rows_PSD,
        )

    def has(self, work: LayerWork) -> bool:
        """Return whether a layer is the open one."""
        return work is self._work

    def take(self, work: LayerWork, expert: int, rows_SD: Tensor) -> None:
        """Take in products of the open layer from elsewhere."""
        place = work.positions[expert]
        self.rows_PSD[1:, place] = 0
        self.rows_PSD[0, place] = rows_SD[place].float()

    def merge(self, work: LayerWork) -> Tensor:
        """Weight the open layer's rows, add them, close the layer."""
        out_TD = torch.empty_like(self._hidden_TD)
        self._merge.merge_rows(self.rows_PSD, work.gates_TK.contiguous(), out_TD)
        self._work = None
        return out_TD

    def _room(self, rows: int, experts: int, dtype: torch.dtype) -> None:
        """Make room for a layer of so many rows."""
        layout, device = self._layout, self._arena_B.device
        self._most, self._dtype = rows, dtype
        tiles = (rows // self._tile + experts) * most_parts(layout)
        plan_N = pinned_bytes(tiles * WORDS * 8).view(torch.long)
        self._plan = plan_N.numpy()
        self._seen_N3 = mapped(plan_N).view(-1, WORDS)
        self._tiles_N2 = torch.empty(tiles, 2, dtype=torch.int32, device=device)
        self._offsets_N = torch.empty(tiles, dtype=torch.long, device=device)
        self._rows = torch.empty(layout.pieces * rows * layout.width, device=device)
        self._activation = torch.empty(rows * layout.intermediate, dtype=dtype, device=device)


def most_parts(layout: ExpertLayout) -> int:
    """Return how many parts of an expert may be launched one after another."""
    return 1 if layout.pieces == 1 else 2


def rows_bytes(layout: ExpertLayout, rows: int) -> int:
    """Return the VRAM that so many rows of a layer take."""
    activation = max(2, layout.format.codes.itemsize) * layout.intermediate  # of 16 bits at least
    return rows * (4 * layout.pieces * layout.width + activation)
