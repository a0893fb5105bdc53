"""Experts for few tokens: each (token, expert) product by itself, bound by memory bandwidth.

Two launches: gate and up into an activation, down into partial rows. A row whose offset is
negative is left alone, so one captured graph serves whatever has arrived. There are no atomics:
the order in which floats are added is fixed by the layout (``tuning.py``).
"""

from typing import Any

import torch
from torch import Tensor

from moesim.backends.drivers.cuda.kernels import decode_int4, decode_plain
from moesim.backends.drivers.cuda.kernels.places import down_places, gate_up_places
from moesim.backends.drivers.cuda.kernels.tuning import Blocks, down_blocks, gate_up_blocks
from moesim.backends.formats import INT4
from moesim.backends.layouts import ExpertLayout
from moesim.simulator.errors import CapabilityError

# S = T x K rows in (token, rank) order, P partial rows, I intermediate dimension, D width, B bytes.


def decode_experts(
    hidden_TD: Tensor,
    arena_B: Tensor,
    offsets_S: Tensor,
    layout: ExpertLayout,
    activation_SI: Tensor,
    rows_PSD: Tensor,
) -> None:
    """Compute the gated MLP of each row's expert: down(silu(gate x) * up x).

    Args:
        hidden_TD: Inputs, contiguous.
        arena_B: All that may hold an expert, as uint8.
        offsets_S: For each row, where its expert's bytes begin in the arena (int64, multiples of
            16), or a negative number for a row not to compute now.
        layout: What lies there: a whole expert, or a part of one.
        activation_SI: Scratch in float32, one for all launches of a stream.
        rows_PSD: Partial rows in float32, one for each piece of the whole expert. Written at this
            layout's pieces and the rows computed; all else stays.

    Raises:
        CapabilityError: An expert is too large for the kernels' addresses.
    """
    _check(hidden_TD, arena_B, offsets_S, layout, activation_SI, rows_PSD)
    activate_rows(hidden_TD, arena_B, offsets_S, layout, activation_SI)
    project_rows(activation_SI, arena_B, offsets_S, layout, rows_PSD)


def activate_rows(
    hidden_TD: Tensor,
    arena_B: Tensor,
    offsets_S: Tensor,
    layout: ExpertLayout,
    activation_SI: Tensor,
    blocks: Blocks | None = None,
) -> None:
    """Launch the first half of `decode_experts`: gate and up; ``blocks`` is for measuring."""
    blocks = blocks or gate_up_blocks(layout)
    rows = offsets_S.numel()
    kernel: Any = decode_int4.activate_int4 if layout.format == INT4 else decode_plain.activate
    kernel[(rows, layout.intermediate // blocks.j)](
        hidden_TD,
        arena_B,
        offsets_S,
        activation_SI,
        TOP_K=rows // hidden_TD.shape[0],
        **gate_up_places(layout),
        **_cut(blocks),
    )


def project_rows(
    activation_SI: Tensor,
    arena_B: Tensor,
    offsets_S: Tensor,
    layout: ExpertLayout,
    rows_PSD: Tensor,
    blocks: Blocks | None = None,
) -> None:
    """Launch the second half of `decode_experts`: down; ``blocks`` is for measuring."""
    blocks = blocks or down_blocks(layout)
    rows = offsets_S.numel()
    kernel: Any = decode_int4.down_int4 if layout.format == INT4 else decode_plain.down
    kernel[(rows, layout.width // blocks.d, layout.pieces)](
        activation_SI,
        arena_B,
        offsets_S,
        rows_PSD,
        rows,
        **down_places(layout),
        **_cut(blocks),
    )


def _cut(blocks: Blocks) -> dict[str, int]:
    return {
        "BLOCK_J": blocks.j,
        "BLOCK_D": blocks.d,
        "STAGES": blocks.stages,
        "num_warps": blocks.warps,
    }


def _check(
    hidden_TD: Tensor,
    arena_B: Tensor,
    offsets_S: Tensor,
    layout: ExpertLayout,
    activation_SI: Tensor,
    rows_PSD: Tensor,
) -> None:
    """Hold the caller to the contract."""
    tokens, width = hidden_TD.shape
    rows = offsets_S.numel()
    assert width == layout.width
    assert rows % tokens == 0
    assert arena_B.dtype == torch.uint8
    assert offsets_S.dtype == torch.int64
    assert activation_SI.dtype == rows_PSD.dtype == torch.float32
    assert activation_SI.numel() >= rows * layout.intermediate
    assert rows_PSD.shape[0] >= layout.first_piece + layout.pieces
    assert tuple(rows_PSD.shape[1:]) == (rows, width)
    if layout.blob_bytes >= 2**31:
        raise CapabilityError(f"an expert of {layout.blob_bytes} bytes; kernels address 2 GiB")
