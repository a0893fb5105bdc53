"""The two grouped kernels: a tile of rows of one expert times a block of its weights."""

import triton
import triton.language as tl

from moesim.backends.formats import GROUP, INT4_ZERO

# I intermediate dimension, D width. J_STEP and D_STEP count codes, all other places bytes.

_GROUP: tl.constexpr = tl.constexpr(GROUP)
_HALF: tl.constexpr = tl.constexpr(GROUP // 2)
_ZERO: tl.constexpr = tl.constexpr(float(INT4_ZERO))


@triton.jit
def grouped_activate(
    hidden,
    arena,
    order,
    tiles,
    offsets,
    activation,
    D: tl.constexpr,
    I: tl.constexpr,
    TOP_K: tl.constexpr,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    STEP: tl.constexpr,
    GATE_SCALES: tl.constexpr,
    UP_SCALES: tl.constexpr,
    DOWN_SCALES: tl.constexpr,
    SCALES_STEP: tl.constexpr,
    SCALED: tl.constexpr,
    INT4: tl.constexpr,
    ELEMENT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write silu(gate x) * up x of one tile of rows and BLOCK_J of I."""
    number = tl.program_id(1)
    blob = arena + tl.multiple_of(tl.load(offsets + number), ALIGNMENT)
    place = tl.load(tiles + 2 * number) + tl.arange(0, BLOCK_R)
    is_row = (place < tl.load(tiles + 2 * number + 1))[:, None]
    row = tl.load(order + place, mask=place < tl.load(tiles + 2 * number + 1), other=0)
    inputs = hidden + (row // TOP_K).to(tl.int64)[:, None] * D
    j = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    outputs = activation + place.to(tl.int64)[:, None] * I + j[None, :]
    gate = tl.zeros([BLOCK_R, BLOCK_J], tl.float32)
    up = tl.zeros([BLOCK_R, BLOCK_J], tl.float32)
    if INT4:
        e = tl.arange(0, _HALF)
        codes = blob + (j * STEP)[None, :] + e[:, None]
        scales = (blob + j * SCALES_STEP).to(tl.pointer_type(tl.bfloat16), bitcast=True)[None, :]
        halves = inputs + e[None, :]
        for g in range(D // _GROUP):
            low = tl.load(halves + g * _GROUP, mask=is_row, other=0.0)
            high = tl.load(halves + (g * _GROUP + _HALF), mask=is_row, other=0.0)
            gate_codes = tl.load(codes + (GATE + g * _HALF))
            up_codes = tl.load(codes + (UP + g * _HALF))
            gate_scale = tl.load(scales + (GATE_SCALES // 2 + g)).to(tl.float32)
            up_scale = tl.load(scales + (UP_SCALES // 2 + g)).to(tl.float32)
            part = tl.zeros([BLOCK_R, BLOCK_J], tl.float32)
            part = tl.dot(low, _levels(gate_codes & 15).to(low.dtype), part, input_precision="ieee")
            part = tl.dot(
                high, _levels(gate_codes >> 4).to(low.dtype), part, input_precision="ieee"
            )
            gate += part * gate_scale
            part = tl.zeros([BLOCK_R, BLOCK_J], tl.float32)
            part = tl.dot(low, _levels(up_codes & 15).to(low.dtype), part, input_precision="ieee")
            part = tl.dot(high, _levels(up_codes >> 4).to(low.dtype), part, input_precision="ieee")
            up += part * up_scale
    else:
        d = tl.arange(0, BLOCK_D)
        gates = (blob + (GATE + j * STEP)).to(tl.pointer_type(ELEMENT), bitcast=True)[None, :]
        ups = (blob + (UP + j * STEP)).to(tl.pointer_type(ELEMENT), bitcast=True)[None, :]
        for begin in range(0, D, BLOCK_D):
            x = tl.load(inputs + (begin + d)[None, :], mask=is_row, other=0.0)
            gate_tile = tl.load(gates + (begin + d)[:, None]).to(x.dtype)
            up_tile = tl.load(ups + (begin + d)[:, None]).to(x.dtype)
            gate = tl.dot(x, gate_tile, gate, input_precision="ieee")
            up = tl.dot(x, up_tile, up, input_precision="ieee")
        if SCALED:
            factors = (blob + j * SCALES_STEP).to(tl.pointer_type(tl.float32), bitcast=True)
            gate *= tl.load(factors + GATE_SCALES // 4)[None, :]
            up *= tl.load(factors + UP_SCALES // 4)[None, :]
            up *= tl.load(factors + DOWN_SCALES // 4)[None, :]
    active = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(outputs, active.to(activation.dtype.element_ty), mask=is_row)


@triton.jit(do_not_specialize=["row_count"])
def grouped_down(
    activation,
    arena,
    order,
    tiles,
    offsets,
    rows,
    row_count,
    D: tl.constexpr,
    I: tl.constexpr,
    PIECE: tl.constexpr,
    FIRST_PIECE: tl.constexpr,
    DOWN: tl.constexpr,
    J_STEP: tl.constexpr,
    D_STEP: tl.constexpr,
    SCALES: tl.constexpr,
    SCALES_STEP: tl.constexpr,
    INT4: tl.constexpr,
    ELEMENT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write BLOCK_D elements of one tile's partial rows of one piece."""
    number = tl.program_id(1)
    piece = tl.program_id(2)
    blob = arena + tl.multiple_of(tl.load(offsets + number), ALIGNMENT)
    place = tl.load(tiles + 2 * number) + tl.arange(0, BLOCK_R)
    is_row = (place < tl.load(tiles + 2 * number + 1))[:, None]
    row = tl.load(order + place, mask=place < tl.load(tiles + 2 * number + 1), other=0)
    j = piece * PIECE + tl.arange(0, BLOCK_J)
    inputs = activation + place.to(tl.int64)[:, None] * I + j[None, :]
    d0 = tl.program_id(0) * BLOCK_D
    outputs = rows + ((FIRST_PIECE + piece) * row_count + row).to(tl.int64)[:, None] * D + d0
    if INT4:  # BLOCK_D is one group
        e = tl.arange(0, _HALF)
        codes = (blob + (DOWN + d0 // 2)) + (j[:, None] * J_STEP + e[None, :])
        scales = (blob + (SCALES + j * SCALES_STEP)).to(tl.pointer_type(tl.bfloat16), bitcast=True)
        scales = scales[None, :]
        outputs += e[None, :]
        low = tl.zeros([BLOCK_R, _HALF], tl.float32)
        high = tl.zeros([BLOCK_R, _HALF], tl.float32)
        for begin in range(0, PIECE, BLOCK_J):
            x = tl.load(inputs + begin, mask=is_row, other=0.0)
            factor = tl.load(scales + (begin * (SCALES_STEP // 2) + d0 // _GROUP)).to(tl.float32)
            scaled = (x.to(tl.float32) * factor).to(x.dtype)
            down_codes = tl.load(codes + begin * J_STEP)
            low = tl.dot(scaled, _levels(down_codes & 15).to(x.dtype), low, input_precision="ieee")
            high = tl.dot(
                scaled, _levels(down_codes >> 4).to(x.dtype), high, input_precision="ieee"
            )
        tl.store(outputs, low, mask=is_row)
        tl.store(outputs + _HALF, high, mask=is_row)
    else:
        d = tl.arange(0, BLOCK_D)
        weights = (blob + DOWN).to(tl.pointer_type(ELEMENT), bitcast=True)
        tile = weights + ((d0 + d)[None, :] * D_STEP + j[:, None] * J_STEP)
        sums = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
        for begin in range(0, PIECE, BLOCK_J):
            x = tl.load(inputs + begin, mask=is_row, other=0.0)
            down = tl.load(tile + begin * J_STEP).to(x.dtype)
            sums = tl.dot(x, down, sums, input_precision="ieee")
        tl.store(outputs + d[None, :], sums, mask=is_row)


@triton.jit
def _levels(nibbles):
    return nibbles.to(tl.float32) - _ZERO
