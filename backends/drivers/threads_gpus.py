"""Several GPUs played by the CPU: each has memory of its own, and threads for link and products.

An expert is copied to its home and runs there. What it runs on, the layer's inputs, is copied to
each GPU but the first once its first run of the layer is handed over, and its products are copied
back when the layer is; the exchange has a thread for each sending GPU, as its engine has in a
replay.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from moesim.backends.drivers.streams import Job
from moesim.backends.drivers.threads import CPU, ThreadsDriver
from moesim.backends.experts import LayerWork
from moesim.backends.means import H2D, named
from moesim.backends.several import rooms_of
from moesim.backends.store import ExpertStore, make_arena
from moesim.simulator.controller import Controller
from moesim.simulator.ledger import GpuTimings
from moesim.simulator.messages import Copy, Run
from moesim.simulator.terms import ALL


class _Far:
    """A GPU other than the first.

    Attributes:
        arena_B: Its memory.
        sent: What takes the open layer's inputs there; None as long as nothing runs.
        work: The open layer there, once that has ended.
        runs: What runs there.
    """

    def __init__(self, arena_B: Tensor) -> None:
        self.arena_B = arena_B
        self.forget()

    def forget(self) -> None:
        """Forget the open layer."""
        self.sent: Job | None = None
        self.work: LayerWork | None = None
        self.runs: list[tuple[Run, Job]] = []


class GpusThreadsDriver(ThreadsDriver):
    """Offloading between the host's memory and that of several GPUs, all of one machine's.

    Args:
        controller: What decides.
        store: The experts.
        budget_bytes: Room for experts on all GPUs together.
        options: As for `ThreadsDriver`.
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
        self._far = {
            gpu: _Far(make_arena(room_bytes, CPU)) for gpu, room_bytes in enumerate(rooms_G) if gpu
        }
        self._exchanged_G = [0] * len(rooms_G)
        names = [_exchange(0)]
        for gpu in self._far:
            names += [_link(gpu), _gpu(gpu), _exchange(gpu)]
        self._streams |= {name: self.new_stream(name) for name in names}
        self._engines += tuple(map(_link, self._far))

    def place(self, expert: int, offset_bytes: int) -> None:
        """Put an expert into its home's memory before time zero."""
        home = self._controller.residency.cache_of(expert).rooms[expert].device
        self.bring(home, expert, self.stretch(expert, ALL), offset_bytes)

    def bring(self, gpu: int, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
        """Move a stretch of an expert into a GPU's memory; runs in the thread of its link."""
        if not gpu:
            self.copy_bytes(expert, stretch, offset_bytes)
            return
        part_B = self._store.blob(expert)[slice(*stretch)]
        self._far[gpu].arena_B[offset_bytes : offset_bytes + len(part_B)].copy_(part_B)

    def start_copy(self, command: Copy, offset_bytes: int) -> None:
        """Hand a copy to the link of the GPU that it goes to."""
        gpu, expert = command.dst.device, command.expert
        begin, end = stretch = self.stretch(expert, command.part)
        self._hand_over(
            command,
            _link(gpu) if gpu else H2D,
            end - begin,
            lambda: self.bring(gpu, expert, stretch, offset_bytes),
        )

    def open_layer(self, work: LayerWork) -> None:
        """Take in what the runs of the coming layer compute on."""
        super().open_layer(work)
        for far in self._far.values():
            far.forget()

    def start_run(self, command: Run, offsets_bytes: Sequence[int]) -> None:
        """Hand a run to the GPU where its experts live."""
        if command.device.kind == "cpu" or not command.device.number:
            super().start_run(command, offsets_bytes)
            return
        work, gpu, experts = self._work, command.device.number, self._experts
        assert work is not None
        far = self._far[gpu]
        if far.sent is None:
            far.sent = self._exchange(0, command.n, lambda: self._send(work, far), ())
        layout = self._store.layouts[command.experts[0] // experts]

        def compute() -> None:
            assert far.work is not None
            for expert, offset in zip(command.experts, offsets_bytes, strict=True):
                far.work.compute(expert % experts, layout.views(far.arena_B, offset))

        job = Job(command, compute, [far.sent, *named(self._jobs, command.after)])
        self._jobs[command.n] = job
        self._layer_jobs.append((command.n, job))
        far.runs.append((command, job))
        self._streams[_gpu(gpu)].submit(job)

    def await_results(self) -> None:
        """Have what was computed elsewhere brought to the first GPU, and wait for all of it."""
        work = self._work
        assert work is not None
        for gpu, far in self._far.items():
            if far.runs:
                last, _ = far.runs[-1]
                jobs = [job for _, job in far.runs]
                self._exchange(gpu, last.n, lambda gpu=gpu: self._collect(work, gpu), jobs)
        super().await_results()

    def drain(self) -> None:
        """Wait for every stream, and read the busy times of each GPU."""
        super().drain()
        timings = self.timings
        for gpu in range(self.gpus):
            link = _link(gpu) if gpu else H2D
            timings.by_gpu.append(
                GpuTimings(
                    gpu_busy_ns=self._streams[_gpu(gpu) if gpu else "gpu"].busy_ns,
                    link_busy_ns=self._streams[link].busy_ns,
                    bytes_copied=timings.engine_bytes.get(link, 0),
                    copies=timings.engine_copies.get(link, 0),
                    exchange_busy_ns=self._streams[_exchange(gpu)].busy_ns,
                    bytes_sent=self._exchanged_G[gpu],
                )
            )

    def close(self) -> None:
        """Cancel what waits, join the threads, release all memory."""
        super().close()
        self._far = {}

    def _exchange(self, src: int, n: int, work: Any, after: Sequence[Job]) -> Job:  # noqa: ANN401
        """Hand over a copy of activations from a GPU, which the layer's results wait for."""
        job = Job(f"activations from GPU {src}", work, after)
        self._layer_jobs.append((n, job))
        self._streams[_exchange(src)].submit(job)
        return job

    def _send(self, work: LayerWork, far: _Far) -> None:
        far.work = work.copied(Tensor.clone)
        self._exchanged_G[0] += work.hidden_TD.nbytes

    def _collect(self, work: LayerWork, gpu: int) -> None:
        far = self._far[gpu]
        assert far.work is not None
        rows_SD = far.work.rows_PSD[0]
        for run, _ in far.runs:
            for expert, tokens in zip(run.experts, run.tokens, strict=True):
                work.take(expert % self._experts, rows_SD)
                self._exchanged_G[gpu] += tokens * rows_SD[0].nbytes


def _link(gpu: int) -> str:
    return f"{H2D} {gpu}"


def _gpu(gpu: int) -> str:
    return f"gpu {gpu}"


def _exchange(gpu: int) -> str:
    return f"exchange {gpu}"
