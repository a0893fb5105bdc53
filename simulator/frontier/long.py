"""LRU's hit rate at every cache size for a trace of any length, in the memory of one piece of it.

The stack of last touches is all that a piece leaves to the next. Sizes below the largest event are
left out, since there an event runs in waves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.frontier.stack_distances import NEVER, EventUses, LruStack, event_uses
from moesim.simulator.long_traces import PIECE_ROWS
from moesim.traces import RoutingTrace
from moesim.traces.chunks import cut

# S sizes, from 0 to all experts; L MoE layers; N uses.
Array = NDArray[Any]


@dataclass(slots=True)
class LongCurve:
    """What is counted of one cache.

    Attributes:
        hits_S, decode_hits_S: Hits at 0, 1, ... all experts, once `sums` has been called.
        demands, decode_demands: Distinct experts demanded, summed over events.
        largest: Distinct experts of the largest event.
    """

    stack: LruStack
    hits_S: Array
    decode_hits_S: Array
    demands: int = 0
    decode_demands: int = 0
    largest: int = 0

    def add(self, uses: EventUses) -> None:
        """Count the next uses."""
        distance_N = self.stack.distances(uses)
        hits_N = distance_N < NEVER
        sizes = len(self.hits_S)
        self.hits_S += np.bincount(distance_N[hits_N], minlength=sizes)
        self.decode_hits_S += np.bincount(distance_N[hits_N & uses.is_decode_N], minlength=sizes)
        self.demands += len(distance_N)
        self.decode_demands += int(uses.is_decode_N.sum())
        self.largest = max(self.largest, uses.largest)

    def sums(self) -> None:
        """Turn counts by distance into hits by size."""
        np.cumsum(self.hits_S, out=self.hits_S)
        np.cumsum(self.decode_hits_S, out=self.decode_hits_S)


@dataclass(slots=True)
class LongCurves:
    """One cache for all layers, and one for each; a list that is empty was not asked for."""

    whole: list[LongCurve] = field(default_factory=list)
    of_layer: list[LongCurve] = field(default_factory=list)


def count_long(
    trace: RoutingTrace,
    *,
    whole: bool,
    by_layer: bool,
    rows: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> LongCurves:
    """Count LRU's hits at every size.

    Args:
        trace: What is demanded, its requests one after another.
        whole: Whether one cache for all layers is asked for.
        by_layer: Whether a cache for each layer is.
        rows: Rows held at a time; `PIECE_ROWS` by default.
        on_step: Called after every piece with the number of tokens processed.
    """
    everyone = trace.layers * trace.experts
    curves = LongCurves(
        [_curve(everyone, everyone)] if whole else [],
        [_curve(everyone, trace.experts) for _ in range(trace.layers)] if by_layer else [],
    )
    for piece in cut(trace, PIECE_ROWS if rows is None else rows):
        uses = event_uses(piece)
        for curve in curves.whole:
            curve.add(uses)
        for layer, curve in enumerate(curves.of_layer):
            curve.add(uses.of_layer(layer, trace.layers))
        if on_step is not None:
            on_step(piece.tokens)
    _sum_all((*curves.whole, *curves.of_layer))
    return curves


def _curve(everyone: int, sizes: int) -> LongCurve:
    return LongCurve(
        LruStack(everyone), np.zeros(sizes + 1, np.int64), np.zeros(sizes + 1, np.int64)
    )


def _sum_all(curves: Sequence[LongCurve]) -> None:
    for curve in curves:
        curve.sums()
