"""The CUDA driver with decode in graphs: the runtime called ``moesim-graph``.

Prompts go through the model's own forward, as in ``driver.py``. A decode step replays the pieces
of ``graphs.py``; its experts are one graph a run where our kernels read them.
"""

from collections.abc import Sequence

from torch import Tensor

from moesim.backends.drivers.cuda.driver import CudaDriver
from moesim.backends.drivers.cuda.graphed_experts import KernelExperts, TorchExperts, kernel_layout
from moesim.backends.drivers.cuda.graphs import GraphedDecode
from moesim.backends.experts import LayerWork
from moesim.backends.models import Model
from moesim.simulator.messages import Run


class GraphDriver(CudaDriver):
    """Offloading on one GPU, with decode captured."""

    _kernels: KernelExperts | None = None
    _graphs: GraphedDecode | None = None

    def decoder(self, model: Model, longest: int) -> GraphedDecode:
        """Capture a model's decode step.

        Args:
            model: Whose experts the store took.
            longest: Tokens of the longest request, prompt and generation.

        Raises:
            CapabilityError: The family's forward cannot be captured.
        """
        parts = self._store.parts
        layout = kernel_layout(self._store)
        if layout is not None:
            assert self._arena_B is not None
            self._kernels = KernelExperts(self._arena_B, layout, parts.top_k)
        self._graphs = GraphedDecode(model, parts, longest, self._kernels or TorchExperts())
        return self._graphs

    def compute(self, command: Run, work: LayerWork, offsets_bytes: Sequence[int]) -> None:
        """Launch a run: one graph in decode, the model's own products in a prompt."""
        if self._kernels is not None:
            experts = [expert % self._experts for expert in command.experts]
            if self._kernels.run(work, experts, offsets_bytes):
                return
        super().compute(command, work, offsets_bytes)

    def take(self, work: LayerWork, expert: int, rows_SD: Tensor) -> None:
        """Take in what the CPU computed, where the pieces look for it."""
        if self._kernels is None or not self._kernels.take(work, expert, rows_SD):
            super().take(work, expert, rows_SD)

    def close(self) -> None:
        """Release graphs and their memory with all else."""
        self._kernels = self._graphs = None
        super().close()
