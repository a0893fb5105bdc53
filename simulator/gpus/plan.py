"""How a run is spread over several GPUs of one host: homes, routers, and the VRAM of each.

One process drives them all. Attention, routers and head run on GPU 0, which keeps dense weights and
KV cache, and the experts of each layer on all GPUs (expert parallelism); or whole layers are placed
(``by_layer``), each with its attention and its part of the KV cache, and a step passes through the
GPUs one after another. Attention spread over GPUs (tensor or data parallelism) is not modelled.

``--vram`` is what each GPU gives; ``--slots`` and ``--expert-budget`` are totals, divided evenly as
far as each GPU has room.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import CapabilityError, InputError, OutOfMemoryError
from moesim.simulator.gpus.placement import COUNTED, PLACEMENTS, check_name, place
from moesim.simulator.memory import (
    Fixed,
    MemoryPlan,
    MemorySpec,
    Server,
    beside_experts,
    host_room,
    plan,
)
from moesim.traces import RoutingTrace


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """Several GPUs and what each does.

    Attributes:
        placement: The name of the placement.
        home: The GPU of each expert, by number.
        router_L: The GPU on which each layer's attention and router run.
        rooms_G: Bytes of experts for which each GPU has room.
        fixed_G: What else each keeps in VRAM.
    """

    placement: str
    home: tuple[int, ...]
    router_L: tuple[int, ...]
    rooms_G: tuple[int, ...]
    fixed_G: tuple[Fixed, ...]

    @property
    def gpus(self) -> int:
        """How many there are."""
        return len(self.rooms_G)

    @property
    def head(self) -> int:
        """The GPU on which the head runs: that of the last layer."""
        return self.router_L[-1]

    @property
    def identity(self) -> dict[str, Any]:
        """What of it determines the run, beside the trace that was counted."""
        return {"placement": self.placement, "home": self.home, "rooms": self.rooms_G}


@dataclass(slots=True)
class Dividing:
    """Divides VRAM for a run, of one GPU or of several, and keeps how the run is spread.

    Attributes:
        gpus: How many there are.
        placement: Where experts live; see ``placement.py``.
        profile_trace: What a placement may count.
        spread: How the run is spread, once VRAM was divided; None on one GPU.
    """

    gpus: int
    placement: str
    profile_trace: RoutingTrace | None = None
    spread: GpuPlan | None = None

    def __call__(
        self, spec: MemorySpec, costs: CostModel, context_tokens: int, server: Server | None = None
    ) -> MemoryPlan:
        """Divide VRAM; see `plan` and `plan_gpus`."""
        if self.gpus == 1:
            check_name(self.placement)
            return plan(spec, costs, context_tokens, server)
        self.spread, divided = plan_gpus(
            self.gpus, self.placement, spec, costs, context_tokens, server, self.profile_trace
        )
        return divided

    @property
    def notes(self) -> list[str]:
        """What a reader of results must know."""
        if self.gpus > 1 or self.placement == PLACEMENTS[0]:
            return []
        return [f"one GPU computes, so that placement {self.placement} decides nothing"]


def plan_gpus(
    gpus: int,
    placement: str,
    spec: MemorySpec,
    costs: CostModel,
    context_tokens: int,
    server: Server | None = None,
    profile_trace: RoutingTrace | None = None,
) -> tuple[GpuPlan, MemoryPlan]:
    """Return how a run is spread and what VRAM of all GPUs together is used for.

    Args:
        gpus: How many; 2 or more.
        placement: Where experts live; see ``placement.py``.
        spec: What the user said of memory.
        costs: Machine, runtime and model.
        context_tokens: Longest context of the run.
        server: What requests that run together need; None for one at a time.
        profile_trace: What a placement may count.

    Raises:
        InputError: There are not so many GPUs, or a figure cannot be read.
        CapabilityError: A placement needs a profile trace of the model's shape.
        BudgetError: Nothing is left for experts.
        OutOfMemoryError: The whole does not fit.
    """
    shape, machine = costs.shape, costs.profile
    if gpus > machine.gpus:
        raise InputError(
            f"--gpus {gpus}: {machine.name} has {machine.gpus}; take fewer, or a machine with more"
        )
    layers, experts = len(shape.layers), shape.experts
    if placement in COUNTED and profile_trace is not None:
        theirs = profile_trace.layers, profile_trace.experts
        if theirs != (layers, experts):
            raise CapabilityError(
                f"the profile trace has {theirs[0]} layers x {theirs[1]} experts, the model has "
                f"{layers} x {experts}"
            )
    home = place(placement, layers, experts, gpus, profile_trace)
    router_L = tuple(home[::experts]) if placement == "by_layer" else (0,) * layers
    fixed_G = _fixed(gpus, router_L, costs, spec, context_tokens, server)
    homed_G = [0] * gpus
    for expert, gpu in enumerate(home):
        homed_G[gpu] += shape.layers[expert // experts].expert_bytes
    rooms_G = _rooms(spec, costs, fixed_G, homed_G)
    host_bytes = host_room(spec.ram, costs, sum(rooms_G))
    if host_bytes is not None:
        raise OutOfMemoryError(
            f"--gpus {gpus}: RAM of {machine.name} has room for {format_bytes(host_bytes)} of "
            f"experts, and all take {format_bytes(shape.expert_bytes_total)}; reading from NVMe is "
            "simulated for one GPU alone: take a smaller format, or more RAM"
        )
    for gpu, (room_bytes, fixed) in enumerate(zip(rooms_G, fixed_G, strict=True)):
        if room_bytes + fixed.total_bytes > machine.vram_usable_bytes:
            raise OutOfMemoryError(
                f"GPU {gpu} of {machine.name} has {format_bytes(machine.vram_usable_bytes)} of "
                f"usable VRAM; dense weights {format_bytes(fixed.dense_bytes)} + KV cache "
                f"{format_bytes(fixed.kv_bytes)} + workspace {format_bytes(fixed.workspace_bytes)} "
                f"+ experts {format_bytes(room_bytes)} are more"
            )
    return GpuPlan(placement, home, router_L, rooms_G, fixed_G), MemoryPlan(
        total_bytes=gpus * machine.vram_usable_bytes,
        dense_bytes=sum(fixed.dense_bytes for fixed in fixed_G),
        kv_bytes=sum(fixed.kv_bytes for fixed in fixed_G),
        workspace_bytes=sum(fixed.workspace_bytes for fixed in fixed_G),
        expert_bytes=sum(rooms_G),
    )


def _fixed(
    gpus: int,
    router_L: Sequence[int],
    costs: CostModel,
    spec: MemorySpec,
    context_tokens: int,
    server: Server | None,
) -> tuple[Fixed, ...]:
    """Return what each GPU keeps beside experts: its layers, embedding or head, KV, workspace."""
    shape = costs.shape
    whole = beside_experts(spec, costs, context_tokens, server)
    dense_G, layers_G = [0] * gpus, [0] * gpus
    for layer, gpu in zip(shape.layers, router_L, strict=True):
        dense_G[gpu] += layer.dense_bytes
        layers_G[gpu] += 1
    rest_bytes = whole.dense_bytes - sum(dense_G)
    head_bytes = min(shape.head_bytes, rest_bytes)
    dense_G[router_L[-1]] += head_bytes
    dense_G[router_L[0]] += rest_bytes - head_bytes
    layers = len(router_L)
    done = [0, *accumulate(layers_G)]
    kv_G = [whole.kv_bytes * b // layers - whole.kv_bytes * a // layers for a, b in pairwise(done)]
    return tuple(
        Fixed(dense_bytes, part_bytes, whole.workspace_bytes)
        for dense_bytes, part_bytes in zip(dense_G, kv_G, strict=True)
    )


def _rooms(
    spec: MemorySpec, costs: CostModel, fixed_G: Sequence[Fixed], homed_G: Sequence[int]
) -> tuple[int, ...]:
    """Return the room for experts on each GPU: no more than what lives there."""
    shape, usable_bytes = costs.shape, costs.profile.vram_usable_bytes
    experts = len(shape.layers) * shape.experts
    slot_bytes = max(layer.expert_bytes for layer in shape.layers)
    if not spec.gives_experts:
        return tuple(
            spec.expert_bytes(
                experts=experts,
                largest_bytes=slot_bytes,
                all_bytes=homed_bytes,
                fixed=fixed,
                usable_bytes=usable_bytes,
            )
            for homed_bytes, fixed in zip(homed_G, fixed_G, strict=True)
        )
    total_bytes = spec.expert_bytes(
        experts=experts,
        largest_bytes=slot_bytes,
        all_bytes=shape.expert_bytes_total,
        fixed=fixed_G[0],
        usable_bytes=usable_bytes,
    )
    limits_G = [
        min(homed_bytes, max(0, usable_bytes - fixed.total_bytes))
        for homed_bytes, fixed in zip(homed_G, fixed_G, strict=True)
    ]
    if total_bytes > sum(limits_G):
        raise OutOfMemoryError(
            f"{format_bytes(total_bytes)} of experts are asked for; beside dense weights, KV cache "
            f"and workspace the {len(fixed_G)} GPUs have room for {format_bytes(sum(limits_G))}; "
            "give fewer slots, or KV caches less room (--kv)"
        )
    return _divide(total_bytes, slot_bytes, limits_G)


def _divide(total_bytes: int, slot_bytes: int, limits_G: Sequence[int]) -> tuple[int, ...]:
    """Divide room evenly in whole slots, up to each one's limit; a rest goes where there is room.

    >>> _divide(50, 10, [10, 100, 100])
    (10, 20, 20)
    """
    rooms_G = [0] * len(limits_G)
    left_bytes = total_bytes
    while left_bytes:
        piece_bytes = min(slot_bytes, left_bytes)
        open_G = [g for g, at in enumerate(limits_G) if rooms_G[g] + piece_bytes <= at]
        if open_G:
            gpu = min(open_G, key=rooms_G.__getitem__)
        else:
            gpu = max(range(len(limits_G)), key=lambda g: limits_G[g] - rooms_G[g])
            piece_bytes = min(piece_bytes, limits_G[gpu] - rooms_G[gpu])
        rooms_G[gpu] += piece_bytes
        left_bytes -= piece_bytes
    return tuple(rooms_G)
