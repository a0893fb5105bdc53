"""The two decode kernels for int4: a byte holds elements e and e + HALF of a group."""

import triton
import triton.language as tl

from moesim.backends.drivers.cuda.kernels.decode_plain import silu_times
from moesim.backends.formats import GROUP, INT4_ZERO

# I intermediate dimension, D width. J_STEP and D_STEP count codes, all other places bytes.

_GROUP: tl.constexpr = tl.constexpr(GROUP)
_ZERO: tl.constexpr = tl.constexpr(float(INT4_ZERO))


@triton.jit
def activate_int4(
    hidden,
    arena,
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
    ELEMENT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """As ``decode_plain.activate``, of bytes that hold elements e and e + HALF of a group."""
    HALF: tl.constexpr = _GROUP // 2
    GROUPS: tl.constexpr = BLOCK_D // _GROUP
    row = tl.program_id(0)
    offset = tl.load(offsets + row)
    if offset >= 0:
        blob = arena + tl.multiple_of(offset, ALIGNMENT)
        j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
        g = tl.arange(0, GROUPS)
        e = tl.arange(0, HALF)
        inputs = hidden + (row // TOP_K) * D + (g[:, None] * _GROUP + e[None, :])
        codes = blob + (j[:, None, None] * STEP + g[None, :, None] * HALF + e[None, None, :])
        scales = (blob + j * SCALES_STEP).to(tl.pointer_type(tl.bfloat16), bitcast=True)
        scales = scales[:, None] + g[None, :]
        gate_sums = tl.zeros([BLOCK_J, GROUPS, HALF], tl.float32)
        up_sums = tl.zeros([BLOCK_J, GROUPS, HALF], tl.float32)
        for begin in tl.range(0, D // _GROUP, GROUPS, num_stages=STAGES):
            gate_codes = tl.load(codes + (GATE + begin * HALF))
            up_codes = tl.load(codes + (UP + begin * HALF))
            gate_scale = tl.load(scales + (GATE_SCALES // 2 + begin)).to(tl.float32)[:, :, None]
            up_scale = tl.load(scales + (UP_SCALES // 2 + begin)).to(tl.float32)[:, :, None]
            low = tl.load(inputs + begin * _GROUP).to(tl.float32)[None, :, :]
            high = tl.load(inputs + (begin * _GROUP + HALF)).to(tl.float32)[None, :, :]
            gate_sums += (_low(gate_codes) * low + _high(gate_codes) * high) * gate_scale
            up_sums += (_low(up_codes) * low + _high(up_codes) * high) * up_scale
        gate = tl.sum(tl.sum(gate_sums, 2), 1)
        up = tl.sum(tl.sum(up_sums, 2), 1)
        tl.store(activation + row * I + j, silu_times(gate, up))


@triton.jit(do_not_specialize=["row_count"])
def down_int4(
    activation,
    arena,
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
    ELEMENT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """As ``decode_plain.down``, of bytes that hold elements e and e + HALF of a group."""
    HALF: tl.constexpr = _GROUP // 2
    GROUPS: tl.constexpr = BLOCK_D // _GROUP
    row = tl.program_id(0)
    piece = tl.program_id(2)
    offset = tl.load(offsets + row)
    if offset >= 0:
        blob = arena + tl.multiple_of(offset, ALIGNMENT)
        g = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
        e = tl.arange(0, HALF)
        j = piece * PIECE + tl.arange(0, BLOCK_J)
        codes = (blob + DOWN) + (
            j[:, None, None] * J_STEP + g[None, :, None] * HALF + e[None, None, :]
        )
        scales = (blob + SCALES).to(tl.pointer_type(tl.bfloat16), bitcast=True)
        scales = scales + (j[:, None] * (SCALES_STEP // 2) + g[None, :])
        low_sums = tl.zeros([BLOCK_J, GROUPS, HALF], tl.float32)
        high_sums = tl.zeros([BLOCK_J, GROUPS, HALF], tl.float32)
        for begin in tl.range(0, PIECE, BLOCK_J, num_stages=STAGES):
            down_codes = tl.load(codes + begin * J_STEP)
            active = tl.load(activation + row * I + begin + j)[:, None]
            scaled = tl.load(scales + begin * (SCALES_STEP // 2)).to(tl.float32) * active
            low_sums += _low(down_codes) * scaled[:, :, None]
            high_sums += _high(down_codes) * scaled[:, :, None]
        place = ((FIRST_PIECE + piece) * row_count + row).to(tl.int64) * D
        outputs = rows + place + (g[:, None] * _GROUP + e[None, :])
        tl.store(outputs, tl.sum(low_sums, 0))
        tl.store(outputs + HALF, tl.sum(high_sums, 0))


@triton.jit
def _low(codes):
    return (codes & 15).to(tl.float32) - _ZERO


@triton.jit
def _high(codes):
    return (codes >> 4).to(tl.float32) - _ZERO
