"""Keys and values of several requests, each in a slot.

A prompt goes through the model with its slot as a cache of its own; a decode step takes one token
for each of the first slots, whoever is in them, at positions that are read on the device. So the
step can be captured, and nothing is copied between the two.

A step costs as many rows as its highest slot says, rounded up to a power of two. When a request
ends, those above what the others need move down, so that a long answer in a high slot does not keep
rows of nobody alive. On arrivals with the lengths of Azure's conversations, 32 at most, 1.44 rows
were computed for each one used without moves and 1.09 with them.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from moesim.backends.models import Model

# B rows (the first slots), M places of a slot; keys and values are [slots, heads, M, dimension].


class Slots:
    """Room for so many requests.

    Args:
        model: Whose requests.
        slots: How many run together at most.
        room: Tokens of the longest.
    """

    def __init__(self, model: Model, slots: int, room: int) -> None:
        config: Any = model.config.get_text_config()
        self.room = room
        self._stored = [_Stored(slots, room) for _ in range(config.num_hidden_layers)]
        self._caches: list[SlotCache | None] = [None] * slots

    def open(self) -> "SlotCache":
        """Return an empty cache in the first free slot."""
        slot = self._caches.index(None)
        cache = self._caches[slot] = SlotCache(self._stored, slot)
        return cache

    def close(self, cache: "SlotCache") -> None:
        """Free the slot of a request that has ended, and move others down into fewer rows."""
        self._caches[cache.slot] = None
        live = [other for other in self._caches if other is not None]
        rows = 1 << (len(live) - 1).bit_length() if live else 0
        for other in reversed(live):
            if other.slot < rows:
                break
            slot = self._caches.index(None)
            self._caches[other.slot], self._caches[slot] = None, other
            other.move(slot)

    def position(self, slot: int) -> int:
        """Return the next place of a slot; what is written there too early is overwritten."""
        cache = self._caches[slot]
        return 0 if cache is None else cache.length

    def rows(self, position_B: Tensor) -> "RowsCache":
        """Return the cache of a decode step of the first slots.

        Args:
            position_B: The place of each one's new token, on the device; read when it is computed.
        """
        return RowsCache(self._stored, position_B)


class SlotCache(Cache):
    """What one request attends to, as transformers sees it.

    Attributes:
        slot: Where it lies now.
    """

    def __init__(self, stored: "list[_Stored]", slot: int) -> None:
        self.slot = slot
        self._layers = [_SlotLayer(each, slot) for each in stored]
        layers: list[Any] = [*self._layers]
        super().__init__(layers=layers)

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return self._layers[0].length

    def move(self, slot: int) -> None:
        """Take everything along into another slot, which is free."""
        for layer in self._layers:
            layer.move(slot)
        self.slot = slot

    def advance(self) -> None:
        """Count a token that a step of rows has added."""
        for layer in self._layers:
            layer.length += 1


class RowsCache:
    """What a decode step's rows attend to: all places of their slots; a mask says which count.

    Attributes:
        mask_B11M: True where a row may look.
    """

    def __init__(self, stored: "list[_Stored]", position_B: Tensor) -> None:
        self._stored = stored
        self._position_B = position_B
        self._rows_B = torch.arange(len(position_B), device=position_B.device)
        self._places_M = torch.arange(stored[0].room, device=position_B.device)

    @property
    def mask_B11M(self) -> Tensor:
        """What each row may look at, up to its new token."""
        return (self._places_M <= self._position_B[:, None])[:, None, None]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Put each row's token into its place; return all of the slots."""
        stored, count = self._stored[layer], len(self._rows_B)
        stored.make_room(keys, values)
        stored.keys[self._rows_B, :, self._position_B] = keys[:, :, 0]
        stored.values[self._rows_B, :, self._position_B] = values[:, :, 0]
        return stored.keys[:count], stored.values[:count]


class _Stored:
    """One layer of all slots; made when the first keys show their shape."""

    def __init__(self, slots: int, room: int) -> None:
        self.room = room
        self._slots = slots
        self.keys = self.values = torch.empty(0)

    def make_room(self, keys: Tensor, values: Tensor) -> None:
        if not self.keys.numel():
            self.keys, self.values = (
                new.new_zeros(self._slots, new.shape[1], self.room, new.shape[-1])
                for new in (keys, values)
            )


class _SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers' own
    """One layer of one request."""

    is_sliding = False
    is_compileable = False

    def __init__(self, stored: _Stored, slot: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.length = 0
        self._stored = stored
        self._slot = slot
        self.is_initialized = True

    def move(self, slot: int) -> None:
        """Copy what is held into another slot."""
        for held in (self._stored.keys, self._stored.values):
            if held.numel():
                held[slot, :, : self.length] = held[self._slot, :, : self.length]
        self._slot = slot

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self._stored.make_room(key_states, value_states)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        self.lazy_initialization(key_states, value_states)
        stored, slot, begin = self._stored, self._slot, self.length
        end = self.length = begin + key_states.shape[2]
        stored.keys[slot, :, begin:end] = key_states[0]
        stored.values[slot, :, begin:end] = value_states[0]
        return stored.keys[slot : slot + 1, :, :end], stored.values[slot : slot + 1, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self._stored.room
