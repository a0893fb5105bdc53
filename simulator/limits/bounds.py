"""What no policy can beat.

A bound holds for every policy with the same means (``Actions``), under the contract of design 4.1,
that serves the recorded demands, requests one after another; if it may lose choices, experts cost
nothing, and the bound is of all else. It takes the bytes that
must move (``must_move``) and the time of steps that move them (``floors``).

The bound on TPOT is over the decode steps alone. Without prefetch every copy of a decode step is
handed over in it, so the bytes that count are those of decode uses, with caches that live on
between requests. With prefetch a request may begin its decode with anything in the cache, and with
copies under way that have room there already: each request is bounded by itself, from a cache that
holds whatever serves it best. Copies that this leaves are handed over, and done, while it decodes.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Literal, Self

import numpy as np

from moesim.simulator.costs import CostModel
from moesim.simulator.ledger import Counts
from moesim.simulator.limits.floors import Floor, Link, StepFloors, Sums
from moesim.simulator.limits.must_move import Uses, must_move_bytes
from moesim.simulator.workload.demand_table import DemandTable, demands_of
from moesim.traces import RoutingTrace

__all__ = ["Actions", "Bounds", "bounds", "known_bounds"]

# N uses: one for each distinct expert of each event; V events; L MoE layers.

BytesKind = Literal["belady_bypass", "fractional", "none", "lossy"]

_BOUNDS_KEPT = 64

NOTES: dict[BytesKind, tuple[str, ...]] = {
    "belady_bypass": (),
    "fractional": ("experts differ in size, so the bounds let shares of them stay in the cache",),
    "none": ("the bounds let the CPU compute every miss, so that no byte must move",),
    "lossy": ("the bounds let every choice go elsewhere or nowhere, so that experts are free",),
}


@dataclass(frozen=True, slots=True)
class Actions:
    """The means that a bound allows; it is compared with runs that use no others.

    Attributes:
        prefetch: Copies may begin before they are demanded.
        cpu_experts: The CPU may compute experts.
        initial: Experts may be placed before time zero.
        lossy: Choices of the router may be rerouted or skipped.
    """

    prefetch: bool = False
    cpu_experts: bool = False
    initial: bool = False
    lossy: bool = False

    @property
    def must_copy(self) -> bool:
        """Whether a demanded expert that is absent can only be copied."""
        return not (self.cpu_experts or self.lossy)

    @classmethod
    def of(cls, counts: Counts) -> "Actions":
        """Return the least means that contain a run."""
        ahead_bytes = counts.bytes_total - counts.bytes_demand
        return cls(
            prefetch=ahead_bytes > 0,
            cpu_experts=counts.cpu_experts > 0,
            initial=counts.bytes_initial > 0,
            lossy=counts.rerouted + counts.skipped > 0,
        )

    def __str__(self) -> str:
        means = [
            ("prefetch", self.prefetch),
            ("experts on the CPU", self.cpu_experts),
            ("experts placed before the start", self.initial),
            ("choices rerouted or skipped", self.lossy),
        ]
        return ", ".join(name for name, allowed in means if allowed) or "demand copies alone"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What no run within ``actions`` can be below.

    Attributes:
        bytes_min: Bytes that must be copied to the GPU.
        bytes_kind: ``belady_bypass``: the minimum for experts of one size in whole slots.
            ``fractional``: sizes differ, so any share of an expert may stay. ``none``: 0, since the
            CPU may compute every miss; ``lossy`` likewise, since choices may go elsewhere.
        gpu_floor_ns: Work of the GPU with every launch one run of hits.
        host_floor_ns: Work of the host with no decision time.
        link_floor_ns: Time of ``bytes_min`` on the host-to-device link.
        span_ns: Time of the whole run.
        decode_ns: Sum of all gaps between tokens: from a request's first token, or from its begin
            where the trace has no prompt, to its last.
        decode_gaps: How many gaps there are.
        tpot_ns: Their mean, rounded down; None where the trace has no decode steps.
        notes: What a reader of the figures must know.
        floor: The least that the steps take, as a function of the bytes moved.
        link: What copies take.
        decides_on_gpu: Whether the GPU is charged for decisions.
    """

    actions: Actions
    bytes_min: int
    bytes_kind: BytesKind
    gpu_floor_ns: int
    host_floor_ns: int
    link_floor_ns: int
    span_ns: int
    decode_ns: int
    decode_gaps: int
    tpot_ns: int | None
    notes: tuple[str, ...]
    floor: Floor = field(repr=False)
    link: Link = field(repr=False)
    decides_on_gpu: bool = field(repr=False)

    @classmethod
    def over(
        cls,
        floor: Floor,
        costs: CostModel,
        actions: Actions,
        *,
        moved: tuple[BytesKind, int],
        decode: tuple[int, int],
        notes: tuple[str, ...] = (),
    ) -> Self:
        """Return what a floor and the bytes that must move say.

        Args:
            floor: The least that the steps take.
            costs: How long things take.
            actions: The means allowed.
            moved: What kind of bound the bytes are, and how many.
            decode: Sum of all gaps between tokens in ns, and how many gaps.
            notes: On top of those of the kind.
        """
        (kind, bytes_min), (decode_ns, gaps), link = moved, decode, Link.of(costs)
        return cls(
            actions=actions,
            bytes_min=bytes_min,
            bytes_kind=kind,
            gpu_floor_ns=floor.gpu_ns,
            host_floor_ns=floor.host_ns + link.issuing_ns(bytes_min),
            link_floor_ns=link.busy_ns(bytes_min),
            span_ns=floor.time_ns(link, bytes_min, prefetch=actions.prefetch),
            decode_ns=decode_ns,
            decode_gaps=gaps,
            tpot_ns=decode_ns // gaps if gaps else None,
            notes=(*NOTES[kind], *notes),
            floor=floor,
            link=link,
            decides_on_gpu=costs.decides_on != "host",
        )


def bounds(trace: RoutingTrace, costs: CostModel, budget_bytes: int, actions: Actions) -> Bounds:
    """Return the bounds of all runs of a trace within a budget and a set of actions.

    Time and memory grow with the demands: about 1 µs, a tenth of it where numba is loaded, and 150
    bytes for each distinct expert of each layer event. What the trace, the machine or the budget
    determines by itself is kept for the next question.

    Args:
        trace: What is served, its requests one after another.
        costs: How long things take; its shape says how large experts are.
        budget_bytes: Room for experts, staging included.
        actions: The means allowed.
    """
    size_L = tuple(layer.expert_bytes for layer in costs.shape.layers)
    largest, is_equal = max(size_L), len(set(size_L)) == 1
    room_bytes = budget_bytes // largest * largest if is_equal else budget_bytes
    link = Link.of(costs)
    demands = demands_of(trace)
    floors = _floors(demands, _Costs(costs), actions.cpu_experts, actions.lossy)
    moved = _moved(demands, size_L)
    kind: BytesKind = "belady_bypass" if is_equal else "fractional"
    if actions.must_copy:
        bytes_min = moved.whole(room_bytes, warm=actions.initial)
    else:
        kind, bytes_min = "lossy" if actions.lossy else "none", 0
    floor, gaps = floors.whole(), sum(window.last - window.first for window in demands.windows)
    decode_ns = _decode_ns(demands, floors, link, moved, room_bytes, actions)
    return Bounds.over(floor, costs, actions, moved=(kind, bytes_min), decode=(decode_ns, gaps))


_known: dict[tuple[Hashable, ...], Bounds] = {}


def known_bounds(
    trace: RoutingTrace, costs: CostModel, budget_bytes: int, actions: Actions
) -> Bounds:
    """Return the `bounds` of a trace's requests one after another; equal questions are asked once.

    Policies do not enter, so that a sweep over them computes one for each budget and machine.
    """
    key = (trace.content_hash(), *_machine(costs), budget_bytes, actions)
    if key not in _known:
        if len(_known) >= _BOUNDS_KEPT:
            _known.clear()
        _known[key] = bounds(trace, costs, budget_bytes, actions)
    return _known[key]


def _machine(costs: CostModel) -> tuple[Hashable, ...]:
    """Return what determines all costs."""
    machine = costs.profile.model_dump_json(), costs.runtime.model_dump_json()
    return *machine, repr(costs.shape), costs.looks_ahead


class _Costs:
    """A machine by which what has been computed for an equal one is found."""

    def __init__(self, costs: CostModel) -> None:
        self.costs = costs
        self._key = _machine(costs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Costs) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=16)
def _floors(demands: DemandTable, machine: _Costs, cpu_experts: bool, lossy: bool) -> Sums:
    return StepFloors(machine.costs, cpu_experts=cpu_experts, lossy=lossy).of(demands)


class _Moved:
    """The bytes that the parts of a workload must move, whatever the room."""

    def __init__(self, demands: DemandTable, size_L: tuple[int, ...]) -> None:
        lengths_V = np.diff(demands.begins_V1)
        self._all = Uses(
            demands.expert_N,
            np.repeat(np.arange(len(lengths_V), dtype=np.int32), lengths_V),
            np.array(size_L, np.int64)[demands.expert_N // demands.experts],
            np.ones(len(demands.expert_N), np.bool_),
        )
        self._windows = [demands.uses(window) for window in demands.windows]
        self._known: dict[tuple[str, int, bool], list[int]] = {}

    def whole(self, room_bytes: int, *, warm: bool) -> int:
        """Return the bytes of all steps."""
        return self._least("whole", room_bytes, warm=warm)[0]

    def decode(self, room_bytes: int, *, warm: bool) -> int:
        """Return the bytes of decode steps, in a cache that lives on through prompts."""
        return self._least("decode", room_bytes, warm=warm)[0]

    def windows(self, room_bytes: int, *, warm: bool) -> list[int]:
        """Return the bytes of each request's decode steps by themselves.

        The cache is empty as the first begins unless ``warm``, and holds what is best as a later
        one does.
        """
        return self._least("windows", room_bytes, warm=warm)

    def _least(self, which: str, room_bytes: int, *, warm: bool) -> list[int]:
        key = which, room_bytes, warm
        if key not in self._known:
            self._known[key] = [
                must_move_bytes(uses, room_bytes, warm=warm or starts_later)
                for uses, starts_later in self._parts[which]
            ]
        return self._known[key]

    @cached_property
    def _parts(self) -> dict[str, list[tuple[Uses, bool]]]:
        counts_N = np.zeros(len(self._all.expert_N), np.bool_)
        for window in self._windows:
            counts_N[window] = True
        return {
            "whole": [(self._all, False)],
            "decode": [(replace(self._all, counts_N=counts_N), False)],
            "windows": [(self._all.window(part), part.start > 0) for part in self._windows],
        }


_moved = lru_cache(maxsize=4)(_Moved)


def _decode_ns(
    demands: DemandTable, floors: Sums, link: Link, moved: _Moved, room_bytes: int, actions: Actions
) -> int:
    """Return the least sum of all gaps between tokens; see the module."""
    of_window = [floors.between(window.first, window.last) for window in demands.windows]
    if actions.prefetch:
        moved_bytes = [0] * len(of_window)
        if actions.must_copy:
            moved_bytes = moved.windows(room_bytes, warm=actions.initial)
        return sum(
            floor.time_ns(link, nbytes, prefetch=True)
            for floor, nbytes in zip(of_window, moved_bytes, strict=True)
        )
    decode_bytes = moved.decode(room_bytes, warm=actions.initial) if actions.must_copy else 0
    return sum(of_window, Floor()).time_ns(link, decode_bytes, prefetch=False)
