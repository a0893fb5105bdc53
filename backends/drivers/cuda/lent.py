"""The memory that another GPU lends: experts lie in slots there, and copies go over NVLink.

Both ways are in streams of the GPU that computes, so that its events order them with all else and
their times are on one clock. The other GPU computes nothing and is told nothing.
"""

import torch
from torch import Tensor

from moesim.backends.drivers.cuda.machine import vram
from moesim.simulator.errors import UnavailableError

OPENING_BYTES = 16


def lender_of(device: torch.device, number: int) -> torch.device:
    """Return the GPU that lends to another.

    Args:
        device: The other.
        number: Of the lender, as commands have it: the computing GPU is 0, whichever it is.

    Raises:
        UnavailableError: There is no such GPU, or the two do not reach each other's memory.
    """
    count = torch.cuda.device_count()
    at = (device.index or 0) + number
    if at >= count:
        raise UnavailableError(
            f"--peer-cache: takes GPU {at} beside GPU {device.index or 0}, and this machine has "
            f"{count} in all; leave it out, or take --backend cpu, which plays it in memory"
        )
    lender = torch.device("cuda", at)
    reach = [(device, lender), (lender, device)]
    if not all(torch.cuda.can_device_access_peer(*pair) for pair in reach):
        raise UnavailableError(
            f"--peer-cache: GPUs {device.index or 0} and {at} do not reach each other's memory, so "
            "that a copy would pass through the host; leave it out"
        )
    return lender


def lent_vram(nbytes: int, device: torch.device, number: int) -> Tensor:
    """Return so many bytes of another GPU, within reach of a device.

    Raises:
        UnavailableError: As `lender_of`.
        OutOfMemoryError: They are not there.
    """
    lender = lender_of(device, number)
    arena_B = vram(nbytes, lender, "--peer-cache")
    here_B = torch.zeros(OPENING_BYTES, dtype=torch.uint8, device=device)
    there_B = torch.zeros(OPENING_BYTES, dtype=torch.uint8, device=lender)
    there_B.copy_(here_B)  # torch opens the way with the first copy
    here_B.copy_(there_B)
    torch.cuda.synchronize(lender)
    return arena_B
