"""How long a captured graph took, by the GPU's own clock: without events the host does nothing."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import globaltimer


def add_elapsed(began_1: Tensor, total_1: Tensor) -> None:
    """Add the time since ``began_1`` to a sum, both in ns (int64, on the device)."""
    assert began_1.dtype == total_1.dtype == torch.int64
    _add_elapsed[(1,)](began_1, total_1, num_warps=1)


@triton.jit
def _add_elapsed(began, total):
    tl.store(total, tl.load(total) + globaltimer() - tl.load(began))
