"""A thread that waits for work, and how long handing over and noticing the end take."""

import threading
from queue import SimpleQueue
from time import perf_counter_ns
from typing import NamedTuple

import torch

from moesim.backends.calibration.works import Work


class RoundTrip(NamedTuple):
    """The three parts of having something done by a warm thread."""

    hand_over_ns: int
    work_ns: int
    notice_ns: int


class Worker:
    """A warm thread, as those that compute experts on the CPU.

    Args:
        cores: How many its products may use.
    """

    def __init__(self, cores: int = 1) -> None:
        self._cores = cores
        self._jobs: SimpleQueue[Work | None] = SimpleQueue()
        self._ended = threading.Event()
        self._began_ns = 0
        self._ended_ns = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @torch.inference_mode()
    def _serve(self) -> None:
        torch.set_num_threads(self._cores)
        while (work := self._jobs.get()) is not None:
            self._began_ns = perf_counter_ns()
            work()
            self._ended_ns = perf_counter_ns()
            self._ended.set()

    def round_trip(self, work: Work = lambda: None) -> RoundTrip:
        """Have a work done and wait for its end."""
        self._ended.clear()
        asked_ns = perf_counter_ns()
        self._jobs.put(work)
        self._ended.wait()
        noticed_ns = perf_counter_ns()
        return RoundTrip(
            self._began_ns - asked_ns,
            self._ended_ns - self._began_ns,
            noticed_ns - self._ended_ns,
        )

    def close(self) -> None:
        """End the thread."""
        self._jobs.put(None)
        self._thread.join()
