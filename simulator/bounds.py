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

from array import array
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from moesim.simulator.costs import CostModel
from moesim.simulator.demands import Workload
from moesim.simulator.floors import Floor, Link, StepFloors
from moesim.simulator.ledger import Counts
from moesim.simulator.messages import FormStep
from moesim.simulator.must_move import Uses, must_move_bytes
from moesim.simulator.terms import Phase
from moesim.traces import RoutingTrace

__all__ = ["Actions", "Bounds", "bounds", "known_bounds"]

# N uses: one for each distinct expert of each event; L MoE layers.

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


def bounds(workload: Workload, costs: CostModel, budget_bytes: int, actions: Actions) -> Bounds:
    """Return the bounds of all runs of a workload within a budget and a set of actions.

    Time and memory grow with the demands: 1 to 3 µs and about 150 bytes for each distinct expert of
    each layer event.

    Args:
        workload: What is served; a fresh one, which is used up.
        costs: How long things take; its shape says how large experts are.
        budget_bytes: Room for experts, staging included.
        actions: The means allowed.
    """
    sizes = {layer.expert_bytes for layer in costs.shape.layers}
    largest = max(sizes)
    room_bytes = budget_bytes // largest * largest if len(sizes) == 1 else budget_bytes
    link = Link.of(costs)
    demands = _Demands(workload, StepFloors(costs, cpu_experts=actions.cpu_experts, lossy=actions.lossy))
    uses = demands.uses(costs)
    kind: BytesKind = "belady_bypass" if len(sizes) == 1 else "fractional"
    bytes_min = must_move_bytes(uses, room_bytes, warm=actions.initial)
    if not actions.must_copy:
        kind, bytes_min = "lossy" if actions.lossy else "none", 0
    floor, gaps = demands.floor, demands.gaps
    decode_ns = _decode_ns(demands, uses, link, room_bytes, actions)
    return Bounds(
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
        notes=NOTES[kind],
        floor=floor,
        link=link,
        decides_on_gpu=costs.decides_on != "host",
    )


_known: dict[tuple[Hashable, ...], Bounds] = {}


def known_bounds(
    trace: RoutingTrace, costs: CostModel, budget_bytes: int, actions: Actions
) -> Bounds:
    """Return the `bounds` of a trace's requests one after another; equal questions are asked once.

    Policies do not enter, so that a sweep over them computes one for each budget and machine.
    """
    machine = costs.profile.model_dump_json(), costs.runtime.model_dump_json(), repr(costs.shape)
    key = (trace.content_hash(), *machine, budget_bytes, actions)
    if key not in _known:
        if len(_known) >= _BOUNDS_KEPT:
            _known.clear()
        _known[key] = bounds(Workload(trace), costs, budget_bytes, actions)
    return _known[key]


@dataclass(frozen=True, slots=True)
class _Window:
    """The decode steps of one request."""

    uses: slice
    floor: Floor
    gaps: int


class _Demands:
    """All that a workload demands, read once."""

    def __init__(self, workload: Workload, floors: StepFloors) -> None:
        self.floor = Floor()
        self.windows: list[_Window] = []
        self._experts = array("i")
        self._event_begins = array("q")
        self._per_layer = workload.experts
        for request in range(workload.requests):
            self._read(request, workload, floors)
        self.gaps = sum(window.gaps for window in self.windows)

    def _read(self, request: int, workload: Workload, floors: StepFloors) -> None:
        form = FormStep((request,), (None,))
        floor, gaps, begins = Floor(), 0, len(self._experts)
        is_finished = False
        while not is_finished:
            step = workload.begin(form)
            is_finished = workload.is_finished(request)
            demands = [Counter(step.choices(layer)) for layer in range(workload.layers)]
            for demand in demands:
                self._event_begins.append(len(self._experts))
                self._experts.extend(demand)
            of_step = floors.of(step, demands)
            self.floor.add(of_step)
            if Phase.PREFILL in step.phases:
                begins = len(self._experts)
            else:
                floor.add(of_step)
                gaps += sum(step.tokens_out)
        if gaps:
            self.windows.append(_Window(slice(begins, len(self._experts)), floor, gaps))

    def uses(self, costs: CostModel) -> Uses:
        """Return every use, all of which count."""
        expert_N = np.asarray(self._experts, np.int32)
        size_L = np.asarray([layer.expert_bytes for layer in costs.shape.layers], np.int64)
        lengths = np.diff(np.append(np.asarray(self._event_begins, np.int64), len(expert_N)))
        return Uses(
            expert_N,
            np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            size_L[expert_N // self._per_layer],
            np.ones(len(expert_N), np.bool_),
        )


def _decode_ns(demands: _Demands, uses: Uses, link: Link, room_bytes: int, actions: Actions) -> int:
    """Return the least sum of all gaps between tokens; see the module."""
    if actions.prefetch:
        total_ns = 0
        for window in demands.windows:
            moved_bytes = 0
            if actions.must_copy:
                warm = actions.initial or window.uses.start > 0
                moved_bytes = must_move_bytes(uses.window(window.uses), room_bytes, warm=warm)
            total_ns += window.floor.time_ns(link, moved_bytes, prefetch=True)
        return total_ns
    counts_N = np.zeros(len(uses.expert_N), np.bool_)
    floor = Floor()
    for window in demands.windows:
        counts_N[window.uses] = True
        floor.add(window.floor)
    moved_bytes = 0
    if actions.must_copy:
        decode = replace(uses, counts_N=counts_N)
        moved_bytes = must_move_bytes(decode, room_bytes, warm=actions.initial)
    return floor.time_ns(link, moved_bytes, prefetch=False)
