"""Several GPUs in eager mode: each expert is copied to its home and runs there.

Attention, routers and head are on the first. Another one gets the layer's inputs before its first
run of the layer, and its products come back when the layer is merged: each by a copy between the
two GPUs, before and after which the streams wait for each other and the host for nobody. Every GPU
has a link, a stream, an arena and events of its own.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from moesim.backends.drivers.cuda.copies import Copies
from moesim.backends.drivers.cuda.driver import CudaDriver
from moesim.backends.drivers.cuda.machine import DeviceError, reason, vram
from moesim.backends.drivers.cuda.products import Products
from moesim.backends.drivers.cuda.streams import Job, Journal, Marks, new_stream
from moesim.backends.drivers.cuda.transfer import copy_to_device
from moesim.backends.experts import LayerWork
from moesim.backends.means import H2D
from moesim.backends.several import rooms_of
from moesim.backends.store import ExpertStore
from moesim.simulator.controller import Controller
from moesim.simulator.errors import ProtocolError, UnavailableError
from moesim.simulator.ledger import GpuTimings
from moesim.simulator.messages import Copy, Failed, Run
from moesim.simulator.terms import ALL


class _Far:
    """A GPU other than the first.

    Args:
        driver: Whose experts live there too.
        store: All experts.
        number: Of the GPU, as commands have it.
        device: The GPU.
        room_bytes: Room for experts on it.
    """

    def __init__(
        self,
        driver: "GpusCudaDriver",
        store: ExpertStore,
        number: int,
        device: torch.device,
        room_bytes: int,
    ) -> None:
        self.device = device
        self.name = f"gpu {number}"
        self.arena_B: Tensor = vram(room_bytes, device)
        self.work: LayerWork | None = None  # the open layer, once something runs here
        self.runs: list[Job] = []  # of the step
        self.open_runs: list[Run] = []  # of the open layer
        self.sent_bytes = 0
        with torch.cuda.device(device):
            self.stream = new_stream()
            self.marks = Marks()
            self.journal = Journal(driver.spans, driver.clock_ns, driver.timings, self.marks)
            self.copies = Copies(f"{H2D} {number}", self.marks, self.journal, driver.timings)
            self.products = Products(store, self.arena_B, driver.layout)

    def on(self) -> Any:  # noqa: ANN401  a context of torch without a type
        """Make its stream the one that is launched into."""
        return torch.cuda.stream(self.stream)

    def forget_layer(self) -> None:
        """Forget the open layer."""
        self.work = None
        self.open_runs = []


class GpusCudaDriver(CudaDriver):
    """Offloading between page-locked host memory and several GPUs.

    Args:
        controller: What decides.
        store: The experts, page-locked.
        budget_bytes: Room for experts on all GPUs together.
        options: As for `CudaDriver`.

    Raises:
        UnavailableError: There are not so many GPUs.
        OutOfMemoryError: An arena does not fit.
    """

    computes_on_several = True

    def __init__(
        self,
        controller: Controller,
        store: ExpertStore,
        budget_bytes: int,
        **options: Any,  # noqa: ANN401  the base's own
    ) -> None:
        rooms_G = rooms_of(controller, budget_bytes)
        super().__init__(controller, store, rooms_G[0], **options)
        check_gpus(self.device, len(rooms_G))
        self._sent_bytes = 0
        first = self.device.index or 0
        self._far = {
            gpu: _Far(self, store, gpu, torch.device("cuda", first + gpu), room_bytes)
            for gpu, room_bytes in enumerate(rooms_G)
            if gpu
        }
        self._engines |= {f"{H2D} {gpu}": far.copies for gpu, far in self._far.items()}

    def place(self, expert: int, offset_bytes: int) -> None:
        """Put an expert into its home's memory before time zero."""
        gpu = self._controller.residency.cache_of(expert).rooms[expert].device
        if not gpu:
            super().place(expert, offset_bytes)
            return
        far = self._far[gpu]
        try:
            self._bring(far, expert, self.stretch(expert, ALL), offset_bytes)
            far.copies.stream.synchronize()
        except RuntimeError as error:
            raise DeviceError(f"GPU {gpu} failed: {reason(error)}") from error

    def open_layer(self, work: LayerWork) -> None:
        """Take in what the runs of the coming layer compute on."""
        super().open_layer(work)
        for far in self._far.values():
            far.forget_layer()

    def start_copy(self, command: Copy, offset_bytes: int) -> None:
        """Hand a copy to the copy stream of the GPU that it goes to."""
        gpu, expert = command.dst.device, command.expert
        if not gpu:
            super().start_copy(command, offset_bytes)
            return
        far = self._far[gpu]
        begin, end = stretch = self.stretch(expert, command.part)
        with torch.cuda.device(far.device):
            self._hand_over(
                command,
                far.copies,
                end - begin,
                lambda: self._bring(far, expert, stretch, offset_bytes),
            )

    def start_run(self, command: Run, offsets_bytes: Sequence[int]) -> None:
        """Launch a run on the GPU where its experts live."""
        if command.device.kind == "cpu" or not command.device.number:
            super().start_run(command, offsets_bytes)
            return
        work, far = self._work, self._far[command.device.number]
        assert work is not None
        try:
            with far.on():
                if far.work is None:
                    far.work = self._send(work, far)
                for earlier in self.marks_of(command.after):
                    far.stream.wait_event(earlier.ended)
                mark = far.marks.take()
                mark.began.record(far.stream)
                far.products.compute(command, far.work, offsets_bytes, self.part_of(command))
                mark.ended.record(far.stream)
        except (RuntimeError, OSError) as error:
            self._failed.append(Failed(command.n, reason(error)))
            return
        self._handed[command.n] = mark
        far.runs.append((command, mark))
        far.open_runs.append(command)

    def merge(self, work: LayerWork) -> Tensor:
        """Take in what other GPUs computed, and return the layer's result."""
        for far in self._far.values():
            if far.open_runs:
                self._collect(work, far)
        return super().merge(work)

    def drain(self) -> None:
        """Wait for all streams and the threads, and complete the timings of each GPU."""
        for far in self._far.values():
            self.ask_gpu(far.stream.synchronize)
            self.ask_gpu(far.copies.stream.synchronize)
        super().drain()
        timings, busy_ns = self.timings, self.timings.engines_busy_ns
        for far in self._far.values():
            far.journal.read_all()
        experts_ns = [timings.experts_busy_ns]
        experts_ns += [busy_ns.pop(far.name, 0) for far in self._far.values()]
        sent_bytes = [self._sent_bytes, *(far.sent_bytes for far in self._far.values())]
        for gpu, link in enumerate([H2D, *(f"{H2D} {gpu}" for gpu in self._far)]):
            timings.by_gpu.append(
                GpuTimings(
                    gpu_busy_ns=experts_ns[gpu],
                    link_busy_ns=busy_ns.get(link, 0),
                    bytes_copied=timings.engine_bytes.get(link, 0),
                    copies=timings.engine_copies.get(link, 0),
                    exchange_busy_ns=0,
                    bytes_sent=sent_bytes[gpu],
                )
            )

    def forget_step(self) -> None:
        """Note the step's runs on every GPU, and forget what only its commands may name."""
        for far in self._far.values():
            far.journal.note(far.name, far.runs)
            far.runs = []
            far.forget_layer()
        super().forget_step()

    def close(self) -> None:
        """Let what moves come to rest, end the threads, release the memory of every GPU."""
        for far in self._far.values():
            with suppress(RuntimeError):  # where the GPU failed, that was told
                torch.cuda.synchronize(far.device)
        self._far = {}
        super().close()

    def _bring(self, far: _Far, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
        """Have a stretch of one expert's blob moved into a GPU's arena, in its copy stream."""
        begin, end = stretch
        nbytes = end - begin
        if not 0 <= offset_bytes <= len(far.arena_B) - nbytes:
            raise ProtocolError(f"expert {expert} has no room at byte {offset_bytes} of {far.name}")
        to = far.arena_B.data_ptr() + offset_bytes
        source = self._sources[expert] + begin
        with torch.cuda.device(far.device):
            copy_to_device(to, source, nbytes, far.copies.stream.cuda_stream)

    def _send(self, work: LayerWork, far: _Far) -> LayerWork:
        """Return the open layer on another GPU, where the stream waits for its inputs."""
        sent = work.copied(lambda tensor: tensor.to(far.device, non_blocking=True))
        far.products.open(sent)
        self._sent_bytes += work.hidden_TD.nbytes
        return sent

    def _collect(self, work: LayerWork, far: _Far) -> None:
        """Have another GPU's products brought to the first, whose stream waits for them."""
        assert far.work is not None
        assert self._products is not None
        with far.on():
            rows_SD = far.products.rows(far.work).to(self.device, non_blocking=True)
        with torch.cuda.device(self.device):
            for run in far.open_runs:
                for expert in run.experts:
                    self._products.take(work, expert % self._experts, rows_SD)
        far.sent_bytes += rows_SD.nbytes


def check_gpus(device: torch.device, gpus: int) -> None:
    """Refuse a machine that has not so many GPUs from this one on.

    Raises:
        UnavailableError: It has fewer.
    """
    count = torch.cuda.device_count() - (device.index or 0)
    if gpus > count:
        raise UnavailableError(
            f"--gpus {gpus}: this machine has {count}; take fewer, or --backend cpu, which plays "
            "them in memory"
        )
