"""The GPU at hand, its memory, and its errors in one line."""

import gc
from contextlib import suppress

import torch
from torch import Tensor

from moesim.backends.store import make_arena
from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.errors import MoesimError, OutOfMemoryError, UnavailableError


class DeviceError(MoesimError, RuntimeError):
    """The GPU failed."""


def gpu() -> torch.device:
    """Return the current GPU.

    Raises:
        UnavailableError: There is none.
    """
    if not torch.cuda.is_available():
        raise UnavailableError("device cuda: this machine has 0 GPUs; cpu runs anywhere")
    return torch.device("cuda", torch.cuda.current_device())


def vram(
    nbytes: int, device: torch.device, less: str = "--vram, --expert-budget or --slots"
) -> Tensor:
    """Return so many bytes of VRAM.

    Args:
        nbytes: How many.
        device: Of which GPU.
        less: The options that would take fewer.

    Raises:
        OutOfMemoryError: They are not there; nothing was taken.
    """
    with suppress(torch.OutOfMemoryError):
        return make_arena(nbytes, device)
    gc.collect()  # what was let go and is in a cycle torch cannot give back
    torch.cuda.empty_cache()
    try:
        return make_arena(nbytes, device)
    except torch.OutOfMemoryError:
        free, _ = torch.cuda.mem_get_info(device)
        raise OutOfMemoryError(
            f"{format_bytes(nbytes)} of VRAM for experts, {format_bytes(free)} are free; "
            f"give a smaller {less}"
        ) from None


def reason(error: Exception) -> str:
    """Return an error's first line: CUDA's go on for several."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
