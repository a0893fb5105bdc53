"""The CUDA driver with decode in graphs: the runtime called ``moesim-graph``.

Prompts go through the model's own forward, as in ``driver.py``. A decode step replays the pieces
of ``captured.py``; its experts are one graph a run where our kernels read them.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from moesim.backends.drivers.cuda.captured import Experts, Look, Pieces
from moesim.backends.drivers.cuda.driver import CudaDriver
from moesim.backends.drivers.cuda.graphed_batch import BatchedDecode
from moesim.backends.drivers.cuda.graphed_experts import GroupedRows, KernelExperts, TorchExperts
from moesim.backends.drivers.cuda.graphs import GraphedDecode
from moesim.backends.drivers.cuda.kernels.tuning import is_for_decode
from moesim.backends.drivers.cuda.machine import reason
from moesim.backends.experts import LayerWork
from moesim.backends.layouts import ExpertLayout
from moesim.backends.models import Model
from moesim.backends.row_layouts import RowLayout
from moesim.backends.store import Layout
from moesim.simulator.control.splits.residency import BOTTOM, TOP
from moesim.simulator.messages import Failed, Run


class GraphDriver(CudaDriver):
    """Offloading on one GPU, with decode captured."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  the base's own
        super().__init__(*arguments, **options)
        self._decode: GraphedDecode | BatchedDecode | None = None
        # What computes each captured layer, by the identity of what the layer computes on.
        self._captured: dict[int, KernelExperts | GroupedRows] = {}

    def decoder(
        self, model: Model, longest: int, look: Look | None = None, batch: int = 1
    ) -> GraphedDecode | BatchedDecode:
        """Capture a model's decode step.

        Args:
            model: Whose experts the store took.
            longest: Tokens of the longest request, prompt and generation.
            look: Looks ahead inside the graphs; None does not.
            batch: The most requests that run together.

        Raises:
            CapabilityError: The family's forward cannot be captured.
        """
        if batch == 1:
            return self.single_decoder(model, longest, look)
        made: dict[int, Experts] = {}

        def make(rows: int) -> Experts:
            made[rows] = self._experts_of(rows)
            return made[rows]

        decode = BatchedDecode(model, self._store.parts, longest, batch, make, look)
        for rows, pieces in decode.sets.items():
            self._keep(made[rows], pieces)
        self._decode = decode
        return decode

    def single_decoder(self, model: Model, longest: int, look: Look | None = None) -> GraphedDecode:
        """Capture the decode step of one request."""
        experts = self._experts_of(1)
        decode = GraphedDecode(model, self._store.parts, longest, experts, look)
        self._keep(experts, decode)
        self._decode = decode
        return decode

    def open_layer(self, work: LayerWork) -> None:
        """Take in a layer; a captured one has its place already."""
        captured = self._captured.get(id(work))
        if captured is None:
            super().open_layer(work)
        else:
            self._work = work
            captured.open(work)

    def start_run(self, command: Run, offsets_bytes: Sequence[int]) -> None:
        """Launch a run; graphs time themselves and need no events but for a timeline."""
        work = self._work
        assert work is not None
        captured = self._captured.get(id(work))
        is_timed = self.spans is not None or command.device.kind == "cpu"
        if captured is None or is_timed or not captured.times_itself:
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
        """Launch a run: a graph or a grouped product in decode, products over slots in a prompt."""
        captured = self._captured.get(id(work))
        if captured is None:
            super().compute(command, work, offsets_bytes)
            return
        experts = self._experts
        indices = [expert % experts for expert in command.experts]
        part = _rows(self.part_of(command)) if self.is_split else None
        captured.run(work, indices, offsets_bytes, command.tokens, part)

    def take(self, work: LayerWork, expert: int, rows_SD: Tensor) -> None:
        """Take in what the CPU computed, where the pieces look for it."""
        captured = self._captured.get(id(work))
        if captured is None:
            super().take(work, expert, rows_SD)
        else:
            captured.take(work, expert, rows_SD)

    def drain(self) -> None:
        """Complete the timings by what the graphs measured."""
        super().drain()
        if self.spans is None:
            for kernels in {id(each): each for each in self._captured.values()}.values():
                if isinstance(kernels, KernelExperts):
                    busy_ns = kernels.busy_ns()
                    self.timings.experts_busy_ns += busy_ns
                    self.timings.gpu_busy_ns += busy_ns

    def let_go(self) -> None:
        """Let go of the graphs too; whoever decoded with them may still hold the decoder."""
        self._captured = {}
        if self._decode is not None:
            self._decode.release()
        self._decode = None
        super().let_go()

    def _experts_of(self, rows: int) -> Experts:
        """Return what computes the experts of so many rows."""
        parts = self._store.parts
        if self.layout is None:
            return TorchExperts(self._store.pieces)
        assert self._arena_B is not None
        if is_for_decode(rows, parts.top_k, parts.experts):
            parts_of = self._parts_of if self.is_split else None
            return KernelExperts(self._arena_B, self.layout, parts.top_k, rows, parts_of)
        return GroupedRows(self._arena_B, self.layout, parts.experts)

    def _parts_of(self, layer: int) -> list[ExpertLayout]:
        """Return the parts of a layer's experts that there are now."""
        layout = self._store.layouts[layer]
        stretches = [self.stretch(layer * self._experts, part) for part in (TOP, BOTTOM)]
        return [_rows(layout.part(*each)) for each in stretches if each[0] < each[1]]

    def _keep(self, experts: Experts, pieces: Pieces) -> None:
        """Note which layers of which pieces our kernels compute."""
        if isinstance(experts, KernelExperts | GroupedRows):
            self._captured |= {id(work): experts for work in pieces.works}


def _rows(layout: Layout) -> ExpertLayout:
    """Return how kernels read a part."""
    assert isinstance(layout, RowLayout)
    return layout.rows
