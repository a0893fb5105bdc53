"""The one call that torch makes a dozen times dearer than CUDA: a copy into a place in VRAM.

Measured on an H100's host: 32 µs by ``copy_`` within ``torch.cuda.stream``, 2.5 µs by this call.
Neither lets go of the interpreter: it is over before another thread would have taken it.
"""

import ctypes
from functools import cache
from typing import Any


def copy_to_device(to: int, source: int, nbytes: int, stream: int) -> None:
    """Have bytes copied from page-locked memory to an address in VRAM, in a stream's order.

    Raises:
        RuntimeError: CUDA refused.
    """
    _check(_library().cuMemcpyHtoDAsync_v2(to, source, nbytes, stream))


def copy_between(to: int, source: int, nbytes: int, stream: int) -> None:
    """Have bytes copied between two GPUs that reach each other's memory, in a stream's order.

    Raises:
        RuntimeError: CUDA refused.
    """
    _check(_library().cuMemcpyAsync(to, source, nbytes, stream))


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"CUDA error: {_name(status)}")


@cache
def _library() -> Any:  # noqa: ANN401  a library's functions have no types
    library: Any = ctypes.PyDLL("libcuda.so.1")
    for copy in (library.cuMemcpyHtoDAsync_v2, library.cuMemcpyAsync):
        copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return library


def _name(status: int) -> str:
    text = ctypes.c_char_p()
    _library().cuGetErrorString(status, ctypes.byref(text))
    return str(status) if text.value is None else text.value.decode()
