"""VRAM as one budget: dense weights, KV cache, workspace, and what is left for experts. RAM, too.

A user gives one of three figures: all VRAM (``--vram``), the room for experts alone
(``--expert-budget``), or that room in slots or as a share of all experts (``--slots``). Whatever
does not fit is an error of the run, never a silent clamp.

RAM holds all experts, those in VRAM included: copies are made from there. Where it cannot, NVMe
does, and RAM keeps some (``tiers``); a machine without NVMe is refused.
"""

from dataclasses import dataclass
from typing import NamedTuple

from moesim.hardware_profiles import HardwareProfile, ProfileError
from moesim.hardware_profiles.units import format_bytes, parse_bytes
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import BudgetError, InputError, OutOfMemoryError
from moesim.simulator.models.cost_shape import CostShape
from moesim.simulator.serving.kv import KvShape

_ACTIVATION_BYTES = 2
_DENSE_ROWS = 4
_SYSTEM_BYTES = 4 << 30
_SYSTEM_SHARE = 8
"""System and runtime keep an eighth of RAM from experts, at most 4 GiB: a guess."""


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """What the user gave; at most one of the first three, none of them meaning all of the machine.

    ``kv`` is the room for the KV caches of a server, ``ram`` that for experts in RAM.
    """

    vram: str | None = None
    expert_budget: str | None = None
    slots: str | None = None
    kv: str | None = None
    ram: str | None = None

    @property
    def gives_experts(self) -> bool:
        """Whether the room for experts was given, so that all else is left for KV caches."""
        return self.expert_budget is not None or self.slots is not None

    def expert_bytes(
        self,
        *,
        experts: int,
        largest_bytes: int,
        all_bytes: int,
        fixed: "Fixed",
        usable_bytes: int | None,
    ) -> int:
        """Return the room for experts: what was asked for, but no more than all of them take.

        Args:
            experts: Number of experts of all layers.
            largest_bytes: Bytes of the largest; a slot holds any.
            all_bytes: Bytes of all.
            fixed: What else VRAM must hold.
            usable_bytes: What the machine has; None if nobody knows, and all experts may have room.

        Raises:
            InputError: More than one figure was given, or one cannot be read.
            BudgetError: Nothing is left for experts.
            OutOfMemoryError: More VRAM is asked for than there is.
        """
        names = ("vram", "expert_budget", "slots")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(
                f"give one of --vram, --expert-budget and --slots, not {' and '.join(given)}"
            )
        if self.expert_budget is not None:
            return min(all_bytes, parse_size("--expert-budget", self.expert_budget))
        if self.slots is not None and self.slots.endswith("%"):
            room = int(all_bytes * _share(self.slots))
            equal = all_bytes == experts * largest_bytes
            return round(room / largest_bytes) * largest_bytes if equal else room
        if self.slots is not None:
            return min(all_bytes, _slots(self.slots) * largest_bytes)
        if self.vram is not None:
            total = parse_size("--vram", self.vram)
        elif usable_bytes is not None:
            total = usable_bytes
        else:
            return all_bytes
        if usable_bytes is not None and total > usable_bytes:
            raise OutOfMemoryError(
                f"--vram {self.vram}: the machine has {format_bytes(usable_bytes)} of usable VRAM"
            )
        if total <= fixed.total_bytes:
            raise BudgetError(
                f"{format_bytes(total)} of VRAM hold no experts: dense weights "
                f"{format_bytes(fixed.dense_bytes)}, KV cache {format_bytes(fixed.kv_bytes)}, "
                f"workspace {format_bytes(fixed.workspace_bytes)}; give more VRAM or a smaller "
                "format"
            )
        return min(all_bytes, total - fixed.total_bytes)


@dataclass(frozen=True, slots=True)
class Fixed:
    """What VRAM must hold beside experts, in bytes; ``kv`` is at the longest context of the run."""

    dense_bytes: int
    kv_bytes: int
    workspace_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.dense_bytes + self.kv_bytes + self.workspace_bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What VRAM is used for, in bytes; ``kv`` is at the longest context of the run.

    ``host_bytes`` is the room for experts in RAM; None where it holds them all.
    """

    total_bytes: int
    dense_bytes: int
    kv_bytes: int
    workspace_bytes: int
    expert_bytes: int
    host_bytes: int | None = None

    @property
    def used_bytes(self) -> int:
        """Everything that has to be in VRAM at the run's peak, all slots filled."""
        return self.dense_bytes + self.kv_bytes + self.workspace_bytes + self.expert_bytes


class Server(NamedTuple):
    """What a server needs beside weights.

    Attributes:
        kv_bytes: KV caches of the largest requests that may run together.
        step_tokens: Most tokens of one step.
    """

    kv_bytes: int
    step_tokens: int


def kv_bytes(shape: CostShape, context_tokens: int) -> int:
    """Return the KV cache of one request at a context length; windowed layers keep their window."""
    return KvShape.of(shape).size_bytes(context_tokens)


def activation_bytes(shape: CostShape, tokens: int) -> int:
    """Return the room of what a step keeps of its tokens: K + 4 rows of D, 16 bits each.

    Those are the residual, its normalised copy, queries with keys and values, what attention gives,
    and a row for each (token, expert) product: an estimate.
    """
    return tokens * (shape.top_k + _DENSE_ROWS) * shape.hidden * _ACTIVATION_BYTES


def plan(
    spec: MemorySpec, costs: CostModel, context_tokens: int, server: Server | None = None
) -> MemoryPlan:
    """Divide VRAM, and refuse what does not fit.

    A server's KV room is what ``--kv`` says, else what its largest requests need together; where
    the room for experts was given, it is no more than that leaves.

    Args:
        spec: What the user gave.
        costs: Machine, runtime and model.
        context_tokens: Longest context of the run.
        server: What requests that run together need; None for one at a time.

    Raises:
        InputError: More than one figure was given, or one cannot be read.
        BudgetError: Nothing is left for experts.
        OutOfMemoryError: The whole does not fit the machine.
    """
    shape, usable = costs.shape, costs.profile.vram_usable_bytes
    fixed = beside_experts(spec, costs, context_tokens, server)
    experts = spec.expert_bytes(
        experts=len(shape.layers) * shape.experts,
        largest_bytes=max(layer.expert_bytes for layer in shape.layers),
        all_bytes=shape.expert_bytes_total,
        fixed=fixed,
        usable_bytes=usable,
    )
    room_bytes = fixed.kv_bytes
    if server is not None and spec.kv is None and spec.gives_experts:
        left_bytes = usable - fixed.dense_bytes - fixed.workspace_bytes - experts
        room_bytes = max(0, min(room_bytes, left_bytes))
    host_bytes = host_room(spec.ram, costs, experts)
    result = MemoryPlan(
        usable, fixed.dense_bytes, room_bytes, fixed.workspace_bytes, experts, host_bytes
    )
    _check_fits(result, costs.profile, "fewer slots" if spec.kv is None else "less --kv")
    return result


def beside_experts(
    spec: MemorySpec, costs: CostModel, context_tokens: int, server: Server | None
) -> Fixed:
    """Return what VRAM must hold beside experts; the arguments are those of `plan`."""
    workspace_bytes, room_bytes = costs.workspace_bytes, kv_bytes(costs.shape, context_tokens)
    if server is not None:
        workspace_bytes += activation_bytes(costs.shape, server.step_tokens)
        room_bytes = server.kv_bytes
    room_bytes = room_bytes if spec.kv is None else parse_size("--kv", spec.kv)
    return Fixed(costs.shape.resident_bytes, room_bytes, workspace_bytes)


def host_room(ram: str | None, costs: CostModel, expert_bytes: int) -> int | None:
    """Return the room for experts in RAM, or None if it needs or has room for all.

    Args:
        ram: What the user said of it.
        costs: Machine and model.
        expert_bytes: Room for experts in VRAM; where that holds all, RAM needs none.

    Raises:
        InputError: What the user said cannot be read.
        OutOfMemoryError: RAM does not hold all, or not what was asked for, and there is no NVMe.
    """
    machine, all_bytes = costs.profile, costs.shape.expert_bytes_total
    if ram is None and expert_bytes >= all_bytes:
        return None
    room_bytes = machine.ram_bytes - min(_SYSTEM_BYTES, machine.ram_bytes // _SYSTEM_SHARE)
    if ram is not None:
        room_bytes = parse_size("--ram", ram)
        if room_bytes > machine.ram_bytes:
            raise OutOfMemoryError(
                f"--ram {ram}: {machine.name} has {format_bytes(machine.ram_bytes)} of RAM"
            )
    if room_bytes >= all_bytes:
        return None
    if machine.nvme is None:
        raise OutOfMemoryError(
            f"{machine.name} has {format_bytes(machine.ram_bytes)} of RAM, "
            f"{format_bytes(room_bytes)} of it for experts, and all experts take "
            f"{format_bytes(all_bytes)}; take a smaller format, a machine with more, or one with "
            "nvme in its profile"
        )
    return room_bytes


def _check_fits(result: MemoryPlan, machine: HardwareProfile, way_out: str) -> None:
    if result.used_bytes > result.total_bytes:
        raise OutOfMemoryError(
            f"{machine.name} has {format_bytes(result.total_bytes)} of usable VRAM; dense weights "
            f"{format_bytes(result.dense_bytes)} + KV cache {format_bytes(result.kv_bytes)} + "
            f"workspace {format_bytes(result.workspace_bytes)} + experts "
            f"{format_bytes(result.expert_bytes)} = {format_bytes(result.used_bytes)}; give "
            f"{way_out} or take a smaller format"
        )


def _slots(text: str) -> int:
    """Return a number of slots."""
    if not text.isdecimal() or int(text) < 1:
        raise InputError(
            f"--slots {text}: expected a number of experts such as 400, or a share such as 25%"
        )
    return int(text)


def _share(text: str) -> float:
    """Return a share of all experts, above 0 and at most 1."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise InputError(f"--slots {text}: expected a share above 0% and at most 100%")
    return share


def parse_size(option: str, text: str) -> int:
    """Return the bytes that a user gave for an option.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return parse_bytes(text)
    except ProfileError as error:
        raise InputError(f"{option} {text}: {error}") from None
