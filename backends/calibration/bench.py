"""What a calibration asks of a device; one implementation for threads, one for CUDA.

The probes and the fits are written once, against this contract.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch
from torch import Tensor

from moesim.backends.calibration.scale import Scale
from moesim.backends.calibration.software import Software
from moesim.backends.calibration.works import Work

Way = Literal["h2d", "d2h", "pageable"]
"""Pinned to the device, device to pinned, pageable to the device."""


class Bench(Protocol):
    """A device under measurement.

    Attributes:
        place: Where its tensors lie.
        dtype: Of weights.
        scale: The sizes to measure.
    """

    place: torch.device
    dtype: torch.dtype
    scale: Scale

    def copy_ns(self, way: Way, nbytes: int) -> float:
        """Return the time that each copy takes when copies of that size follow one another."""
        ...

    def copy_beside_ns(self, nbytes: int) -> float:
        """Return the same for copies to the device while others come from it."""
        ...

    def lone_copy_ns(self, nbytes: int) -> float:
        """Return the time of one copy to the device that nothing precedes."""
        ...

    def captured(self, works: Sequence[Work]) -> Work:
        """Return all works as one, in the way the backend launches work."""
        ...

    def kernel_ns(self, work: Work) -> float:
        """Return the device's time for a work, without what the host takes to launch it."""
        ...

    def copies_beside(self) -> AbstractContextManager[None]:
        """Keep copies to the device running."""
        ...

    def host_token(self) -> Tensor:
        """Return room for one token in host memory that the device can write to."""
        ...

    def software(self) -> Software:
        """Return what runs on it."""
        ...

    def vram(self) -> tuple[int, int, int]:
        """Return bytes there are, bytes that can be used, bytes of workspace."""
        ...

    def pinned_bytes(self, seconds: float) -> tuple[int, bool]:
        """Return how many bytes could be pinned within the time, and whether more can be."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
