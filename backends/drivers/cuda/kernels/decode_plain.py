"""The two decode kernels for codes that convert to a float each: bf16, fp16, fp32, fp8."""

import triton
import triton.language as tl

# I intermediate dimension, D width. J_STEP and D_STEP count codes, all other places bytes.


@triton.jit
def silu_times(gate, up):
    """Return silu(gate) * up."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def activate(
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
    """Write silu(gate x) * up x of BLOCK_J rows; the scale of down column j is folded in."""
    row = tl.program_id(0)
    offset = tl.load(offsets + row)
    if offset >= 0:
        blob = arena + tl.multiple_of(offset, ALIGNMENT)
        j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
        d = tl.arange(0, BLOCK_D)
        inputs = hidden + (row // TOP_K) * D + d
        gates = (blob + (GATE + j * STEP)).to(tl.pointer_type(ELEMENT), bitcast=True)
        ups = (blob + (UP + j * STEP)).to(tl.pointer_type(ELEMENT), bitcast=True)
        gate_sums = tl.zeros([BLOCK_J, BLOCK_D], tl.float32)
        up_sums = tl.zeros([BLOCK_J, BLOCK_D], tl.float32)
        for begin in tl.range(0, D, BLOCK_D, num_stages=STAGES):
            gate_tile = tl.load(gates[:, None] + (begin + d)[None, :])
            up_tile = tl.load(ups[:, None] + (begin + d)[None, :])
            x = tl.load(inputs + begin).to(tl.float32)[None, :]
            gate_sums += gate_tile.to(tl.float32) * x
            up_sums += up_tile.to(tl.float32) * x
        gate = tl.sum(gate_sums, 1)
        up = tl.sum(up_sums, 1)
        if SCALED:
            scales = (blob + j * SCALES_STEP).to(tl.pointer_type(tl.float32), bitcast=True)
            gate *= tl.load(scales + GATE_SCALES // 4)
            up *= tl.load(scales + UP_SCALES // 4) * tl.load(scales + DOWN_SCALES // 4)
        tl.store(activation + row * I + j, silu_times(gate, up))


@triton.jit(do_not_specialize=["row_count"])
def down(
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
    """Write BLOCK_D elements of one partial row: down times the activation of one piece."""
    row = tl.program_id(0)
    piece = tl.program_id(2)
    offset = tl.load(offsets + row)
    if offset >= 0:
        blob = arena + tl.multiple_of(offset, ALIGNMENT)
        weights = (blob + DOWN).to(tl.pointer_type(ELEMENT), bitcast=True)
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        j = piece * PIECE + tl.arange(0, BLOCK_J)
        tile = weights + (d[:, None] * D_STEP + j[None, :] * J_STEP)
        sums = tl.zeros([BLOCK_D, BLOCK_J], tl.float32)
        for begin in tl.range(0, PIECE, BLOCK_J, num_stages=STAGES):
            down = tl.load(tile + begin * J_STEP)
            active = tl.load(activation + row * I + begin + j)
            sums += down.to(tl.float32) * active[None, :]
        place = ((FIRST_PIECE + piece) * row_count + row).to(tl.int64) * D
        tl.store(rows + place + d, tl.sum(sums, 1))
