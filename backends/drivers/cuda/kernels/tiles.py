"""From what the host says of a launch's experts to the tiles of rows that the kernels read."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# E experts of a layer, N tiles of rows.

_BLOCK = 256


def lay_out_tiles(
    plan_N3: Tensor, starts_E: Tensor, tile: int, tiles_N2: Tensor, offsets_N: Tensor
) -> None:
    """Work out where each tile's rows begin and end; one block reads the plan over the link.

    Args:
        plan_N3: Pinned int64, as the GPU sees it: expert, how many rows of it come before the tile,
            where in the arena it begins.
        starts_E: Where each expert's rows begin among all sorted rows, and where the last end
            (int64, E + 1 of them).
        tile: Most rows of a tile.
        tiles_N2: Written: begin and end (int32).
        offsets_N: Written (int64).
    """
    assert plan_N3.dtype == starts_E.dtype == offsets_N.dtype == torch.int64
    assert tiles_N2.dtype == torch.int32
    _lay_out[(1,)](
        plan_N3, starts_E, tiles_N2, offsets_N, plan_N3.shape[0], TILE=tile, BLOCK=_BLOCK
    )


@triton.jit(do_not_specialize=["count"])
def _lay_out(plan, starts, tiles, offsets, count, TILE: tl.constexpr, BLOCK: tl.constexpr):
    for at in range(0, count, BLOCK):
        n = at + tl.arange(0, BLOCK)
        here = n < count
        expert = tl.load(plan + 3 * n, mask=here, other=0, volatile=True)
        before = tl.load(plan + 3 * n + 1, mask=here, other=0, volatile=True)
        offset = tl.load(plan + 3 * n + 2, mask=here, other=0, volatile=True)
        begin = tl.load(starts + expert, mask=here, other=0) + before
        end = tl.minimum(begin + TILE, tl.load(starts + expert + 1, mask=here, other=0))
        tl.store(tiles + 2 * n, begin.to(tl.int32), mask=here)
        tl.store(tiles + 2 * n + 1, end.to(tl.int32), mask=here)
        tl.store(offsets + n, offset, mask=here)
