"""Experts computed by the CPU for a layer on the GPU: inputs out, products back.

Both go through page-locked memory. Inputs leave by a stream of their own as soon as the router's
choice is known; products are read by the GPU where the CPU wrote them. The buffers are those of one
layer: the next layer's router is known only when the GPU has read this one's products.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from moesim.backends.drivers.cuda.pinned import mapped, pinned_bytes
from moesim.backends.drivers.cuda.streams import new_event, new_stream
from moesim.backends.experts import LayerWork

# T tokens, S choices in (token, rank) order, D width.


class CpuExperts:
    """The CPU's side of one layer after the other.

    Args:
        take: Has the GPU take in a layer's products of one expert.
    """

    def __init__(self, take: Callable[[LayerWork, int, Tensor], None]) -> None:
        self._take = take
        self._stream = new_stream()
        self._have_left = new_event(has_time=False)
        self._work: LayerWork | None = None
        self._block_B = torch.empty(0, dtype=torch.uint8)
        self._hidden_TD = torch.empty(0)
        self._rows_SD = torch.empty(0)
        self._seen_SD = torch.empty(0)
        self._positions: dict[int, Tensor] = {}

    def open(self, work: LayerWork) -> None:
        """Have a layer's inputs brought to the host; the first run of the layer calls it."""
        if self._work is work:
            return
        self._work = work
        hidden_TD = work.hidden_TD
        self._make_room(hidden_TD, len(work.choices))
        with torch.cuda.stream(self._stream):
            self._hidden_TD.copy_(hidden_TD, non_blocking=True)
            self._have_left.record()
        order_S = np.argsort(work.choices, kind="stable")
        distinct, starts = np.unique(np.array(work.choices)[order_S], return_index=True)
        places = np.split(order_S, starts[1:])
        self._positions = {
            expert: torch.from_numpy(place)
            for expert, place in zip(distinct.tolist(), places, strict=True)
        }

    def compute(self, work: LayerWork, expert: int, weights: Mapping[str, Tensor]) -> None:
        """Compute one expert of the open layer; runs in the CPU's thread."""
        self._have_left.synchronize()
        positions = self._positions[expert]
        self._rows_SD[positions] = work.product(self._hidden_TD, positions, weights)

    def give(self, expert: int) -> None:
        """Let the GPU read an expert's products."""
        assert self._work is not None
        self._take(self._work, expert, self._seen_SD)

    def forget(self) -> None:
        """Let go of the layer."""
        self._work = None

    def _make_room(self, hidden_TD: Tensor, choices: int) -> None:
        tokens, width = hidden_TD.shape
        size = hidden_TD.element_size() * width
        if self._block_B.numel() < (tokens + choices) * size:
            self._block_B = pinned_bytes(2 * (tokens + choices) * size)
        both_XD = self._block_B[: (tokens + choices) * size].view(hidden_TD.dtype).view(-1, width)
        self._hidden_TD, self._rows_SD = both_XD[:tokens], both_XD[tokens:]
        self._seen_SD = mapped(self._rows_SD)
