"""How a captured layer's experts are computed: by kernels in graphs, or by torch beside them."""

from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from moesim.backends.drivers.cuda.pinned import mapped, pinned_bytes, words
from moesim.backends.experts import LayerWork
from moesim.backends.formats import FORMATS
from moesim.backends.layouts import ExpertLayout
from moesim.backends.store import ExpertStore
from moesim.simulator.errors import CapabilityError

# T tokens, K chosen, S = T x K rows in (token, rank) order, P partial rows, N ring entries,
# I intermediate dimension, D width.

RING = 64
"""Launches that may be under way at once; a layer has at most one for each expert of a token."""


class TorchExperts:
    """Products by torch between the pieces, for experts that no kernel reads."""

    def cut(self, layer: int, work: LayerWork) -> None:
        """Make room for the rows, which every replay adds up."""
        del layer
        work.rows_SD.zero_()

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
    """

    def __init__(self, arena_B: Tensor, layout: ExpertLayout, top_k: int) -> None:
        # Here, not above: they need triton, which has no wheel for every machine.
        from moesim.backends.drivers.cuda.kernels import decode, merge, timing  # noqa: PLC0415

        self._decode, self._merge, self._timing = decode, merge, timing
        device = arena_B.device
        self._arena_B = arena_B
        self._layout = layout
        self._ring_NS = pinned_bytes(RING * top_k * 8).view(torch.long).view(RING, top_k)
        self._entries = words(self._ring_NS)
        self._seen_NS = mapped(self._ring_NS)
        self._launches_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._began_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._busy_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._offsets_S = torch.full((top_k,), -1, dtype=torch.long, device=device)
        self._activation_SI = torch.empty(top_k, layout.intermediate, device=device)
        self._rows_PSD = torch.zeros(layout.pieces, top_k, layout.width, device=device)
        self._works: list[LayerWork] = []
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._number: dict[int, int] = {}
        self._launched = 0

    def cut(self, layer: int, work: LayerWork) -> None:
        """Keep a layer's inputs, and compile what is captured later."""
        if layer == 0:
            self._launch(work)
            self.merge(layer, work, torch.empty_like(work.hidden_TD))
        self._number[id(work)] = layer
        self._works.append(work)

    def merge(self, layer: int, work: LayerWork, out_TD: Tensor) -> None:
        """Have the rows weighted and added by the next piece."""
        del layer
        self._merge.merge_rows(self._rows_PSD, work.gates_TK.contiguous(), out_TD)

    def finish(self) -> None:
        """Capture one graph of products for each layer."""
        for work in self._works:
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(capture_error_mode="thread_local")
            self._launch(work)
            graph.capture_end()
            self._graphs.append(graph)
        torch.cuda.synchronize()
        self._launched = int(self._launches_1)
        self._busy_1.zero_()

    def has(self, work: LayerWork) -> bool:
        """Return whether a layer is a captured one."""
        return id(work) in self._number

    def busy_ns(self) -> int:
        """Return how long all launches took on the GPU; waits for them."""
        return int(self._busy_1)

    def run(self, work: LayerWork, experts: Sequence[int], offsets_bytes: Sequence[int]) -> None:
        """Launch experts of a captured layer, counted within it."""
        layer = self._number[id(work)]
        if experts == work.choices:
            entry = array("q", offsets_bytes)
        else:
            place = dict(zip(experts, offsets_bytes, strict=True))
            entry = array("q", [place.get(expert, -1) for expert in work.choices])
        begin = self._launched % RING * len(entry)
        self._entries[begin : begin + len(entry)] = entry
        self._launched += 1
        self._graphs[layer].replay()

    def take(self, work: LayerWork, expert: int, rows_SD: Tensor) -> None:
        """Take in products of a captured layer from elsewhere."""
        place = work.positions[expert]
        if self._layout.pieces > 1:
            self._rows_PSD[1:, place] = 0
        self._rows_PSD[0, place].copy_(rows_SD[place])

    def _launch(self, work: LayerWork) -> None:
        self._merge.fetch_offsets(self._seen_NS, self._launches_1, self._offsets_S, self._began_1)
        self._decode.decode_experts(
            work.hidden_TD,
            self._arena_B,
            self._offsets_S,
            self._layout,
            self._activation_SI,
            self._rows_PSD,
        )
        self._timing.add_elapsed(self._began_1, self._busy_1)


def kernel_layout(store: ExpertStore) -> ExpertLayout | None:
    """Return how our kernels read a store's experts, or None where they do not."""
    blob = store.layouts[0]
    names = [matrix.name for matrix in blob.matrices]
    if names != ["gate_up_proj", "down_proj"] or len(set(store.layouts)) != 1:
        return None
    for layer in store.parts.layers:
        module: Any = layer.experts
        if module.is_transposed or not _is_silu(module):
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
