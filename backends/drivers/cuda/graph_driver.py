"""The CUDA driver with decode in graphs: the runtime called ``moesim-graph``.

Prompts go through the model's own forward, as in ``driver.py``. A decode step replays the pieces
of ``graphs.py``; its experts are one graph a run where our kernels read them.
"""

from collections.abc import Sequence

from torch import Tensor

from moesim.backends.drivers.cuda.driver import CudaDriver
from moesim.backends.drivers.cuda.graphed_experts import KernelExperts, TorchExperts
from moesim.backends.drivers.cuda.graphs import GraphedDecode, Look
from moesim.backends.drivers.cuda.machine import reason
from moesim.backends.experts import LayerWork
from moesim.backends.models import Model
from moesim.simulator.messages import Failed, Run


class GraphDriver(CudaDriver):
    """Offloading on one GPU, with decode captured."""

    _kernels: KernelExperts | None = None
    _graphs: GraphedDecode | None = None

    def decoder(self, model: Model, longest: int, look: Look | None = None) -> GraphedDecode:
        """Capture a model's decode step.

        Args:
            model: Whose experts the store took.
            longest: Tokens of the longest request, prompt and generation.
            look: Looks ahead inside the graphs; None does not.

        Raises:
            CapabilityError: The family's forward cannot be captured.
        """
        parts = self._store.parts
        if self.layout is not None:
            assert self._arena_B is not None
            self._kernels = KernelExperts(self._arena_B, self.layout, parts.top_k)
        self._graphs = GraphedDecode(model, parts, longest, self._kernels or TorchExperts(), look)
        return self._graphs

    def open_layer(self, work: LayerWork) -> None:
        """Take in a layer; a captured one has its place already."""
        if self._is_captured(work):
            self._work = work
        else:
            super().open_layer(work)

    def start_run(self, command: Run, offsets_bytes: Sequence[int]) -> None:
        """Launch a run; graphs time themselves and need no events but for a timeline."""
        work = self._work
        assert work is not None
        is_timed = self.spans is not None or command.device.kind == "cpu"
        if is_timed or not self._is_captured(work):
            super().start_run(command, offsets_bytes)
            return
        try:
            for earlier in self.marks_of(command.after):
                self.stream.wait_event(earlier.ended)
            self.compute(command, work, offsets_bytes)
        except (RuntimeError, OSError) as error:
            self._failed.append(Failed(command.n, reason(error)))
            return
        self._handed[command.n] = None

    def compute(self, command: Run, work: LayerWork, offsets_bytes: Sequence[int]) -> None:
        """Launch a run: one graph in decode, products over the slots in a prompt."""
        if self._kernels is not None and self._kernels.has(work):
            experts = self._experts
            indices = [expert % experts for expert in command.experts]
            self._kernels.run(work, indices, offsets_bytes)
        else:
            super().compute(command, work, offsets_bytes)

    def take(self, work: LayerWork, expert: int, rows_SD: Tensor) -> None:
        """Take in what the CPU computed, where the pieces look for it."""
        if self._kernels is not None and self._kernels.has(work):
            self._kernels.take(work, expert, rows_SD)
        else:
            super().take(work, expert, rows_SD)

    def drain(self) -> None:
        """Complete the timings by what the graphs measured."""
        super().drain()
        if self._kernels is not None and self.spans is None:
            busy_ns = self._kernels.busy_ns()
            self.timings.experts_busy_ns += busy_ns
            self.timings.gpu_busy_ns += busy_ns

    def close(self) -> None:
        """Release graphs and their memory with all else."""
        self._kernels = self._graphs = None
        super().close()

    def _is_captured(self, work: LayerWork) -> bool:
        return self._kernels is not None and self._kernels.has(work)
