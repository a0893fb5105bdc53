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
from typing import Any

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import CapabilityError, InputError, OutOfMemoryError
from moesim.simulator.gpus.placement import COUNTED, PLACEMENTS, check_name, place
from moesim.simulator.gpus.rooms import divide_vram, share_out
from moesim.simulator.memory import Fixed, MemoryPlan, MemorySpec, Server, host_room, plan
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
    homed_G = [0] * gpus
    for expert, gpu in enumerate(home):
        homed_G[gpu] += shape.layers[expert // experts].expert_bytes
    fixed_G, rooms_G = divide_vram(spec, costs, context_tokens, server, router_L, homed_G)
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


def plan_experts(
    gpus: int,
    placement: str,
    *,
    experts: int,
    sizes_L: Sequence[int],
    budget_bytes: int,
    profile_trace: RoutingTrace | None = None,
) -> GpuPlan:
    """Return how experts are spread where nothing else is: attention is on GPU 0.

    Args:
        gpus: How many; 2 or more.
        placement: Where experts live; not ``by_layer``, which places attention too.
        experts: Experts of each layer.
        sizes_L: Bytes of one expert of each layer.
        budget_bytes: Room for experts on all of them together.
        profile_trace: What a placement may count.

    Raises:
        CapabilityError: A placement needs a profile trace, or places whole layers.
    """
    if placement == "by_layer":
        raise CapabilityError(
            "placement by_layer puts attention on several GPUs, which is simulated and not "
            "executed; take round_robin"
        )
    layers = len(sizes_L)
    home = place(placement, layers, experts, gpus, profile_trace)
    homed_G = [0] * gpus
    for expert, gpu in enumerate(home):
        homed_G[gpu] += sizes_L[expert // experts]
    rooms_G = share_out(min(budget_bytes, sum(homed_G)), max(sizes_L), homed_G)
    return GpuPlan(placement, home, (0,) * layers, rooms_G, (Fixed(0, 0, 0),) * gpus)
