"""The CUDA driver: experts copied from page-locked memory into an arena in VRAM, beside products.

One stream copies, in the order of the commands; the model's own stream computes. ``after`` becomes
waits between the two, so that the host hands a layer over and goes on. It waits in one place, for
the router's choice, and spins there: it looks at copies, tells the controller and obeys.
"""

import gc
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self

import torch
from torch import Tensor

from moesim.backends.base import RealDriver, Values
from moesim.backends.drivers.asks import Asks
from moesim.backends.drivers.cuda.cpu_experts import CpuExperts
from moesim.backends.drivers.cuda.machine import DeviceError, gpu, reason, vram
from moesim.backends.drivers.cuda.pinned import pinned_bytes
from moesim.backends.drivers.cuda.streams import Mark, Marks, new_event, new_stream
from moesim.backends.drivers.streams import Job, Stream, failure_of
from moesim.backends.experts import LayerWork
from moesim.backends.means import named
from moesim.backends.store import ExpertStore
from moesim.simulator.controller import Controller
from moesim.simulator.messages import (
    Ask,
    Copy,
    CopyEnded,
    CpuRunEnded,
    Fact,
    Failed,
    Run,
    StepBegan,
)
from moesim.simulator.terms import Phase

READ_BYTES = 2**16
"""What a router's choice is read through; a longer prompt makes it larger."""
SHORT_SLEEP_S = 50e-6
"""Lent to the threads of CPU experts and asks; without them the host never sleeps."""


class CudaDriver(RealDriver[LayerWork]):
    """Offloading between page-locked host memory and one GPU.

    Args:
        controller: What decides.
        store: The experts, page-locked.
        budget_bytes: Size of the arena.
        keep_spans: Whether to note every job for a timeline.

    Raises:
        NotAvailableError: There is no GPU.
        OutOfMemoryError: The arena does not fit.
    """

    name = "cuda"

    def __init__(
        self,
        controller: Controller,
        store: ExpertStore,
        budget_bytes: int,
        *,
        keep_spans: bool = False,
    ) -> None:
        super().__init__(controller)
        self._device = gpu()
        self.spans = [] if keep_spans else None
        self._store = store
        self._experts = store.parts.experts
        self._kind_L = [store.layouts.index(layout) for layout in store.layouts]
        self._views: dict[tuple[int, int], Mapping[str, Tensor]] = {}
        self._arena_B: Tensor | None = vram(budget_bytes, self._device)
        self._read_B = pinned_bytes(READ_BYTES)
        self._h2d = new_stream()
        self._marks = Marks()
        self._origin = new_event()
        self._settled = new_event(has_time=False)
        self._handed: dict[int, Mark] = {}  # copies and runs that a command may name
        self._copies: deque[tuple[Copy, int, Mark]] = deque()  # not yet reported, and their bytes
        self._runs: list[tuple[Run, Mark]] = []  # of the step, on the GPU
        self._ended: list[Mark] = []  # reported copies of the step
        self._failed: list[Fact] = []  # what could not even be handed over
        self._bell = threading.Event()
        self._streams = {
            name: Stream(name, self.clock_ns, self._bell, self.spans) for name in ("cpu", "asks")
        }
        self._asked = Asks(controller, self._streams["asks"])
        self._cpu_runs: dict[int, tuple[Job, Run]] = {}  # not yet reported
        self._cpu_experts = CpuExperts(self.take)
        self._work: LayerWork | None = None
        self._looked_ns = 0
        self._had_gc = gc.isenabled()
        self._synchronise_clocks()

    def __enter__(self) -> Self:
        """Keep the collector out of the loop until ``close``."""
        gc.collect()
        gc.disable()
        return self

    def copy_bytes(self, expert: int, offset_bytes: int) -> None:
        """Move one expert's blob into the arena, in the current stream."""
        assert self._arena_B is not None
        blob_B = self._store.blob(expert)
        self._arena_B[offset_bytes : offset_bytes + len(blob_B)].copy_(blob_B, non_blocking=True)

    def place(self, expert: int, offset_bytes: int) -> None:
        """Put an expert into the arena before time zero."""
        try:
            self.copy_bytes(expert, offset_bytes)
            torch.cuda.current_stream().synchronize()
        except RuntimeError as error:
            raise DeviceError(f"the GPU failed: {reason(error)}") from error

    def begin_step(self, began: StepBegan) -> None:
        """Report that a forward pass begins; in decode, watch over the loop's gaps."""
        self._looked_ns = 0 if Phase.PREFILL in began.phases else self.clock_ns()
        super().begin_step(began)

    def open_layer(self, work: LayerWork) -> None:
        """Take in what the runs of the coming layer compute on."""
        self._work = work

    def start_copy(self, command: Copy, offset_bytes: int) -> None:
        """Hand a copy to the copy stream."""
        mark, h2d = self._marks.take(), self._h2d
        try:
            for earlier in named(self._handed, command.after):
                h2d.wait_event(earlier.ended)
            with torch.cuda.stream(h2d):
                mark.began.record()
                self.copy_bytes(command.expert, offset_bytes)
                mark.ended.record()
        except (RuntimeError, OSError) as error:
            self._failed.append(Failed(command.n, reason(error)))
            return
        self._handed[command.n] = mark
        self._copies.append((command, len(self._store.blob(command.expert)), mark))

    def start_run(self, command: Run, offsets_bytes: Sequence[int]) -> None:
        """Launch a run's products, or hand it to the CPU's thread."""
        work = self._work
        assert work is not None
        if command.device.kind == "cpu":
            self._start_on_cpu(command, work)
            return
        mark = self._marks.take()
        stream = torch.cuda.current_stream()
        try:
            for earlier in named(self._handed, command.after):
                stream.wait_event(earlier.ended)
            mark.began.record(stream)
            self.compute(command, work, offsets_bytes)
            mark.ended.record(stream)
        except (RuntimeError, OSError) as error:
            self._failed.append(Failed(command.n, reason(error)))
            return
        self._handed[command.n] = mark
        self._runs.append((command, mark))

    def compute(self, command: Run, work: LayerWork, offsets_bytes: Sequence[int]) -> None:
        """Launch a run's products in the model's stream."""
        for expert, offset in zip(command.experts, offsets_bytes, strict=True):
            layer, index = divmod(expert, self._experts)
            work.compute(index, self._matrices(layer, offset))

    def take(self, work: LayerWork, expert: int, rows_SD: Tensor) -> None:
        """Take in products of the CPU, which the GPU reads where they are."""
        work.take(expert, rows_SD)

    def start_ask(self, command: Ask) -> None:
        """Hand an ask to the thread that answers."""
        self._asked.start(command)

    def has_results(self) -> bool:
        """Return True: what follows waits on the GPU, and the CPU's runs have ended before."""
        if self._failed:
            self.tell(self._take_failures())
        return True

    def poll(self) -> list[Fact]:
        """Return all that has ended and was not reported, and whatever failed."""
        self._look()
        facts = self._take_failures()
        copies = self._copies
        try:
            while copies and copies[0][2].ended.query():
                command, nbytes, mark = copies.popleft()
                self._note_copy(command, nbytes, mark)
                facts.append(CopyEnded(command.n))
        except RuntimeError as error:
            return [Failed(copies[0][0].n, reason(error))]
        for n in [n for n, (job, _) in self._cpu_runs.items() if job.ended.is_set()]:
            _, run = self._cpu_runs.pop(n)
            for expert in run.experts:
                self._cpu_experts.give(expert % self._experts)
            facts.append(CpuRunEnded(n))
        for answer in self._asked.take():
            facts.append(answer)
            self.answered()
        return facts

    def watch(self) -> None:
        """Let the next end of a thread's job ring the bell."""
        self._bell.clear()

    def sleep(self) -> None:
        """Spin; lend the interpreter only to threads that have something to do."""
        if self._cpu_runs or self._asked:
            self._bell.wait(SHORT_SLEEP_S)
        self._look()

    def read(self, values: Values) -> list[int]:
        """Bring whole numbers to the host through page-locked memory, polling meanwhile."""
        assert isinstance(values, Tensor)
        nbytes = values.numel() * values.element_size()
        if self._read_B.numel() < nbytes:
            self._read_B = pinned_bytes(2 * nbytes)
        host = self._read_B[:nbytes].view(values.dtype)
        host.copy_(values, non_blocking=True)
        self.settle()
        numbers: list[int] = host.tolist()
        return numbers

    def settle(self) -> None:
        """Wait until the model's stream has done what it was told, polling meanwhile.

        Raises:
            DeviceError: It failed.
        """
        try:
            self._settled.record()
        except RuntimeError as error:
            raise DeviceError(f"the GPU failed: {reason(error)}") from error
        self.wait_until(self._has_settled)

    def drain(self) -> None:
        """Wait for both streams and the threads, and complete the timings."""
        for stream in self._streams.values():
            stream.drain()
        failures = self._take_failures()
        if failures:
            self.tell(failures)
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            raise DeviceError(f"the GPU failed: {reason(error)}") from error
        for command, nbytes, mark in self._copies:
            self._note_copy(command, nbytes, mark)
        self._copies.clear()
        self.forget_step()
        self.timings.gpu_busy_ns = self.timings.experts_busy_ns
        self.timings.cpu_busy_ns = self._streams["cpu"].busy_ns

    def forget_step(self) -> None:
        """Note how long the step's runs took, and forget what only its commands may name."""
        for command, mark in self._runs:
            self.timings.experts_busy_ns += mark.span_ns()
            self._note_span("gpu", command, mark)
            self._marks.give_back(mark)
        for mark in self._ended:
            self._marks.give_back(mark)
        self._runs, self._ended = [], []
        self._handed = {command.n: mark for command, _, mark in self._copies}
        self._work = None
        self._cpu_experts.forget()

    def close(self) -> None:
        """Let what moves come to rest, end the threads, release the memory."""
        for stream in self._streams.values():
            stream.cancel()
        for stream in self._streams.values():
            stream.join()
        if self._arena_B is None:
            return
        with suppress(RuntimeError):  # where the GPU failed, that was told
            torch.cuda.synchronize(self._device)
        self._streams, self._views, self._handed, self._cpu_runs = {}, {}, {}, {}
        self._copies.clear()
        self._runs, self._ended = [], []
        self._work = None
        self._cpu_experts.forget()
        self._arena_B = None
        if self._had_gc:
            gc.enable()
        torch.cuda.empty_cache()

    def _start_on_cpu(self, command: Run, work: LayerWork) -> None:
        self._cpu_experts.open(work)

        def compute() -> None:
            for expert in command.experts:
                weights = self._store.matrices(expert)
                self._cpu_experts.compute(work, expert % self._experts, weights)

        job = Job(command, compute, ())
        self._cpu_runs[command.n] = (job, command)
        self._streams["cpu"].submit(job)

    def _matrices(self, layer: int, offset_bytes: int) -> Mapping[str, Tensor]:
        """Return the matrices at an offset of the arena; views are made once."""
        key = (self._kind_L[layer], offset_bytes)
        views = self._views.get(key)
        if views is None:
            assert self._arena_B is not None
            views = self._store.layouts[layer].views(self._arena_B, offset_bytes)
            self._views[key] = views
        return views

    def _has_settled(self) -> bool:
        try:
            return bool(self._settled.query())
        except RuntimeError as error:
            raise DeviceError(f"the GPU failed: {reason(error)}") from error

    def _take_failures(self) -> list[Fact]:
        jobs = [*((n, job) for n, (job, _) in self._cpu_runs.items()), *self._asked.jobs()]
        failures, self._failed = self._failed[:1] or failure_of(jobs), []
        return failures

    def _note_copy(self, command: Copy, nbytes: int, mark: Mark) -> None:
        timings = self.timings
        for sums, more in (
            (timings.engine_bytes, nbytes),
            (timings.engine_copies, 1),
            (timings.engines_busy_ns, mark.span_ns()),
        ):
            sums["h2d"] = sums.get("h2d", 0) + more
        self._note_span("h2d", command, mark)
        self._ended.append(mark)

    def _note_span(self, resource: str, label: object, mark: Mark) -> None:
        if self.spans is not None:
            began_ns = self._clock_at_origin_ns + Mark(self._origin, mark.began).span_ns()
            self.spans.append((resource, label, began_ns, began_ns + mark.span_ns()))

    def _synchronise_clocks(self) -> None:
        """Note the host's time at an event, from which the others are counted."""
        torch.cuda.synchronize(self._device)
        self._origin.record()
        self._origin.synchronize()
        self._clock_at_origin_ns = self.clock_ns()

    def _look(self) -> None:
        """Note how long the host looked at nothing, in decode."""
        if self._looked_ns:
            now_ns = time.perf_counter_ns() - self._origin_ns
            gap_ns = now_ns - self._looked_ns
            self._looked_ns = now_ns
            self.timings.longest_gap_ns = max(self.timings.longest_gap_ns, gap_ns)
