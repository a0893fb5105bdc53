"""Small numbers from the GPU to a host that spins: each word carries the number of its launch.

A word of 8 bytes is written at once, so a word with the right number is whole, and no fence, copy
or event is needed. (On an H100 the host notices 10 µs earlier than by a copy and an event, 23 µs
where big copies are under way.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moesim.backends.drivers.cuda.posted import STAMP_BITS

# S values.


def post(values_S: Tensor, gates_S: Tensor | None, launches_1: Tensor, words_S: Tensor) -> None:
    """Write each value to host memory, stamped with the number of this launch, from 1.

    Args:
        values_S: Whole numbers of 32 bits, from 0 to 2**16 - 1 where there are gates; contiguous.
        gates_S: Go along as float16 in bits 16 to 31.
        launches_1: How many launches there were (int64, on the device); incremented.
        words_S: Pinned int64, as the GPU sees it.
    """
    assert launches_1.dtype == words_S.dtype == torch.int64
    count = values_S.numel()
    assert words_S.numel() == count
    block = triton.next_power_of_2(count)
    gates = launches_1 if gates_S is None else gates_S
    _post[(1,)](
        values_S,
        gates,
        launches_1,
        words_S,
        count,
        HAS_GATES=gates_S is not None,
        BLOCK=block,
        SHIFT=STAMP_BITS,
    )


@triton.jit
def _post(
    values,
    gates,
    launches,
    words,
    count,
    HAS_GATES: tl.constexpr,
    BLOCK: tl.constexpr,
    SHIFT: tl.constexpr,
):
    s = tl.arange(0, BLOCK)
    launch = tl.load(launches) + 1
    word = tl.load(values + s, mask=s < count, other=0).to(tl.int64) & 0xFFFFFFFF
    if HAS_GATES:
        gate = tl.load(gates + s, mask=s < count, other=0.0).to(tl.float16)
        word += (gate.to(tl.int16, bitcast=True).to(tl.int64) & 0xFFFF) << 16
    tl.debug_barrier()
    tl.store(launches, launch)
    tl.store(words + s, word + (launch << SHIFT), mask=s < count, cache_modifier=".wt")
