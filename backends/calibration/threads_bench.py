"""This CPU under measurement: memory copies stand for the link's, threads for streams.

It is the machine that the threads driver runs on, so that all of a calibration, profile included,
can be tried where there is no GPU.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from queue import SimpleQueue
from time import perf_counter_ns

import torch
from torch import Tensor

from moesim.backends.calibration.bench import Way
from moesim.backends.calibration.compute import Kernels
from moesim.backends.calibration.sampling import Probe
from moesim.backends.calibration.scale import THREADS, Scale
from moesim.backends.calibration.software import Software
from moesim.backends.calibration.worker import Worker
from moesim.backends.calibration.works import Work

_POOL_COPIES = 4
_CALLS = 20


class ThreadsBench:
    """The CPU as a device; see `Bench`."""

    def __init__(self, scale: Scale = THREADS) -> None:
        self.place = torch.device("cpu")
        self.dtype = torch.float32
        self.scale = scale
        largest = max(*scale.copy_bytes, *scale.held_copy_bytes, scale.cold_bytes // 2)
        self._host = torch.randint(0, 255, (largest,), dtype=torch.uint8)
        self._device = torch.zeros(largest, dtype=torch.uint8)
        self._at = 0
        self._worker = Worker()
        self._threads = torch.get_num_threads()
        torch.set_num_threads(max(1, self._threads // 2))  # the other half copies, as in the driver

    def copy_ns(self, way: Way, nbytes: int) -> float:
        """Return the time of each of some copies in a row between blocks that are not cached."""
        source, target = self._host, self._device
        if way == "d2h":
            source, target = target, source
        blocks = self._blocks(nbytes)
        began_ns = perf_counter_ns()
        for begin in blocks:
            target[begin : begin + nbytes].copy_(source[begin : begin + nbytes])
        return (perf_counter_ns() - began_ns) / len(blocks)

    def _blocks(self, nbytes: int) -> list[int]:
        """Return where the next few blocks begin; they go on through all of the memory."""
        room = len(self._host) // nbytes
        first = -(-self._at // nbytes)
        blocks = [(first + block) % room * nbytes for block in range(min(room, _POOL_COPIES))]
        self._at = blocks[-1] + nbytes
        return blocks

    def copy_beside_ns(self, nbytes: int) -> float:
        """Return the time of each copy while another thread copies too."""
        with self.copies_beside():
            return self.copy_ns("h2d", nbytes)

    def lone_copy_ns(self, nbytes: int) -> float:
        """Return the time of one copy."""
        began_ns = perf_counter_ns()
        self._device[:nbytes].copy_(self._host[:nbytes])
        return float(perf_counter_ns() - began_ns)

    def captured(self, works: Sequence[Work]) -> Work:
        """Return a function that does one of the works after the other."""

        def work() -> None:
            for one in works:
                one()

        return work

    def kernel_ns(self, work: Work) -> float:
        """Return how long the work takes."""
        began_ns = perf_counter_ns()
        work()
        return float(perf_counter_ns() - began_ns)

    @contextmanager
    def copies_beside(self) -> Iterator[None]:
        """Keep another thread copying."""
        nbytes = self.scale.long_copy_bytes
        over, begun = threading.Event(), threading.Event()

        def copy_on() -> None:
            torch.set_num_threads(1)
            for begin in cycle(self._blocks(nbytes)):
                self._device[begin : begin + nbytes].copy_(self._host[begin : begin + nbytes])
                begun.set()
                if over.is_set():
                    return

        thread = threading.Thread(target=copy_on, daemon=True)
        thread.start()
        begun.wait()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def host_token(self) -> Tensor:
        """Return room for one token."""
        return torch.zeros(1, dtype=torch.long)

    def software(self) -> Software:
        """Return torch's kernels."""
        return Kernels(self, self._host_probes())

    def _host_probes(self) -> list[Probe]:
        """Return the probes of host costs: a launch here is a job put into a stream's queue."""
        jobs: SimpleQueue[object] = SimpleQueue()
        event = threading.Event()

        def put() -> None:
            jobs.put(event)

        launch = _per_call(put)
        return [
            Probe("host launch layer", launch),
            Probe("host launch run", launch),
            Probe("host launch run of one", launch),
            Probe("host event", _per_call(threading.Event)),
            Probe("host poll", _per_call(event.is_set)),
            Probe("host wait router", lambda: self._worker.round_trip().notice_ns),
            Probe("host issue", launch),
        ]

    def vram(self) -> tuple[int, int, int]:
        """Return the RAM, of which half stands for VRAM; the host's experts lie in the other."""
        from moesim.backends.calibration.fingerprint import ram_bytes  # noqa: PLC0415  no cycle

        ram = ram_bytes()
        return ram, ram // 2, 0

    def pinned_bytes(self, seconds: float) -> tuple[int, bool]:
        """Return nothing: copies within RAM need no pinned memory."""
        del seconds
        return 0, False

    def close(self) -> None:
        """End the worker."""
        torch.set_num_threads(self._threads)
        self._worker.close()


def _per_call(call: Callable[[], object]) -> Callable[[], float]:
    def sample() -> float:
        began_ns = perf_counter_ns()
        for _ in range(_CALLS):
            call()
        return (perf_counter_ns() - began_ns) / _CALLS

    return sample
