"""One CUDA device under measurement: streams, events, pinned memory and CUDA graphs.

Device times are taken between events on a stream that a short spin holds back while the host hands
work over, so that no launch is in them. Copies run on a stream of their own for each direction.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter, perf_counter_ns
from typing import Any

import torch
from torch import Tensor

from moesim.backends.calibration.bench import Way
from moesim.backends.calibration.graph_software import GraphSoftware
from moesim.backends.calibration.scale import CUDA, Scale
from moesim.backends.calibration.software import Software
from moesim.backends.calibration.works import Work
from moesim.backends.drivers.cuda.pinned import pinned_bytes
from moesim.backends.drivers.cuda.transfer import copy_to_device

_cuda: Any = torch.cuda  # half of its functions have no types
_MOST_COPIES = 32
_SPIN_CYCLES = 3_000_000
_MIB = 1024 * 1024
_BLOCK_BYTES = 1024 * _MIB
_VRAM_BLOCK_BYTES = 256 * _MIB
_ROW_BYTES = 256 * _MIB
_BESIDE_BYTES = 1024 * _MIB
_LEAVE_RAM = 0.9
_MS_NS = 1e6


class CudaBench:
    """A CUDA device; see `Bench`."""

    def __init__(self, scale: Scale = CUDA) -> None:
        self.place = torch.device("cuda", torch.cuda.current_device())
        self.dtype = torch.bfloat16
        self.scale = scale
        room = 2 * max(*scale.copy_bytes, *scale.held_copy_bytes)
        self._pinned = pinned_bytes(room)
        self._back = torch.zeros(room, dtype=torch.uint8).pin_memory()
        self._pageable = torch.randint(0, 255, (room,), dtype=torch.uint8)
        self._device = torch.zeros(room, dtype=torch.uint8, device=self.place)
        self._source = torch.zeros(room, dtype=torch.uint8, device=self.place)
        self._up, self._down = _cuda.Stream(), _cuda.Stream()
        self._graphs: list[tuple[torch.cuda.CUDAGraph, Sequence[Work]]] = []

    # Copies

    def copy_ns(self, way: Way, nbytes: int) -> float:
        """Return the time of each of some copies in a row."""
        if way == "pageable":
            return self._pageable_ns(nbytes)
        return self._row_ns(way, nbytes)

    def _row_ns(self, way: Way, nbytes: int) -> float:
        stream = self._up if way == "h2d" else self._down
        begun, ended = _events()
        with torch.cuda.stream(stream):
            _cuda._sleep(_SPIN_CYCLES)  # noqa: SLF001  torch has no public spin
            begun.record()
            copies = min(_MOST_COPIES, _ROW_BYTES // nbytes)
            self._enqueue(way, nbytes, copies)
            ended.record()
        ended.synchronize()
        return float(begun.elapsed_time(ended)) * _MS_NS / copies

    def _enqueue(self, way: Way, nbytes: int, copies: int) -> None:
        """Hand copies over to the current stream: to the device in the driver's own way."""
        blocks = len(self._pinned) // nbytes
        for number in range(copies):
            at = number % blocks * nbytes
            if way == "h2d":
                self._copy_up(at, nbytes)
            else:
                target, source = self._back, self._source
                target[at : at + nbytes].copy_(source[at : at + nbytes], non_blocking=True)

    def _copy_up(self, at: int, nbytes: int) -> None:
        to, source = self._device.data_ptr() + at, self._pinned.data_ptr() + at
        copy_to_device(to, source, nbytes, self._up.cuda_stream)

    def _pageable_ns(self, nbytes: int) -> float:
        """Return the time by the host's clock: such a copy holds the host."""
        blocks = min(4, len(self._pageable) // nbytes)
        torch.cuda.synchronize()
        began_ns = perf_counter_ns()
        for number in range(blocks):
            at = number * nbytes
            self._device[at : at + nbytes].copy_(self._pageable[at : at + nbytes])
        torch.cuda.synchronize()
        return (perf_counter_ns() - began_ns) / blocks

    def copy_beside_ns(self, nbytes: int) -> float:
        """Return the time of each copy to the device while copies come from it."""
        with torch.cuda.stream(self._down):
            self._enqueue("d2h", nbytes, _BESIDE_BYTES // nbytes)
        time_ns = self._row_ns("h2d", nbytes)
        torch.cuda.synchronize()
        return time_ns

    def lone_copy_ns(self, nbytes: int) -> float:
        """Return the time of one copy between events, on a device with nothing else to do."""
        begun, ended = _events()
        begun.record(self._up)
        self._copy_up(0, nbytes)
        ended.record(self._up)
        ended.synchronize()
        return float(begun.elapsed_time(ended)) * _MS_NS

    @contextmanager
    def copies_beside(self) -> Iterator[None]:
        """Have 1 GiB of copies to the device under way; they outlast what a probe runs beside."""
        with torch.cuda.stream(self._up):
            nbytes = self.scale.long_copy_bytes
            self._enqueue("h2d", nbytes, _BESIDE_BYTES // nbytes)
        try:
            yield
        finally:
            torch.cuda.synchronize()

    # Kernels

    def captured(self, works: Sequence[Work]) -> Work:
        """Return the replay of one graph that does all works."""
        aside = _cuda.Stream()
        with torch.cuda.stream(aside), torch.inference_mode():
            for work in works[:2]:
                work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            for work in works:
                work()
        self._graphs.append((graph, works))  # a graph holds the weights' addresses, not the weights
        return graph.replay

    def kernel_ns(self, work: Work) -> float:
        """Return the time between two events around the work."""
        begun, ended = _events()
        _cuda._sleep(_SPIN_CYCLES)  # noqa: SLF001  torch has no public spin
        begun.record()
        work()
        ended.record()
        ended.synchronize()
        return float(begun.elapsed_time(ended)) * _MS_NS

    def host_token(self) -> Tensor:
        """Return pinned room for one token."""
        return torch.zeros(1, dtype=torch.long).pin_memory()

    def software(self) -> Software:
        """Return our own driver with graphs: what is calibrated is what runs."""
        return GraphSoftware(self)

    # Memory

    def vram(self) -> tuple[int, int, int]:
        """Return VRAM, what could be allocated of it, and what torch keeps beyond its tensors."""
        workspace = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        _, total = torch.cuda.mem_get_info()
        held: list[Any] = []
        usable = torch.cuda.memory_reserved()
        try:
            while True:
                held.append(torch.empty(_VRAM_BLOCK_BYTES, dtype=torch.uint8, device=self.place))
        except torch.cuda.OutOfMemoryError:
            usable = max(usable, torch.cuda.memory_reserved())
        del held
        torch.cuda.empty_cache()
        return total, usable, workspace

    def pinned_bytes(self, seconds: float) -> tuple[int, bool]:
        """Pin blocks until it fails, RAM runs short or the time is over."""
        from moesim.backends.calibration.fingerprint import free_ram_bytes  # noqa: PLC0415  no cycle

        limit_s = perf_counter() + seconds
        room = int(free_ram_bytes() * _LEAVE_RAM) // _BLOCK_BYTES
        held: list[Tensor] = []
        try:
            while len(held) < room and perf_counter() < limit_s:
                held.append(torch.empty(_BLOCK_BYTES, dtype=torch.uint8, pin_memory=True))
        except RuntimeError:
            room = len(held)
        found = len(held)
        held.clear()
        release: Any = getattr(torch._C, "_host_emptyCache", None)  # noqa: SLF001  torch has no other
        if release is not None:  # else torch keeps what was pinned, and a model may need it
            release()
        return found * _BLOCK_BYTES, found < room

    def close(self) -> None:
        """Give the graphs and their weights back."""
        self._graphs.clear()


def _events() -> tuple[Any, Any]:
    return _cuda.Event(enable_timing=True), _cuda.Event(enable_timing=True)
