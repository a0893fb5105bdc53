"""The hit rate of every cache size at once, without a clock and without prefetch.

A `Curve` is one policy in one scope: all layers in one cache, one layer in a cache of its own, or
all layers with equal shares. Its hits are those that `moesim simulate` counts at the same slots.
Experts are taken to be of one size.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.errors import CapabilityError
from moesim.simulator.frontier.long import count_long
from moesim.simulator.frontier.stack_distances import (
    NEVER,
    EventUses,
    belady_priorities,
    event_uses,
    lifetime_lfu_priorities,
    lru_distances,
    priority_distances,
    waved_hits,
)
from moesim.simulator.long_traces import is_long
from moesim.simulator.results.rows import write_text
from moesim.traces import RoutingTrace

# S sizes, L MoE layers, E experts of a layer, N uses: one for each distinct expert of each event.

Array = NDArray[Any]
Distances = Callable[[EventUses], Array]

GLOBAL: Mapping[str, Distances] = {
    "lru": lru_distances,
    "lfu:count=lifetime": lambda uses: priority_distances(uses, lifetime_lfu_priorities(uses)),
    "belady": lambda uses: priority_distances(uses, belady_priorities(uses)),
}
"""What is a stack policy in one cache for all layers, as ``--cache`` names it."""

PER_LAYER: Mapping[str, str] = {
    "lru:scope=per_layer": "lru",
    "lfu:count=lifetime,scope=per_layer": "lfu:count=lifetime",
}
"""What is one in an equal share for each layer, and which policy that is within a layer."""

POLICIES = (*GLOBAL, *PER_LAYER)

LONG = ("lru", "lru:scope=per_layer")
"""Those that need no memory for each demand."""

MOST_WAVED_USES = 20_000_000
"""Sizes below the largest event are replayed one by one, at about 0.5 µs for each use of each."""

NEAR_CEILING = 0.01
"""The useful region ends where the hit rate is this close to that of a cache for all experts."""

COLUMNS = (
    "cache", "layer", "slots", "residency", "demands", "hits", "misses", "hit_rate",
    "decode_demands", "decode_hits", "decode_hit_rate",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Curve:
    """The hits of one policy at every size for which they are exact.

    Attributes:
        cache: The policy, as ``--cache`` names it.
        layer: The layer that has the cache to itself; None for all layers.
        slots_S: Sizes, each one larger than the last.
        hits_S: Hits of all steps.
        decode_hits_S: Hits of steps without prompt tokens.
        demands: Distinct experts demanded, summed over events.
        decode_demands: The same over steps without prompt tokens.
        experts: How many there are; with as many slots nothing is evicted.
    """

    cache: str
    layer: int | None
    slots_S: Array
    hits_S: Array
    decode_hits_S: Array
    demands: int
    decode_demands: int
    experts: int

    def at(self, slots: int) -> tuple[int, int] | None:
        """Return the hits and decode hits at a size, or None where they are not exact."""
        at = int(np.searchsorted(self.slots_S, slots))
        if at == len(self.slots_S) or self.slots_S[at] != slots:
            return None
        return int(self.hits_S[at]), int(self.decode_hits_S[at])

    @property
    def rate_S(self) -> Array:
        """Hit rate of decode steps; of all steps where the trace has none."""
        if self.decode_demands:
            return self.decode_hits_S / self.decode_demands
        return self.hits_S / max(1, self.demands)


class Region(NamedTuple):
    """Where another slot pays."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Frontier:
    """All curves of a trace.

    Attributes:
        curves: One for each policy; ``layer_curves`` one for each policy and layer.
        cliff: Slots up to which a global LRU hits nothing in decode: one token of L layers pushes
            its own first layer out before the next comes.
        notes: What a reader must know: which policies lack their smallest sizes, and why.
    """

    curves: Sequence[Curve]
    layer_curves: Sequence[Curve]
    layers: int
    top_k: int
    experts: int
    cliff: int
    notes: Sequence[str]


def frontier(
    trace: RoutingTrace, caches: Sequence[str] = ("lru", "lru:scope=per_layer")
) -> Frontier:
    """Return the exact hits of stack policies at every cache size, in one pass for each.

    Args:
        trace: What is demanded, its requests one after another.
        caches: Policies among `POLICIES`.

    Raises:
        CapabilityError: A policy is none of those.
    """
    for cache in caches:
        if cache not in POLICIES:
            raise CapabilityError(
                f"cache policy {cache} is no stack policy: what it keeps in a small cache it may "
                f"drop in a larger one; run moesim sweep over slots, or take {', '.join(POLICIES)}"
            )
    wanted = tuple(dict.fromkeys(caches))
    made, largest = (_long if is_long(trace) else _short)(trace, wanted)
    curves, layer_curves = [], []
    notes = []
    for cache, each in made.items():
        layer_curves += each if cache in PER_LAYER else []
        curve = _equal_shares(each, trace) if cache in PER_LAYER else each[0]
        curves.append(curve)
        least = trace.top_k * (trace.layers if cache in PER_LAYER else 1)
        if not len(curve.slots_S) or curve.slots_S[0] > least:
            begins = f"from {curve.slots_S[0]} slots on" if len(curve.slots_S) else "at no size"
            notes.append(
                f"{cache} is exact {begins}: an event demands up to {largest} experts and "
                "runs in waves in less room; moesim simulate says what happens there"
            )
    sizes = set(trace.header.expert_bytes or ())
    if len(sizes) > 1:
        notes.append(
            f"experts of {trace.header.model} are of {len(sizes)} sizes, and a slot holds any of "
            "them here; moesim simulate counts bytes"
        )
    return Frontier(
        curves,
        layer_curves,
        trace.layers,
        trace.top_k,
        trace.experts,
        (trace.layers - 1) * trace.top_k,
        notes,
    )


def _short(trace: RoutingTrace, caches: Sequence[str]) -> tuple[Mapping[str, list[Curve]], int]:
    """Return the curves of each policy, one or one for each layer, and the largest event."""
    uses = event_uses(trace)
    made = {}
    for cache in caches:
        if cache in GLOBAL:
            made[cache] = [_curve(uses, cache, cache, None, trace)]
        else:
            made[cache] = [
                _curve(uses.of_layer(layer, trace.layers), cache, PER_LAYER[cache], layer, trace)
                for layer in range(trace.layers)
            ]
    return made, uses.largest


def _long(trace: RoutingTrace, caches: Sequence[str]) -> tuple[Mapping[str, list[Curve]], int]:
    """Return the same of a trace too long to be held.

    Raises:
        CapabilityError: A policy is not LRU.
    """
    for cache in caches:
        if cache not in LONG:
            raise CapabilityError(
                f"cache policy {cache} takes 100 bytes for each of the trace's demands, too many "
                f"here; take {' or '.join(LONG)}, or fewer requests with --requests"
            )
    counted = count_long(trace, whole=LONG[0] in caches, by_layer=LONG[1] in caches)
    made = {}
    for cache, curves in zip(LONG, (counted.whole, counted.of_layer), strict=True):
        if cache in caches:
            is_whole = cache == LONG[0]
            made[cache] = [
                Curve(
                    cache,
                    None if is_whole else layer,
                    np.arange(first := max(trace.top_k, curve.largest), len(curve.hits_S)),
                    curve.hits_S[first:],
                    curve.decode_hits_S[first:],
                    curve.demands,
                    curve.decode_demands,
                    len(curve.hits_S) - 1,
                )
                for layer, curve in enumerate(curves)
            ]
    return made, max(curve.largest for curve in (*counted.whole, *counted.of_layer))


def useful_region(curve: Curve) -> Region | None:
    """Return the sizes between the first decode hit and the point where hardly any are missing.

    None where no size hits.
    """
    rate_S = curve.rate_S
    if not len(rate_S) or rate_S[-1] == 0:
        return None
    first = int(np.flatnonzero(rate_S > 0)[0])
    last = int(np.flatnonzero(rate_S >= rate_S[-1] - NEAR_CEILING)[0])
    return Region(int(curve.slots_S[first]), int(curve.slots_S[max(first, last)]))


def rows(result: Frontier) -> list[tuple[Any, ...]]:
    """Return one row for each size of each curve, in the order of `COLUMNS`."""
    return [
        (
            curve.cache,
            "all" if curve.layer is None else curve.layer,
            slots,
            round(slots / curve.experts, 9),
            curve.demands,
            hits,
            curve.demands - hits,
            _ratio(hits, curve.demands),
            curve.decode_demands,
            decode_hits,
            _ratio(decode_hits, curve.decode_demands),
        )
        for curve in (*result.curves, *result.layer_curves)
        for slots, hits, decode_hits in zip(
            curve.slots_S.tolist(),
            curve.hits_S.tolist(),
            curve.decode_hits_S.tolist(),
            strict=True,
        )
    ]


def write_csv(result: Frontier, path: Path) -> None:
    """Write every size of every curve, whole or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows(rows(result))
    write_text(path, text.getvalue())


def _curve(
    uses: EventUses, cache: str, policy: str, layer: int | None, trace: RoutingTrace
) -> Curve:
    """Return the curve of one cache."""
    experts = trace.experts if layer is not None else trace.layers * trace.experts
    distance_N = GLOBAL[policy](uses)
    counted = partial(_hits_up_to, distance_N, experts)
    hits_S, decode_hits_S = counted(slice(None)), counted(uses.is_decode_N)
    first = max(trace.top_k, uses.largest)
    if policy == "lru" and (first - trace.top_k) * len(distance_N) <= MOST_WAVED_USES:
        for slots in range(trace.top_k, first):
            hits_V = waved_hits(uses, slots)
            hits_S[slots] = hits_V.sum()
            decode_hits_S[slots] = hits_V[uses.is_decode_V].sum()
        first = trace.top_k
    return Curve(
        cache,
        layer,
        np.arange(first, experts + 1),
        hits_S[first:],
        decode_hits_S[first:],
        len(distance_N),
        int(uses.is_decode_N.sum()),
        experts,
    )


def _hits_up_to(distance_N: Array, experts: int, which: Any) -> Array:  # noqa: ANN401  an index
    """Return how many of some uses hit in a cache of 0, 1, ... all experts."""
    chosen = distance_N[which]
    counts: Array = np.bincount(chosen[chosen < NEVER], minlength=experts + 1)
    hits: Array = np.cumsum(counts)
    return hits


def _equal_shares(each: Sequence[Curve], trace: RoutingTrace) -> Curve:
    """Return the curve over all layers; slots left over go to the first layers, one each."""
    layers = len(each)
    layer_L = np.arange(layers)
    slots_S = np.arange(layers * trace.top_k, layers * trace.experts + 1)
    share_SL = slots_S[:, None] // layers + (layer_L < slots_S[:, None] % layers)
    first_L = np.array([curve.slots_S[0] if len(curve.slots_S) else NEVER for curve in each])
    is_exact_S = (share_SL >= first_L).all(axis=1)
    slots_S, at_SL = slots_S[is_exact_S], (share_SL - first_L)[is_exact_S]

    def total(name: str) -> Array:
        hits_L = [getattr(curve, name)[at_SL[:, n]] for n, curve in enumerate(each)]
        hits_S: Array = np.asarray(hits_L, np.int64).sum(axis=0)
        return hits_S

    return Curve(
        each[0].cache,
        None,
        slots_S,
        total("hits_S"),
        total("decode_hits_S"),
        sum(curve.demands for curve in each),
        sum(curve.decode_demands for curve in each),
        layers * trace.experts,
    )


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 9) if whole else None
