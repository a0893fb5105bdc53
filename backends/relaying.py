"""Change how a store's experts are laid out: the layout belongs to the system that runs.

Made-up weights mean nothing: where both layouts have blobs of one size the same bytes are read the
other way, at no cost. Real weights are copied once into a second store beside the first, if host
memory does for both; else layer by layer into new memory while the old is let go, and again each
time the layout changes.
"""

from collections.abc import Callable

from torch import Tensor

from moesim.backends.calibration.fingerprint import free_ram_bytes, ram_bytes
from moesim.backends.row_layouts import RowLayout
from moesim.backends.store import ExpertStore, Layout, Layouts, chosen, make_room
from moesim.simulator.errors import CapabilityError

# E experts of a layer, B bytes of a blob, I intermediate dimension, D width.

MOST_OF_FREE = 0.8
"""Share of the free host memory that a second store may take."""


class Relaying:
    """A store whose layout can change between two runs.

    Args:
        store: What is laid out; it keeps its identity.
        room_bytes: Tells how much host memory is left for a second store.
    """

    def __init__(
        self, store: ExpertStore, room_bytes: Callable[[ExpertStore], int] | None = None
    ) -> None:
        self._store = store
        self._room_bytes = room_bytes or _room_left
        self._kept: dict[bool, list[Tensor]] = {}

    def is_free(self) -> bool:
        """Return whether layouts can take turns at no cost, once both were there."""
        if isinstance(self._store.ways[True], CapabilityError):
            return True  # whoever splits them is refused
        return self._shares_bytes() or bool(self._kept) or self._has_room()

    def lay(self, *, by_row: bool) -> None:
        """Lay the store out so, unless it is; nothing may run from it meanwhile.

        Raises:
            CapabilityError: The experts cannot be split.
            OutOfMemoryError: Host memory does not do for it.
        """
        store = self._store
        if store.by_row == by_row:
            return
        layouts = chosen(store.ways, by_row=by_row)
        if not self._shares_bytes():
            known = self._kept.pop(by_row, None)
            if known is None and not self._has_room():
                _convert(store, layouts, store.layers_EB)
            else:
                now_EB = [*store.layers_EB] if known is None else known
                if known is None:
                    _convert(store, layouts, now_EB)
                self._kept[store.by_row] = store.layers_EB
                store.layers_EB = now_EB
        store.layouts, store.by_row = layouts, by_row

    def _shares_bytes(self) -> bool:
        store = self._store
        ways = [chosen(store.ways, by_row=by_row) for by_row in (False, True)]
        sizes = [[layout.blob_bytes for layout in way] for way in ways]
        return store.is_random and sizes[0] == sizes[1]

    def _has_room(self) -> bool:
        return self._store.held_bytes <= MOST_OF_FREE * self._room_bytes(self._store)


def _room_left(store: ExpertStore) -> int:
    """Return the host memory that is free, also under a control group's limit."""
    return min(free_ram_bytes(), ram_bytes() - store.held_bytes)


def _convert(store: ExpertStore, layouts: Layouts, layers_EB: list[Tensor]) -> None:
    """Put every layer's experts into new memory; what nobody else holds is let go on the way."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # what layers share is made once
    for layer, (before, after) in enumerate(zip(store.layouts, layouts, strict=True)):
        old_EB = layers_EB[layer]
        known = made.get(old_EB.data_ptr())
        if known is None:
            experts = len(old_EB)
            new_EB = make_room(experts * after.blob_bytes, pin=store.pin)
            new_EB = new_EB.view(experts, after.blob_bytes)
            for index in range(experts):
                new_EB[index].copy_(_repacked(old_EB[index], before, after))
            # An address is a name only as long as what lies there is kept.
            is_shared = sum(each.data_ptr() == old_EB.data_ptr() for each in store.layers_EB) > 1
            if is_shared:
                made[old_EB.data_ptr()] = old_EB, new_EB
        else:
            new_EB = known[1]
        layers_EB[layer] = new_EB


def _repacked(blob_B: Tensor, before: Layout, after: Layout) -> Tensor:
    """Return one expert's bytes in another layout."""
    if isinstance(after, RowLayout):
        views = before.views(blob_B, 0)
        gate_ID, up_ID = views["gate_up_proj"].chunk(2)
        return after.rows.pack(gate_ID, up_ID, views["down_proj"])
    assert isinstance(before, RowLayout)
    gate_ID, up_ID, down_DI = before.rows.unpack(blob_B)
    found_B = blob_B.new_zeros(after.blob_bytes)
    views = after.views(found_B, 0)
    for at, half in enumerate((gate_ID, up_ID)):
        views["gate_up_proj"].chunk(2)[at].copy_(half)
    views["down_proj"].copy_(down_DI)
    return found_B
