"""The memory that another GPU lends: experts lie in slots there, and copies go over NVLink.

Both ways are in streams of the GPU that computes, so that its events order them with all else and
their times are on one clock. The other GPU computes nothing and is told nothing.
"""

import torch
from torch import Tensor

from moesim.backends.drivers.cuda.machine import vram
from moesim.backends.drivers.cuda.streams import Stream
from moesim.backends.drivers.cuda.transfer import copy_between
from moesim.backends.means import PEER, PEER_OUT, Way
from moesim.simulator.errors import ProtocolError, UnavailableError

OPENING_BYTES = 16


def lender_of(device: torch.device, number: int) -> torch.device:
    """Return the GPU that lends to another.

    Args:
        device: The other.
        number: Of the lender, as commands have it: the computing GPU is 0, whichever it is.

    Raises:
        UnavailableError: There is no such GPU, or the two do not reach each other's memory.
    """
    here, count = device.index or 0, torch.cuda.device_count()
    there = here + number
    if there >= count:
        raise UnavailableError(
            f"--peer-cache: takes GPU {there} beside GPU {here}, and this machine has {count} in "
            "all; leave it out, or take --backend cpu, which plays it in memory"
        )
    reach = [(here, there), (there, here)]
    if not all(torch.cuda.can_device_access_peer(*pair) for pair in reach):
        raise UnavailableError(
            f"--peer-cache: GPUs {here} and {there} do not reach each other's memory, so that a "
            "copy would pass through the host; leave it out"
        )
    return torch.device("cuda", there)


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


class LentMemory:
    """Slots in another GPU's memory, and the ways between it and an arena.

    Args:
        arena_B: Of the GPU that computes.
        nbytes: How much is lent.
        number: By which GPU, as commands have it.

    Attributes:
        arena_B: What is lent.
    """

    def __init__(self, arena_B: Tensor, nbytes: int, number: int) -> None:
        self.arena_B = lent_vram(nbytes, arena_B.device, number)
        self._ends = {PEER: (self.arena_B, arena_B), PEER_OUT: (arena_B, self.arena_B)}

    def place(self, blob_B: Tensor, offset_bytes: int) -> None:
        """Put an expert there before time zero; returns when it is there."""
        self.arena_B[offset_bytes : offset_bytes + len(blob_B)].copy_(blob_B)

    def move(self, way: Way, nbytes: int, stream: Stream) -> None:
        """Have an expert moved between the two GPUs, in a stream's order.

        Raises:
            ProtocolError: It would leave the memory of one of them.
            RuntimeError: CUDA refused.
        """
        source_B, target_B = self._ends[way.engine]
        rooms = (source_B, way.source_bytes), (target_B, way.target_bytes)
        if not all(0 <= begin <= len(room_B) - nbytes for room_B, begin in rooms):
            raise ProtocolError(f"{way} is outside the memory of one of the GPUs")
        source, to = (room_B.data_ptr() + begin for room_B, begin in rooms)
        copy_between(to, source, nbytes, stream.cuda_stream)
