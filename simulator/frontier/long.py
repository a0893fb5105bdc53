"""LRU's hit rate at every cache size for a trace of any length, in the memory of one piece of it.

The stack of last touches is all that a piece leaves to the next. Sizes below the largest event are
left out, since there an event runs in waves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.frontier.stack_distances import NEVER, LruStack, event_uses
from moesim.simulator.long_traces import PIECE_ROWS
from moesim.simulator.workload.recorded_steps import steps_of
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

    hits_S: Array
    decode_hits_S: Array
    demands: int = 0
    decode_demands: int = 0
    largest: int = 0

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
        [_curve(everyone)] if whole else [],
        [_curve(trace.experts) for _ in range(trace.layers)] if by_layer else [],
    )
    count = _counting(trace, curves)
    for piece in cut(trace, PIECE_ROWS if rows is None else rows):
        count(piece)
        if on_step is not None:
            on_step(piece.tokens)
    _sum_all((*curves.whole, *curves.of_layer))
    return curves


def _curve(sizes: int) -> LongCurve:
    return LongCurve(np.zeros(sizes + 1, np.int64), np.zeros(sizes + 1, np.int64))


def _counting(trace: RoutingTrace, curves: LongCurves) -> Callable[[RoutingTrace], None]:
    """Return what counts a piece: loops where numba is installed, else arrays; to the same end."""
    if find_spec("numba") is None:
        return _by_arrays(trace, curves)
    return _by_loops(trace, curves)


def _by_arrays(trace: RoutingTrace, curves: LongCurves) -> Callable[[RoutingTrace], None]:
    everyone = trace.layers * trace.experts
    stack_of = [LruStack(everyone) for _ in (*curves.whole, *curves.of_layer)]

    def count(piece: RoutingTrace) -> None:
        uses = event_uses(piece)
        of_layers = (uses.of_layer(layer, trace.layers) for layer in range(len(curves.of_layer)))
        counted = (*(uses for _ in curves.whole), *of_layers)
        for curve, stack, here in zip(
            (*curves.whole, *curves.of_layer), stack_of, counted, strict=True
        ):
            distance_N = stack.distances(here)
            hits_N = distance_N < NEVER
            sizes = len(curve.hits_S)
            curve.hits_S += np.bincount(distance_N[hits_N], minlength=sizes)
            curve.decode_hits_S += np.bincount(
                distance_N[hits_N & here.is_decode_N], minlength=sizes
            )
            curve.demands += len(distance_N)
            curve.decode_demands += int(here.is_decode_N.sum())
            curve.largest = max(curve.largest, here.largest)

    return count


def _by_loops(trace: RoutingTrace, curves: LongCurves) -> Callable[[RoutingTrace], None]:
    from moesim.simulator.engines.compiled.layout import TOUCHED  # noqa: PLC0415  numba takes 0.4 s
    from moesim.simulator.engines.compiled.trace_arrays import uses_of  # noqa: PLC0415
    from moesim.simulator.frontier.touch_tree import count_uses, touch_tree  # noqa: PLC0415

    everyone = trace.layers * trace.experts
    caches = [(curve, touch_tree(everyone, everyone), 0, 1) for curve in curves.whole]
    caches += [
        (curve, touch_tree(everyone, trace.experts), layer, trace.layers)
        for layer, curve in enumerate(curves.of_layer)
    ]

    def count(piece: RoutingTrace) -> None:
        uses = uses_of(piece)
        touched_U = uses.expert_U
        if not uses.is_plain:
            touched_U = np.ascontiguousarray(uses.detail_U3[:, TOUCHED])
        is_decode_V = np.repeat(~steps_of(piece).prefills_S.astype(np.bool_), trace.layers)
        for curve, tree, first, stride in caches:
            demands, decode_demands, largest = count_uses(
                tree,
                uses.begins_N1,
                touched_U,
                is_decode_V,
                first,
                stride,
                curve.hits_S,
                curve.decode_hits_S,
            )
            curve.demands += demands
            curve.decode_demands += decode_demands
            curve.largest = max(curve.largest, largest)

    return count


def _sum_all(curves: Sequence[LongCurve]) -> None:
    for curve in curves:
        curve.sums()
