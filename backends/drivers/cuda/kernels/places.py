"""Where an expert's weights lie, as the constants that every kernel is compiled for."""

from typing import Any

import torch
import triton.language as tl

from moesim.backends.layouts import ALIGNMENT_BYTES, ExpertLayout

ELEMENTS = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.uint8: tl.uint8,
}


def gate_up_places(layout: ExpertLayout) -> dict[str, Any]:
    """Return the constants of a kernel that reads gate and up."""
    return _of_both(layout) | {
        "GATE": layout.gate.begin_bytes,
        "UP": layout.up.begin_bytes,
        "STEP": layout.gate.step_bytes,
        "GATE_SCALES": layout.gate.scales_begin_bytes,
        "UP_SCALES": layout.up.scales_begin_bytes,
        "DOWN_SCALES": layout.down.scales_begin_bytes,
        "SCALES_STEP": layout.gate.scales_step_bytes,
        "SCALED": layout.format.scales is not None,
    }


def down_places(layout: ExpertLayout) -> dict[str, Any]:
    """Return the constants of a kernel that reads down."""
    size = layout.format.codes.itemsize
    return _of_both(layout) | {
        "PIECE": layout.piece,
        "FIRST_PIECE": layout.first_piece,
        "DOWN": layout.down.begin_bytes,
        "J_STEP": layout.down.step_bytes // size,
        "D_STEP": layout.down.item_bytes // size,
        "SCALES": layout.down.scales_begin_bytes,
        "SCALES_STEP": layout.down.scales_step_bytes,
    }


def _of_both(layout: ExpertLayout) -> dict[str, Any]:
    return {
        "D": layout.width,
        "I": layout.intermediate,
        "ELEMENT": ELEMENTS[layout.format.codes],
        "ALIGNMENT": ALIGNMENT_BYTES,
    }
