"""Copies of one expert each, from the host and between two GPUs, made as the driver makes them."""

from collections.abc import Sequence
from statistics import median
from time import perf_counter_ns
from typing import NamedTuple

import torch
from torch import Tensor
from two_gpus import NS_PER_MS, REPEATS, SECOND_NS, Rig

from moesim.backends.drivers.cuda.lent import lent_vram
from moesim.backends.drivers.cuda.machine import vram
from moesim.backends.drivers.cuda.streams import Mark, new_stream
from moesim.backends.drivers.cuda.transfer import copy_between, copy_to_device

COPIES = 60
AT_ONCE = 80


class Piece(NamedTuple):
    """A few copies in a row: when, and the time from one's end to the next one's."""

    began_ns: int
    ended_ns: int
    each_ns: int


class Movers:
    """Copies of one expert each, as the driver makes them: by the same calls, between events.

    Args:
        rig: Whose store is copied from.
        slots: How many experts have room on each side.
        lends: Whether another GPU lends memory.
    """

    def __init__(self, rig: Rig, slots: int, *, lends: bool) -> None:
        self._size, self._slots = rig.size, slots
        self._store = rig.subject.opened.store
        self._is_gpu = rig.device.type == "cuda"
        nbytes = slots * self._size
        self._here_B = vram(nbytes, rig.device) if self._is_gpu else _zeros(nbytes)
        self._lent_B = None
        if lends:
            self._lent_B = lent_vram(nbytes, rig.device, 1) if self._is_gpu else _zeros(nbytes)
        self._streams = {way: new_stream() for way in self.ways} if self._is_gpu else {}

    @property
    def ways(self) -> list[str]:
        """The engines that there are."""
        return ["h2d"] if self._lent_B is None else ["h2d", "peer", "peer_out"]

    def issue(self, way: str, number: int) -> None:
        """Hand one copy over; on a CPU it is over then."""
        begin = number % self._slots * self._size
        source_B, target_B = self._ends(way, number)
        if way != "h2d":
            source_B = source_B[begin : begin + self._size]
        target_B = target_B[begin : begin + self._size]
        if not self._is_gpu:
            target_B.copy_(source_B)
            return
        move = copy_to_device if way == "h2d" else copy_between
        stream = self._streams[way].cuda_stream
        move(target_B.data_ptr(), source_B.data_ptr(), self._size, stream)

    def each_ns(self, *ways: str) -> dict[str, float]:
        """Return the time from one copy's end to the next one's, all these ways at once."""
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(REPEATS):
            if self._is_gpu:
                taken = self._timed(ways)
            else:
                taken = {}
                for way in ways:
                    began_ns = perf_counter_ns()
                    for number in range(COPIES):
                        self.issue(way, number)
                    taken[way] = (perf_counter_ns() - began_ns) / COPIES
            for way, ns in taken.items():
                found[way].append(ns)
        return {way: round(median(times), 1) for way, times in found.items()}

    def _timed(self, ways: Sequence[str]) -> dict[str, float]:
        marks: dict[str, list[Mark]] = {way: [] for way in ways}
        torch.cuda.synchronize()
        for number in range(COPIES):
            for way in ways:
                marks[way].append(Mark())
                self._issue_between(marks[way][-1], way, number)
        torch.cuda.synchronize()
        return {
            way: mine[0].ended.elapsed_time(mine[-1].ended) * NS_PER_MS / (COPIES - 1)
            for way, mine in marks.items()
        }

    def run_for(self, seconds: float) -> list[Piece]:
        """Copy from the host for so long; return what each few copies took."""
        pieces = []
        until_ns = perf_counter_ns() + round(seconds * SECOND_NS)
        marks = [Mark() for _ in range(AT_ONCE)] if self._is_gpu else []
        while (began_ns := perf_counter_ns()) < until_ns:
            for number in range(AT_ONCE):
                if marks:
                    self._issue_between(marks[number], "h2d", number)
                else:
                    self.issue("h2d", number)
            if self._is_gpu:
                torch.cuda.synchronize()
            ended_ns = perf_counter_ns()
            each_ns = (ended_ns - began_ns) / AT_ONCE
            if marks:
                elapsed_ms = marks[0].ended.elapsed_time(marks[-1].ended)
                each_ns = elapsed_ms * NS_PER_MS / (AT_ONCE - 1)
            pieces.append(Piece(began_ns, ended_ns, round(each_ns)))
        return pieces

    def _issue_between(self, mark: Mark, way: str, number: int) -> None:
        """Hand one copy over between events, as the driver does."""
        stream = self._streams[way]
        mark.began.record(stream)
        self.issue(way, number)
        mark.ended.record(stream)

    def _ends(self, way: str, number: int) -> tuple[Tensor, Tensor]:
        if way == "h2d":
            return self._store.blob(number % self._slots), self._here_B
        assert self._lent_B is not None
        ends = self._lent_B, self._here_B
        return ends if way == "peer" else ends[::-1]


def _zeros(nbytes: int) -> Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8)
