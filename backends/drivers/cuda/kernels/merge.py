"""Partial rows into a layer's result, and byte offsets into device memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import globaltimer

# T tokens, K chosen, S = T x K rows in (token, rank) order, P partial rows, D width,
# N ring entries.

_BLOCK_D = 128


def merge_rows(rows_PSD: Tensor, gates_TK: Tensor, out_TD: Tensor) -> None:
    """Add partial rows in ascending order, weight each row, add the rows in router order.

    Args:
        rows_PSD: As `decode_experts` and `grouped_experts` write them.
        gates_TK: The router's weights, contiguous; read as float32.
        out_TD: Written, rounded once from float32.
    """
    pieces, rows, width = rows_PSD.shape
    tokens, top_k = gates_TK.shape
    assert rows == tokens * top_k
    assert gates_TK.is_contiguous()
    block = min(_BLOCK_D, width & -width)
    _merge[(tokens, width // block)](
        rows_PSD, gates_TK, out_TD, rows, PIECES=pieces, TOP_K=top_k, D=width, BLOCK_D=block
    )


def fetch_offsets(
    ring_NS: Tensor, launches_1: Tensor, offsets_S: Tensor, began_1: Tensor | None = None
) -> None:
    """Copy the next entry of a ring in pinned host memory to the device, by one block.

    One block alone reads over PCIe, and no small copy queues behind the big ones. The device counts
    launches itself, so that a captured graph reads entry ``launches % N`` each time it is replayed:
    the host writes that entry before it launches, and not again until the launch has ended.

    Args:
        ring_NS: Pinned int64, contiguous.
        launches_1: How many launches there were (int64, on the device); incremented.
        offsets_S: Written, int64, on the device.
        began_1: Where given, written: the GPU's clock, in ns (see ``timing.add_elapsed``).
    """
    entries, count = ring_NS.shape
    assert ring_NS.dtype == launches_1.dtype == offsets_S.dtype == torch.int64
    assert offsets_S.numel() == count
    block = triton.next_power_of_2(count)
    _fetch[(1,)](
        ring_NS,
        launches_1,
        offsets_S,
        launches_1 if began_1 is None else began_1,
        count,
        IS_TIMED=began_1 is not None,
        ENTRIES=entries,
        BLOCK=block,
    )


@triton.jit(do_not_specialize=["row_count"])
def _merge(
    rows,
    gates,
    out,
    row_count,
    PIECES: tl.constexpr,
    TOP_K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for rank in tl.static_range(TOP_K):
        place = token * TOP_K + rank
        row = tl.load(rows + place * D + d)
        for piece in tl.static_range(1, PIECES):
            row += tl.load(rows + (piece * row_count + place) * D + d)
        total += tl.load(gates + place).to(tl.float32) * row
    tl.store(out + token * D + d, total.to(out.dtype.element_ty))


@triton.jit
def _fetch(
    ring,
    launches,
    offsets,
    began,
    count,
    IS_TIMED: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if IS_TIMED:
        tl.store(began, globaltimer())
    launch = tl.load(launches)
    s = tl.arange(0, BLOCK)
    entry = ring + (launch % ENTRIES) * count
    fetched = tl.load(entry + s, mask=s < count, volatile=True)
    tl.store(offsets + s, fetched, mask=s < count)
    tl.debug_barrier()
    tl.store(launches, launch + 1)
