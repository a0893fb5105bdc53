"""Host memory that a GPU reads at the link's full speed.

torch rounds every page-locked block up to a power of two, which makes 96 GiB of Mixtral's 84. Big
blocks are therefore mapped and registered here, in huge pages where the system has them; they are
let go with the last tensor on them.
"""

import ctypes
import mmap
import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from moesim.backends.models import ModelError
from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.errors import OutOfMemoryError

HUGE_BYTES = 2**21
"""From here on a block asks for huge pages: CPU experts read a page table less."""


def pinned_bytes(nbytes: int) -> Tensor:
    """Return so many page-locked bytes, all zero.

    Raises:
        ModelError: There is no GPU to lock them for.
        OutOfMemoryError: The system does not lock so many.
    """
    if not torch.cuda.is_available():
        raise ModelError("page-locked memory needs a CUDA GPU; take the store without pin")
    try:
        block = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise OutOfMemoryError(_refused(nbytes, str(error.strerror))) from None
    if nbytes >= HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system may have none
            block.madvise(mmap.MADV_HUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    runtime = _runtime()
    status = runtime.cudaHostRegister(address, max(nbytes, 1), 0)
    if int(status) != 0:
        raise OutOfMemoryError(_refused(nbytes, runtime.cudaGetErrorString(status)))
    weakref.finalize(block, _unregister, address)
    return torch.frombuffer(block, dtype=torch.uint8, count=nbytes)


def mapped(pinned: Tensor) -> Tensor:
    """Return page-locked memory as the GPU sees it: its kernels read it over the link.

    What they read that way does not queue behind the big copies, as a small copy would.
    """
    return torch.as_tensor(_Interface(pinned), device="cuda").view(pinned.dtype).view(pinned.shape)


def words(pinned: Tensor) -> memoryview:
    """Return whole numbers of 8 bytes as the host reads and writes them fastest: 0.05 µs each."""
    numbers: Any = pinned.numpy()
    return memoryview(numbers).cast("B").cast("q")


class _Interface:
    """Bytes at an address, in the words that torch reads; the tensor made of it keeps it."""

    def __init__(self, pinned: Tensor) -> None:
        self._pinned = pinned
        self.__cuda_array_interface__ = {
            "shape": (pinned.numel() * pinned.element_size(),),
            "typestr": "|u1",
            "data": (pinned.data_ptr(), False),
            "version": 3,
        }


def _unregister(address: int) -> None:
    _runtime().cudaHostUnregister(address)


def _runtime() -> Any:  # noqa: ANN401  a module that torch leaves without types
    get: Any = torch.cuda.cudart
    return get()


def _refused(nbytes: int, why: str) -> str:
    return (
        f"{format_bytes(nbytes)} of host memory for experts cannot be page-locked: {why}; "
        "free memory or take a smaller model"
    )
