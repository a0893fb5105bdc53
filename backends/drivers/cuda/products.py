"""How runs of experts in VRAM are computed outside graphs.

A step of many tokens takes one grouped product a run where our kernels read the experts; a single
token, and experts that no kernel reads, take the family's own products, expert by expert. Which it
is depends on the step alone: the two round differently.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from moesim.backends.drivers.cuda.grouped_experts import GroupedExperts
from moesim.backends.experts import LayerWork
from moesim.backends.layouts import ExpertLayout
from moesim.backends.row_layouts import RowLayout
from moesim.backends.store import ExpertStore, Layout
from moesim.simulator.messages import Run


class Products:
    """Computes what runs ask for, in the current stream.

    Args:
        store: The experts.
        arena_B: All that may hold one.
        layout: How our kernels read them, or None where they do not.
    """

    def __init__(self, store: ExpertStore, arena_B: Tensor, layout: ExpertLayout | None) -> None:
        self._store = store
        self._arena_B = arena_B
        self._experts = store.parts.experts
        self._kind_L = [store.layouts.index(each) for each in store.layouts]
        self._views: dict[tuple[int, int], Mapping[str, Tensor]] = {}
        self._grouped = (
            None if layout is None else GroupedExperts(arena_B, layout, store.parts.experts)
        )

    def open(self, work: LayerWork) -> None:
        """Take in a layer; all runs of the layer before have ended."""
        if self._grouped is not None and len(work.hidden_TD) > 1:
            self._grouped.open(work)

    def compute(
        self, command: Run, work: LayerWork, offsets_bytes: Sequence[int], part: Layout
    ) -> None:
        """Launch a run.

        Args:
            command: Whose experts are computed.
            work: The layer that is open.
            offsets_bytes: Where each expert, or its part, lies.
            part: How it is laid out.
        """
        grouped, experts = self._grouped, self._experts
        if grouped is not None and grouped.has(work):
            indices = [expert % experts for expert in command.experts]
            rows = part.rows if isinstance(part, RowLayout) else None
            grouped.run(indices, command.tokens, offsets_bytes, rows)
            return
        for expert, offset in zip(command.experts, offsets_bytes, strict=True):
            layer, index = divmod(expert, experts)
            if isinstance(part, RowLayout):
                weights = part.views(self._arena_B, offset)
            else:
                weights = self._matrices(layer, offset)
            work.compute(index, weights, part.first_piece)

    def take(self, work: LayerWork, expert: int, rows_SD: Tensor) -> None:
        """Take in an expert's products that were computed elsewhere, counted within the layer."""
        if self._grouped is not None and self._grouped.has(work):
            self._grouped.take(work, expert, rows_SD)
        else:
            work.take(expert, rows_SD)

    def rows(self, work: LayerWork) -> Tensor:
        """Return a row for each choice of the layer, of experts that are whole."""
        if self._grouped is not None and self._grouped.has(work):
            return self._grouped.rows_PSD[0]
        return work.rows_PSD[0]

    def merge(self, work: LayerWork) -> Tensor:
        """Return the layer's result."""
        if self._grouped is not None and self._grouped.has(work):
            return self._grouped.merge(work)
        return work.merge()

    def _matrices(self, layer: int, offset_bytes: int) -> Mapping[str, Tensor]:
        """Return the matrices at an offset of the arena; views are made once."""
        key = (self._kind_L[layer], offset_bytes)
        views = self._views.get(key)
        if views is None:
            views = self._store.layouts[layer].views(self._arena_B, offset_bytes)
            self._views[key] = views
        return views
