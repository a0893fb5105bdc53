"""The CPU driver: real memory copies and real products, each engine a thread with a FIFO.

"VRAM" is a piece of memory of the budget's size. What a GPU does with streams and events is done
here with threads and flags: one thread copies from the host store into the arena, one computes the
GPU's runs from the arena, one the CPU's runs from the store, one answers asks. Each takes its jobs
in the order they were handed over and begins one when the jobs it names have ended.
"""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from moesim.backends.base import RealDriver
from moesim.backends.drivers.asks import Asks
from moesim.backends.drivers.streams import Job, Stream, failure_of
from moesim.backends.experts import LayerWork
from moesim.backends.means import named
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
        self._arena_B: Tensor | None = make_arena(budget_bytes, torch.device("cpu"))
        self._bell = threading.Event()
        self._streams = {
            name: Stream(name, self.clock_ns, self._bell, self.spans)
            for name in ("h2d", "gpu", "cpu", "asks")
        }
        self._jobs: dict[int, Job] = {}  # copies and runs that a command may name
        self._copies: dict[int, tuple[Job, int]] = {}  # not yet reported, and their bytes
        self._cpu_runs: dict[int, Job] = {}
        self._asked = Asks(controller, self._streams["asks"])
        self._layer_jobs: list[tuple[int, Job]] = []
        self._work: LayerWork | None = None

    def copy_bytes(self, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
        """Move a stretch of one expert's blob into the arena; runs in the copy thread."""
        assert self._arena_B is not None
        part_B = self._store.blob(expert)[slice(*stretch)]
        self._arena_B[offset_bytes : offset_bytes + len(part_B)].copy_(part_B)

    def place(self, expert: int, offset_bytes: int) -> None:
        """Put an expert into the arena before time zero."""
        self.copy_bytes(expert, self.stretch(expert, ALL), offset_bytes)

    def open_layer(self, work: LayerWork) -> None:
        """Take in what the runs of the coming layer compute on."""
        work.pieces = self._store.pieces
        self._work = work
        self._layer_jobs = []

    def start_copy(self, command: Copy, offset_bytes: int) -> None:
        """Hand a copy to the copy thread."""
        expert, stretch = command.expert, self.stretch(command.expert, command.part)
        job = Job(
            command,
            lambda: self.copy_bytes(expert, stretch, offset_bytes),
            named(self._jobs, command.after),
        )
        self._jobs[command.n] = job
        self._copies[command.n] = (job, stretch[1] - stretch[0])
        self._streams["h2d"].submit(job)

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
        for n, (job, nbytes) in [*self._copies.items()]:
            if not job.ended.is_set():
                break  # one engine is a FIFO: nothing behind it has ended
            del self._copies[n]
            facts.append(CopyEnded(n))
            self._count_copy(nbytes)
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
        for _, nbytes in self._copies.values():
            self._count_copy(nbytes)
        self._copies.clear()
        timings = self.timings
        timings.gpu_busy_ns = timings.experts_busy_ns = self._streams["gpu"].busy_ns
        timings.cpu_busy_ns = self._streams["cpu"].busy_ns
        timings.engines_busy_ns["h2d"] = self._streams["h2d"].busy_ns

    def forget_step(self) -> None:
        """Forget the runs of the step, and the copies that were reported."""
        self._jobs = {n: job for n, (job, _) in self._copies.items()}
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
        self._arena_B = None

    def _tell_failures(self) -> None:
        failures = self._failures()
        if failures:
            self.tell(failures)

    def _failures(self) -> list[Fact]:
        jobs = [
            *((n, job) for n, (job, _) in self._copies.items()),
            *self._asked.jobs(),
            *self._layer_jobs,
        ]
        return failure_of(jobs)

    def _count_copy(self, nbytes: int) -> None:
        timings = self.timings
        timings.engine_bytes["h2d"] = timings.engine_bytes.get("h2d", 0) + nbytes
        timings.engine_copies["h2d"] = timings.engine_copies.get("h2d", 0) + 1
