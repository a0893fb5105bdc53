"""How a captured layer's experts are computed: by kernels in graphs, or by torch beside them.

Where experts are split each part has a graph of its own; one whose size is new is captured when it
is first launched.
"""

from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from moesim.backends.drivers.cuda.grouped_experts import GroupedExperts, most_parts
from moesim.backends.drivers.cuda.pinned import mapped, pinned_bytes, words
from moesim.backends.drivers.cuda.streams import new_stream
from moesim.backends.experts import LayerWork
from moesim.backends.formats import FORMATS
from moesim.backends.layouts import ExpertLayout
from moesim.backends.row_layouts import RowLayout
from moesim.backends.store import ExpertStore
from moesim.simulator.errors import CapabilityError

# T tokens, K chosen, S = T x K rows in (token, rank) order, P partial rows, N ring entries,
# I intermediate dimension, D width.

RING = 64
"""Launches that may be under way at once for one token: at most one for each of its experts."""


class TorchExperts:
    """Products by torch between the pieces, for experts that no kernel reads.

    Args:
        pieces: Rows of each product.
    """

    def __init__(self, pieces: int = 1) -> None:
        self._pieces = pieces

    def cut(self, layer: int, work: LayerWork) -> None:
        """Make room for the rows, which every replay adds up."""
        del layer
        work.pieces = self._pieces
        work.rows_PSD.zero_()

    def merge(self, layer: int, work: LayerWork, out_TD: Tensor) -> None:
        """Have the products added by the next piece."""
        del layer
        out_TD.copy_(work.merge())

    def finish(self) -> None:
        """Capture nothing more."""


class KernelExperts:
    """Products by our kernels: one graph for each layer, launched for whatever has arrived.

    Args:
        arena_B: All that may hold an expert.
        layout: Of every expert.
        top_k: Experts that a token uses.
        rows: Tokens of a step; a layer of them may take a launch for each of its choices.
        parts_of: What is launched of a layer's experts by itself; by default all of them.
    """

    times_itself = True

    def __init__(
        self,
        arena_B: Tensor,
        layout: ExpertLayout,
        top_k: int,
        rows: int = 1,
        parts_of: Callable[[int], Sequence[ExpertLayout]] | None = None,
    ) -> None:
        # Here, not above: they need triton, which has no wheel for every machine.
        from moesim.backends.drivers.cuda.kernels import decode, merge, timing  # noqa: PLC0415

        self._decode, self._merge, self._timing = decode, merge, timing
        device = arena_B.device
        self._arena_B = arena_B
        self._layout = layout
        count = rows * top_k
        self._ring = max(RING, (count + 1) * most_parts(layout))
        self._ring_NS = pinned_bytes(self._ring * count * 8).view(torch.long).view(-1, count)
        self._entries = words(self._ring_NS)
        self._seen_NS = mapped(self._ring_NS)
        self._launches_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._began_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._busy_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._offsets_S = torch.full((count,), -1, dtype=torch.long, device=device)
        self._activation_SI = torch.empty(count, layout.intermediate, device=device)
        self._rows_PSD = torch.zeros(layout.pieces, count, layout.width, device=device)
        self._works: list[LayerWork] = []
        self._parts_of = parts_of or (lambda _: (layout,))
        self._graphs: dict[tuple[int, int, int], torch.cuda.CUDAGraph] = {}
        self._compiled: set[tuple[int, int]] = set()
        self._number: dict[int, int] = {}
        self._launched = 0

    def cut(self, layer: int, work: LayerWork) -> None:
        """Keep a layer's inputs, and compile what is captured later."""
        for part in self._parts_of(layer):
            self._compile(work, part)
        if layer == 0:
            self.merge(layer, work, torch.empty_like(work.hidden_TD))
        self._number[id(work)] = layer
        self._works.append(work)

    def merge(self, layer: int, work: LayerWork, out_TD: Tensor) -> None:
        """Have the rows weighted and added by the next piece."""
        del layer
        self._merge.merge_rows(self._rows_PSD, work.gates_TK.contiguous(), out_TD)

    def finish(self) -> None:
        """Capture one graph of products for each part of each layer."""
        for layer in range(len(self._works)):
            for part in self._parts_of(layer):
                self._capture(layer, part)
        torch.cuda.synchronize()
        self._launched = int(self._launches_1)
        self._busy_1.zero_()

    def has(self, work: LayerWork) -> bool:
        """Return whether a layer is a captured one."""
        return id(work) in self._number

    def open(self, work: LayerWork) -> None:
        """Need nothing: the graphs know their inputs."""

    def busy_ns(self) -> int:
        """Return how long all launches took on the GPU; waits for them."""
        return int(self._busy_1)

    def run(
        self,
        work: LayerWork,
        experts: Sequence[int],
        offsets_bytes: Sequence[int],
        tokens: Sequence[int] = (),
        part: ExpertLayout | None = None,
    ) -> None:
        """Launch experts of a captured layer, counted within it; of split ones a part."""
        del tokens
        layer, part = self._number[id(work)], part or self._layout
        graph = self._graphs.get((layer, part.first_piece, part.pieces))
        if graph is None:
            graph = self._capture_late(layer, part)
        if experts == work.choices:
            entry = array("q", offsets_bytes)
        else:
            place = dict(zip(experts, offsets_bytes, strict=True))
            entry = array("q", [place.get(expert, -1) for expert in work.choices])
        self._post(entry)
        graph.replay()

    def take(self, work: LayerWork, expert: int, rows_SD: Tensor) -> None:
        """Take in products of a captured layer from elsewhere."""
        place = work.positions[expert]
        if self._layout.pieces > 1:
            self._rows_PSD[1:, place] = 0
        if isinstance(place, slice):
            self._rows_PSD[0, place].copy_(rows_SD[place])
        else:
            self._rows_PSD[0, place] = rows_SD[place].float()

    def _post(self, entry: "array[int]") -> None:
        """Write what the next launch reads."""
        begin = self._launched % self._ring * len(entry)
        self._entries[begin : begin + len(entry)] = entry
        self._launched += 1

    def _compile(self, work: LayerWork, part: ExpertLayout) -> None:
        """Have a part's kernels there before they are captured, by launching them once."""
        if (part.first_piece, part.pieces) not in self._compiled:
            self._compiled.add((part.first_piece, part.pieces))
            self._launch(work, part)

    def _capture(self, layer: int, part: ExpertLayout) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        self._launch(self._works[layer], part)
        graph.capture_end()
        self._graphs[layer, part.first_piece, part.pieces] = graph
        return graph

    def _capture_late(self, layer: int, part: ExpertLayout) -> torch.cuda.CUDAGraph:
        """Capture a part whose size is new since the model was captured."""
        stream = new_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            if (part.first_piece, part.pieces) not in self._compiled:
                # The launch that compiles finds nothing to compute.
                self._post(array("q", [-1]) * self._ring_NS.shape[1])
                self._compile(self._works[layer], part)
            torch.cuda.synchronize()
            graph = self._capture(layer, part)
        torch.cuda.current_stream().wait_stream(stream)
        return graph

    def _launch(self, work: LayerWork, part: ExpertLayout) -> None:
        self._merge.fetch_offsets(self._seen_NS, self._launches_1, self._offsets_S, self._began_1)
        self._decode.decode_experts(
            work.hidden_TD,
            self._arena_B,
            self._offsets_S,
            part,
            self._activation_SI,
            self._rows_PSD,
        )
        self._timing.add_elapsed(self._began_1, self._busy_1)


class GroupedRows:
    """Products of many rows beside their graphs, for layers in which tokens share experts.

    Args:
        arena_B: All that may hold an expert.
        layout: Of every expert.
        experts: Of a layer.
    """

    times_itself = False

    def __init__(self, arena_B: Tensor, layout: ExpertLayout, experts: int) -> None:
        from moesim.backends.drivers.cuda.kernels import merge  # noqa: PLC0415  as above

        self._merge = merge
        self._grouped = GroupedExperts(arena_B, layout, experts)

    def cut(self, layer: int, work: LayerWork) -> None:
        """Make room for the rows, and compile what is launched between the pieces."""
        if layer:
            return
        self._grouped.open(work)
        self._grouped.run([0], [1], [0])
        self._grouped.rows_PSD.zero_()
        self.merge(layer, work, torch.empty_like(work.hidden_TD))

    def merge(self, layer: int, work: LayerWork, out_TD: Tensor) -> None:
        """Have the rows weighted and added by the next piece."""
        del layer
        self._merge.merge_rows(self._grouped.rows_PSD, work.gates_TK.contiguous(), out_TD)

    def finish(self) -> None:
        """Capture nothing more."""

    def open(self, work: LayerWork) -> None:
        """Sort a layer's rows; what was launched for the layer before has ended."""
        self._grouped.open(work)

    def run(
        self,
        work: LayerWork,
        experts: Sequence[int],
        offsets_bytes: Sequence[int],
        tokens: Sequence[int],
        part: ExpertLayout | None = None,
    ) -> None:
        """Launch experts of the open layer, counted within it; of split ones a part."""
        del work
        self._grouped.run(experts, tokens, offsets_bytes, part)

    def take(self, work: LayerWork, expert: int, rows_SD: Tensor) -> None:
        """Take in products of the open layer from elsewhere."""
        self._grouped.take(work, expert, rows_SD)


def kernel_layout(store: ExpertStore) -> ExpertLayout | None:
    """Return how our kernels read a store's experts, or None where they do not."""
    blob = store.layouts[0]
    if len(set(store.layouts)) != 1:
        return None
    for layer in store.parts.layers:
        module: Any = layer.experts
        if module.is_transposed or not _is_silu(module):
            return None
    if isinstance(blob, RowLayout):
        return blob.rows
    if [matrix.name for matrix in blob.matrices] != ["gate_up_proj", "down_proj"]:
        return None
    gate_up, down = blob.matrices
    form = next((known for known in FORMATS.values() if known.codes == gate_up.dtype), None)
    layout: ExpertLayout | None = None
    if form is not None and form.scales is None:
        with suppress(CapabilityError):
            width, intermediate = down.shape
            made = ExpertLayout.make("by-matrix", form, width=width, intermediate=intermediate)
            if made.blob_bytes <= blob.blob_bytes and made.down.begin_bytes == down.begin_bytes:
                layout = made
    return layout


def _is_silu(module: Any) -> bool:  # noqa: ANN401  an experts module of any family
    """Whether a module's gating is what the kernels compute."""
    sample = torch.linspace(-3.0, 3.0, 8)
    gate, up = sample.chunk(2)
    gated: Tensor = module._apply_gate(sample)  # noqa: SLF001  the family's own
    return torch.allclose(gated, silu(gate) * up)
