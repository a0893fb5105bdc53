"""The CPU driver: real memory copies and real products, each engine a thread with a FIFO.

"VRAM" is a piece of memory of the budget's size. What a GPU does with streams and events is done
here with threads and flags: one thread copies from the host store into the arena, one computes the
GPU's runs from the arena, one the CPU's runs from the store, one answers asks. Another GPU that
lends memory is a second piece, with a thread that copies from it and one that copies to it. Each
takes its jobs in the order they were handed over and begins one when the jobs it names have ended.
"""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moesim.backends.base import RealDriver
from moesim.backends.drivers.asks import Asks
from moesim.backends.drivers.streams import AtOnce, Job, Stream, failure_of
from moesim.backends.experts import LayerWork
from moesim.backends.means import H2D, PEER, PEER_OUT, Way, named
from moesim.backends.store import ExpertStore, make_arena
from moesim.simulator.controller import Controller
from moesim.simulator.messages import (
    Ask,
    Copy,
    CopyEnded,
    CpuRunEnded,
    Fact,
    Report,
    Run,
)
from moesim.simulator.terms import ALL, SECOND_NS

LONGEST_SLEEP_S = 0.05
CPU = torch.device("cpu")


class _Handed(NamedTuple):
    """A copy that was handed over."""

    job: Job
    engine: str
    nbytes: int


class ThreadsDriver(RealDriver[LayerWork]):
    """Offloading between two pieces of one machine's memory.

    Args:
        controller: What decides.
        store: The experts.
        budget_bytes: Size of the arena that plays VRAM.
        keep_spans: Whether to note every job for a timeline.
    """

    name = "threads"
    skips_choices = True
    stream: type[Stream] = Stream

    def __init__(
        self,
        controller: Controller,
        store: ExpertStore,
        budget_bytes: int,
        *,
        keep_spans: bool = False,
    ) -> None:
        super().__init__(controller)
        self.spans = [] if keep_spans else None
        self._store = store
        self._experts = store.parts.experts
        self._arena_B: Tensor | None = make_arena(budget_bytes, CPU)
        self._lent_B = None if self.lent is None else make_arena(self.lent.room_bytes, CPU)
        self._bell = threading.Event()
        self._engines: tuple[str, ...] = (H2D,) if self.lent is None else (H2D, PEER, PEER_OUT)
        self._streams = {
            name: self.new_stream(name) for name in (*self._engines, "gpu", "cpu", "asks")
        }
        self._jobs: dict[int, Job] = {}  # copies and runs that a command may name
        self._copies: dict[int, _Handed] = {}  # not yet reported
        self._cpu_runs: dict[int, Job] = {}
        self._asked = Asks(controller, self._streams["asks"])
        self._layer_jobs: list[tuple[int, Job]] = []
        self._work: LayerWork | None = None

    def new_stream(self, name: str) -> Stream:
        """Return a resource's stream."""
        return self.stream(name, self.clock_ns, self._bell, self.spans)

    def copy_bytes(self, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
        """Move a stretch of one expert's blob into the arena; runs in the copy thread."""
        assert self._arena_B is not None
        part_B = self._store.blob(expert)[slice(*stretch)]
        self._arena_B[offset_bytes : offset_bytes + len(part_B)].copy_(part_B)

    def place(self, expert: int, offset_bytes: int) -> None:
        """Put an expert into the arena before time zero."""
        self.copy_bytes(expert, self.stretch(expert, ALL), offset_bytes)

    def place_in_lent(self, expert: int, offset_bytes: int) -> None:
        """Put an expert into the piece that plays another GPU's memory, before time zero."""
        assert self._lent_B is not None
        blob_B = self._store.blob(expert)
        self._lent_B[offset_bytes : offset_bytes + len(blob_B)].copy_(blob_B)

    def copy_lent_bytes(self, way: Way, nbytes: int) -> None:
        """Move an expert between the two pieces; runs in the thread of its engine."""
        assert self._arena_B is not None
        assert self._lent_B is not None
        ends = (self._lent_B, self._arena_B)
        source_B, target_B = ends if way.engine == PEER else ends[::-1]
        moved_B = source_B[way.source_bytes : way.source_bytes + nbytes]
        target_B[way.target_bytes : way.target_bytes + nbytes].copy_(moved_B)

    def open_layer(self, work: LayerWork) -> None:
        """Take in what the runs of the coming layer compute on."""
        work.pieces = self._store.pieces
        self._work = work
        self._layer_jobs = []

    def start_copy(self, command: Copy, offset_bytes: int) -> None:
        """Hand a copy to the copy thread."""
        expert, stretch = command.expert, self.stretch(command.expert, command.part)
        self._hand_over(
            command,
            H2D,
            stretch[1] - stretch[0],
            lambda: self.copy_bytes(expert, stretch, offset_bytes),
        )

    def start_lent_copy(self, command: Copy, way: Way) -> None:
        """Hand a copy to the thread that copies from the other piece, or to it."""
        begin, end = self.stretch(command.expert, command.part)
        nbytes = end - begin
        self._hand_over(command, way.engine, nbytes, lambda: self.copy_lent_bytes(way, nbytes))

    def _hand_over(self, command: Copy, engine: str, nbytes: int, move: Callable[[], None]) -> None:
        job = Job(command, move, named(self._jobs, command.after))
        self._jobs[command.n] = job
        self._copies[command.n] = _Handed(job, engine, nbytes)
        self._streams[engine].submit(job)

    def start_run(self, command: Run, offsets_bytes: Sequence[int]) -> None:
        """Hand a run to the thread that plays the GPU, or to the CPU's."""
        work = self._work
        assert work is not None
        on_cpu = command.device.kind == "cpu"
        layer = command.experts[0] // self._experts
        layout = self._store.layouts[layer]
        part = layout.part(*self.stretch(command.experts[0], command.part))

        def compute() -> None:
            for at, expert in enumerate(command.experts):
                if on_cpu:
                    weights = self._store.matrices(expert)
                else:
                    assert self._arena_B is not None
                    weights = part.views(self._arena_B, offsets_bytes[at])
                first_piece = 0 if on_cpu else part.first_piece
                work.compute(expert % self._experts, weights, first_piece)

        job = Job(command, compute, named(self._jobs, command.after))
        self._jobs[command.n] = job
        self._layer_jobs.append((command.n, job))
        if on_cpu:
            self._cpu_runs[command.n] = job
        self._streams["cpu" if on_cpu else "gpu"].submit(job)

    def start_ask(self, command: Ask) -> None:
        """Hand an ask to the thread that answers."""
        self._asked.start(command)

    def has_results(self) -> bool:
        """Return whether the layer's runs have ended; tells the controller of one that failed."""
        if not all(job.ended.is_set() for _, job in self._layer_jobs):
            return False
        self._tell_failures()
        return True

    def poll(self) -> list[Report]:
        """Return all that has ended and was not reported, and whatever failed."""
        facts: list[Report] = [*self._failures()]
        for n, copy in [*self._copies.items()]:
            if copy.job.ended.is_set():
                del self._copies[n]
                facts.append(CopyEnded(n))
                self._count(copy)
        for n in [n for n, job in self._cpu_runs.items() if job.ended.is_set()]:
            del self._cpu_runs[n]
            facts.append(CpuRunEnded(n))
        for answer in self._asked.take():
            facts.append(answer)
            self.answered()
        return facts

    def watch(self) -> None:
        """Let the next end ring the bell."""
        self._bell.clear()

    def sleep(self) -> None:
        """Wait for the bell, or for the time at which somebody must look again."""
        left_s = LONGEST_SLEEP_S
        if self.wakes_ns is not None:
            left_s = min(left_s, max(0, self.wakes_ns - self.clock_ns()) / SECOND_NS)
        self._bell.wait(left_s)

    def drain(self) -> None:
        """Wait for every stream, and read their busy times."""
        for stream in self._streams.values():
            stream.drain()
        self._tell_failures()
        for copy in self._copies.values():
            self._count(copy)
        self._copies.clear()
        timings = self.timings
        timings.gpu_busy_ns = timings.experts_busy_ns = self._streams["gpu"].busy_ns
        timings.cpu_busy_ns = self._streams["cpu"].busy_ns
        for engine in self._engines:
            timings.engines_busy_ns[engine] = self._streams[engine].busy_ns

    def forget_step(self) -> None:
        """Forget the runs of the step, and the copies that were reported."""
        self._jobs = {n: copy.job for n, copy in self._copies.items()}
        self._layer_jobs = []
        self._work = None

    def close(self) -> None:
        """Cancel what waits, join the threads, release the arena."""
        for stream in self._streams.values():
            stream.cancel()
        for stream in self._streams.values():
            stream.join()
        self._streams = {}
        self._jobs = {}
        self._copies = {}
        self._cpu_runs = {}
        self._layer_jobs = []
        self._work = None
        self._arena_B = self._lent_B = None

    def _tell_failures(self) -> None:
        failures = self._failures()
        if failures:
            self.tell(failures)

    def _failures(self) -> list[Fact]:
        jobs = [
            *((n, copy.job) for n, copy in self._copies.items()),
            *self._asked.jobs(),
            *self._layer_jobs,
        ]
        return failure_of(jobs)

    def _count(self, copy: _Handed) -> None:
        timings, engine = self.timings, copy.engine
        timings.engine_bytes[engine] = timings.engine_bytes.get(engine, 0) + copy.nbytes
        timings.engine_copies[engine] = timings.engine_copies.get(engine, 0) + 1


class AtOnceDriver(ThreadsDriver):
    """The same without threads, for who asks what is answered and not how long it takes.

    A job is done when it is handed over, so copies never arrive late and a busy machine waits for
    nobody: the same answers as with threads in a quarter of the time.
    """

    name = "at once"
    stream = AtOnce
