"""Experts for many tokens: rows sorted by expert, one matrix product for each run of rows.

For prefills and batches, bound by arithmetic: weights are read once for each tile of rows. A row's
bits do not depend on which rows share its tile. They differ from those of ``decode.py`` in the last
places, so which of the two is launched must depend on the number of tokens alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from moesim.backends.drivers.cuda.kernels.grouped_kernels import grouped_activate, grouped_down
from moesim.backends.drivers.cuda.kernels.places import down_places, gate_up_places
from moesim.backends.drivers.cuda.kernels.tuning import (
    GROUPED_DOWN,
    GROUPED_GATE_UP,
    GROUPED_TOKENS,
    Blocks,
    fitted,
)
from moesim.backends.formats import INT4
from moesim.backends.layouts import ExpertLayout

# T tokens, S = T x K rows in (token, rank) order, R rows of this launch sorted by expert,
# N tiles of rows, P partial rows, I intermediate dimension, D width, B bytes.


@dataclass(frozen=True, slots=True)
class Groups:
    """The rows of one launch, sorted by expert and cut into tiles; on the device.

    Attributes:
        order_R: Which row of S each one is (int32).
        tiles_N2: Where in ``order_R`` each tile begins and ends (int32).
        offsets_N: Where in the arena the tile's expert begins (int64).
    """

    order_R: Tensor
    tiles_N2: Tensor
    offsets_N: Tensor

    @classmethod
    def plan(
        cls,
        rows: Mapping[int, Sequence[int]],
        offsets_bytes: Mapping[int, int],
        device: torch.device,
        tile: int = GROUPED_TOKENS,
    ) -> Self:
        """Sort and cut.

        Args:
            rows: For each expert to compute, its rows of S, ascending.
            offsets_bytes: Where each of these experts begins in the arena.
            device: Where the kernels run.
            tile: Most rows of a tile.
        """
        order: list[int] = []
        tiles: list[tuple[int, int]] = []
        offsets: list[int] = []
        for expert, places in rows.items():
            end = len(order) + len(places)
            for begin in range(len(order), end, tile):
                tiles.append((begin, min(begin + tile, end)))
                offsets.append(offsets_bytes[expert])
            order.extend(places)
        return cls(
            torch.tensor(order, dtype=torch.int32, device=device),
            torch.tensor(tiles, dtype=torch.int32, device=device),
            torch.tensor(offsets, dtype=torch.int64, device=device),
        )


def grouped_experts(
    hidden_TD: Tensor,
    arena_B: Tensor,
    groups: Groups,
    layout: ExpertLayout,
    activation_RI: Tensor,
    rows_PSD: Tensor,
) -> None:
    """Compute the gated MLP of every row of a launch, by the contract of `decode_experts`.

    Args:
        hidden_TD: Inputs, contiguous, in the dtype of the products (bf16, fp16 or fp32).
        arena_B: All that may hold an expert, as uint8.
        groups: What to compute, and where the experts lie.
        layout: What lies there: a whole expert, or a part of one.
        activation_RI: Scratch in the dtype of the inputs.
        rows_PSD: Partial rows in float32; written at this layout's pieces and the launch's rows.
    """
    tokens, _ = hidden_TD.shape
    _, row_count, _ = rows_PSD.shape
    assert activation_RI.dtype == hidden_TD.dtype
    assert activation_RI.numel() >= groups.order_R.numel() * layout.intermediate
    assert rows_PSD.dtype == torch.float32
    first, second = fitted(GROUPED_GATE_UP, layout), fitted(GROUPED_DOWN, layout)
    common = {"INT4": layout.format == INT4, "BLOCK_R": GROUPED_TOKENS}
    tiles = groups.tiles_N2.shape[0]
    grouped_activate[(layout.intermediate // first.j, tiles)](
        hidden_TD,
        arena_B,
        groups.order_R,
        groups.tiles_N2,
        groups.offsets_N,
        activation_RI,
        TOP_K=row_count // tokens,
        **gate_up_places(layout),
        **common,
        **_cut(first),
    )
    grouped_down[(layout.width // second.d, tiles, layout.pieces)](
        activation_RI,
        arena_B,
        groups.order_R,
        groups.tiles_N2,
        groups.offsets_N,
        rows_PSD,
        row_count,
        **down_places(layout),
        **common,
        **_cut(second),
    )


def _cut(blocks: Blocks) -> dict[str, int]:
    return {
        "BLOCK_J": blocks.j,
        "BLOCK_D": blocks.d,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }
