"""The CUDA driver: experts copied from page-locked memory into an arena in VRAM, beside products.

One stream copies, in the order of the commands; the model's own stream computes. ``after`` becomes
waits between the two, so that the host hands a layer over and goes on. Where another GPU lends
memory (``lent.py``) there is a stream for copies from it and one for copies to it.
"""

import gc
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Self

import torch
from torch import Tensor

from moesim.backends.collector import without_collector
from moesim.backends.drivers.asks import Asks
from moesim.backends.drivers.cuda.copies import Copies, take_ended
from moesim.backends.drivers.cuda.cpu_experts import CpuExperts, leave_cores
from moesim.backends.drivers.cuda.graphed_experts import kernel_layout
from moesim.backends.drivers.cuda.lent import LentMemory
from moesim.backends.drivers.cuda.machine import DeviceError, reason, vram
from moesim.backends.drivers.cuda.products import Products
from moesim.backends.drivers.cuda.spinning import SpinningDriver
from moesim.backends.drivers.cuda.streams import GPU, Job, Journal, Mark, Marks
from moesim.backends.drivers.cuda.transfer import copy_to_device
from moesim.backends.drivers.streams import Stream, failure_of
from moesim.backends.experts import LayerWork
from moesim.backends.means import H2D, PEER, PEER_OUT, Way, named
from moesim.backends.store import ExpertStore, Layout
from moesim.simulator.controller import Controller
from moesim.simulator.errors import ProtocolError
from moesim.simulator.messages import Ask, Copy, Fact, Failed, Report, Run
from moesim.simulator.terms import ALL

SHORT_SLEEP_S = 50e-6
"""Lent to the threads of CPU experts and asks; without them the host never sleeps."""


class CudaDriver(SpinningDriver):
    """Offloading between page-locked host memory and one GPU.

    Args:
        controller: What decides.
        store: The experts, page-locked.
        budget_bytes: Size of the arena.
        keep_spans: Whether to note every job for a timeline.

    Raises:
        UnavailableError: There is no GPU.
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
        self.spans = [] if keep_spans else None
        self._store = store
        self._experts = store.parts.experts
        self._arena_B: Tensor | None = vram(budget_bytes, self.device)
        self._sources = [
            store.blob(expert).data_ptr() for expert in range(self._experts * len(store.sizes_L))
        ]
        self.layout = kernel_layout(store)
        self._products: Products | None = Products(store, self._arena_B, self.layout)
        self._marks = Marks()
        self._journal = Journal(self.spans, self.clock_ns, self.timings, self._marks)
        self._lent: LentMemory | None = None
        engines = [H2D]
        if self.lent is not None:
            lender = self.lent.place.device
            self._lent = LentMemory(self._arena_B, self.lent.room_bytes, lender)
            engines += [PEER, PEER_OUT]
        self._engines = {
            name: Copies(name, self._marks, self._journal, self.timings) for name in engines
        }
        self._copies = self._engines[H2D]
        # Copies and runs that a command may name; None stands for a run without events so far.
        self._handed: dict[int, Mark | None] = {}
        self._runs: list[Job] = []  # of the step, on the GPU
        self._lone: list[Mark] = []  # of runs without events, that a command named
        self._failed: list[Fact] = []  # what could not even be handed over
        self._bell = threading.Event()
        self._streams = {
            name: Stream(name, self.clock_ns, self._bell, self.spans, leave_cores)
            for name in ("cpu", "asks")
        }
        self._asked = Asks(controller, self._streams["asks"])
        self._cpu_experts = CpuExperts(store, self._streams["cpu"], self.take)
        self._work: LayerWork | None = None
        self._still = ExitStack()

    def __enter__(self) -> Self:
        """Keep the collector out of the loop until ``close``."""
        self._still.enter_context(without_collector())
        return self

    def copy_bytes(self, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
        """Have a stretch of one expert's blob moved into the arena, in the copy stream."""
        arena_B = self._arena_B
        assert arena_B is not None
        begin, end = stretch
        nbytes = end - begin
        if not 0 <= offset_bytes <= len(arena_B) - nbytes:
            raise ProtocolError(f"expert {expert} has no room at byte {offset_bytes} of the arena")
        to = arena_B.data_ptr() + offset_bytes
        source = self._sources[expert] + begin
        copy_to_device(to, source, nbytes, self._copies.stream.cuda_stream)

    def place(self, expert: int, offset_bytes: int) -> None:
        """Put an expert into the arena before time zero."""
        try:
            self.copy_bytes(expert, self.stretch(expert, ALL), offset_bytes)
            self._copies.stream.synchronize()
        except RuntimeError as error:
            raise DeviceError(f"the GPU failed: {reason(error)}") from error

    def place_in_lent(self, expert: int, offset_bytes: int) -> None:
        """Put an expert into another GPU's memory before time zero."""
        lent, blob_B = self._lent, self._store.blob(expert)
        assert lent is not None
        self.ask_gpu(lambda: lent.place(blob_B, offset_bytes))

    def open_layer(self, work: LayerWork) -> None:
        """Take in what the runs of the coming layer compute on."""
        work.pieces = self._store.pieces
        self._work = work
        assert self._products is not None
        self._products.open(work)

    def start_copy(self, command: Copy, offset_bytes: int) -> None:
        """Hand a copy to the copy stream."""
        expert = command.expert
        begin, end = stretch = self.stretch(expert, command.part)
        self._hand_over(
            command,
            self._copies,
            end - begin,
            lambda: self.copy_bytes(expert, stretch, offset_bytes),
        )

    def start_lent_copy(self, command: Copy, way: Way) -> None:
        """Hand a copy to the stream of copies from another GPU, or to it."""
        begin, end = self.stretch(command.expert, command.part)
        lent, engine, nbytes = self._lent, self._engines[way.engine], end - begin
        assert lent is not None
        self._hand_over(command, engine, nbytes, lambda: lent.move(way, nbytes, engine.stream))

    def _hand_over(
        self, command: Copy, engine: Copies, nbytes: int, move: Callable[[], None]
    ) -> None:
        try:
            self._handed[command.n] = engine.start(
                command, nbytes, self.marks_of(command.after), move
            )
        except (RuntimeError, OSError) as error:
            self._failed.append(Failed(command.n, reason(error)))

    def start_run(self, command: Run, offsets_bytes: Sequence[int]) -> None:
        """Launch a run's products, or hand it to the CPU's thread."""
        work = self._work
        assert work is not None
        if command.device.kind == "cpu":
            self._cpu_experts.start(command, work)
            return
        mark, stream = self._marks.take(), self.stream
        try:
            for earlier in self.marks_of(command.after):
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
        assert self._products is not None
        self._products.compute(command, work, offsets_bytes, self.part_of(command))

    def part_of(self, command: Run) -> Layout:
        """Return how what a run computes is laid out: experts, or parts of them."""
        expert = command.experts[0]
        layout = self._store.layouts[expert // self._experts]
        return layout.part(*self.stretch(expert, command.part))

    def take(self, work: LayerWork, expert: int, rows_SD: Tensor) -> None:
        """Take in products of the CPU, which the GPU reads where they are."""
        assert self._products is not None
        self._products.take(work, expert, rows_SD)

    def merge(self, work: LayerWork) -> Tensor:
        """Return a layer's result."""
        assert self._products is not None
        return self._products.merge(work)

    def start_ask(self, command: Ask) -> None:
        """Hand an ask to the thread that answers."""
        self._asked.start(command)

    def await_results(self) -> None:
        """Wait for nothing: what follows waits on the GPU, and the CPU's runs have ended before."""
        if self._failed:
            self.tell([*self._take_failures()])

    def has_results(self) -> bool:
        """Return True, as ``await_results`` says."""
        return True

    def poll(self) -> list[Report]:
        """Return all that has ended and was not reported, and whatever failed."""
        self.look()
        facts: list[Report] = []
        if self._failed or self._cpu_experts or self._asked:
            facts += self._take_failures()
        if len(self._engines) > 1:
            facts += take_ended(self._engines.values())
        elif self._copies:
            facts += self._copies.take_ended()
        if self._cpu_experts:
            facts += self._cpu_experts.take_ended()
        if self._asked:
            for answer in self._asked.take():
                facts.append(answer)
                self.answered()
        return facts

    def watch(self) -> None:
        """Let the next end of a thread's job ring the bell."""
        self._bell.clear()

    def sleep(self) -> None:
        """Spin, read what ended; lend the interpreter only to threads that have work."""
        self._journal.read_one()
        if self._cpu_experts or self._asked:
            self._bell.wait(SHORT_SLEEP_S)
        self.look()

    def drain(self) -> None:
        """Wait for all streams and the threads, and complete the timings."""
        for stream in self._streams.values():
            stream.drain()
        failures = self._take_failures()
        if failures:
            self.tell([*failures])
        self.ask_gpu(torch.cuda.synchronize)
        for engine in self._engines.values():
            engine.drain()
        self.forget_step()
        self._journal.read_all()
        self.timings.gpu_busy_ns = self.timings.experts_busy_ns
        self.timings.cpu_busy_ns = self._streams["cpu"].busy_ns

    def forget_step(self) -> None:
        """Note the step's runs, and forget what only its commands may name."""
        self._journal.note(GPU, self._runs)
        for mark in self._lone:
            self._marks.give_back(mark)
        self._runs, self._lone = [], []
        self._handed = {}
        for engine in self._engines.values():
            self._handed |= engine.forget_step()
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
            torch.cuda.synchronize(self.device)
        self.let_go()
        self._still.close()
        # What a cycle still holds would go to torch's cache after it was emptied, and the next
        # small thing that is put there would keep all of it.
        gc.collect()
        torch.cuda.empty_cache()

    def let_go(self) -> None:
        """Forget whatever holds memory of the GPU, once all is at rest."""
        self._streams, self._handed = {}, {}
        for engine in self._engines.values():
            engine.abandon()
        self._cpu_experts.abandon()
        self._runs = []
        self._work = self._products = self._arena_B = self._lent = None

    def marks_of(self, numbers: Sequence[int]) -> list[Mark]:
        """Return the events of what was handed over under these numbers."""
        if not numbers:
            return []
        return [
            mark or self._mark_now(n)
            for n, mark in zip(numbers, named(self._handed, numbers), strict=True)
        ]

    def _mark_now(self, number: int) -> Mark:
        """Return an event after a run that has none, and after what was launched since."""
        mark = self._handed[number] = self._marks.take()
        mark.ended.record(self.stream)
        self._lone.append(mark)
        return mark

    def _take_failures(self) -> list[Fact]:
        jobs = [*self._cpu_experts.jobs(), *self._asked.jobs()]
        failures, self._failed = self._failed[:1] or failure_of(jobs), []
        return failures
