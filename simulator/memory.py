"""VRAM as one budget: dense weights, KV cache, workspace, and what is left for experts.

A user gives one of three figures: all VRAM (``--vram``), the room for experts alone
(``--expert-budget``), or that room in slots or as a share of all experts (``--slots``). Whatever
does not fit is an error of the run, never a silent clamp.
"""

from dataclasses import dataclass

from moesim.hardware_profiles import HardwareProfile, ProfileError
from moesim.hardware_profiles.units import format_bytes, parse_bytes
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import BudgetError, InputError, OutOfMemoryError
from moesim.simulator.models.cost_shape import CostShape


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """What the user gave; at most one of the three, none of them meaning all of the machine."""

    vram: str | None = None
    expert_budget: str | None = None
    slots: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What VRAM is used for, in bytes; ``kv`` is at the longest context of the run."""

    total_bytes: int
    dense_bytes: int
    kv_bytes: int
    workspace_bytes: int
    expert_bytes: int

    @property
    def used_bytes(self) -> int:
        """Everything that has to be in VRAM at the run's peak, all slots filled."""
        return self.dense_bytes + self.kv_bytes + self.workspace_bytes + self.expert_bytes


def kv_bytes(shape: CostShape, context_tokens: int) -> int:
    """Return the KV cache of one request at a context length; windowed layers keep their window."""
    windowed = min(context_tokens, shape.window_tokens or context_tokens)
    return sum(
        layer.kv_bytes_per_token * context_tokens + layer.windowed_kv_bytes_per_token * windowed
        for layer in shape.layers
    )


def plan(spec: MemorySpec, costs: CostModel, context_tokens: int) -> MemoryPlan:
    """Divide VRAM, and refuse what does not fit.

    Args:
        spec: What the user gave.
        costs: Machine, runtime and model.
        context_tokens: Longest context of the run.

    Raises:
        InputError: More than one figure was given, or one cannot be read.
        BudgetError: Nothing is left for experts.
        OutOfMemoryError: The whole does not fit the machine.
    """
    shape, machine = costs.shape, costs.profile
    given = [name for name in ("vram", "expert_budget", "slots") if getattr(spec, name) is not None]
    if len(given) > 1:
        raise InputError(
            f"give one of --vram, --expert-budget and --slots, not {' and '.join(given)}"
        )
    dense = shape.resident_bytes
    kv = kv_bytes(shape, context_tokens)
    workspace = costs.workspace_bytes
    fixed = dense + kv + workspace
    usable = machine.vram_usable_bytes
    if spec.expert_budget is not None:
        experts = _parse("--expert-budget", spec.expert_budget)
    elif spec.slots is not None:
        experts = _slots(spec.slots, shape)
    else:
        total = usable if spec.vram is None else _parse("--vram", spec.vram)
        experts = min(total - fixed, shape.expert_bytes_total)
        if experts <= 0:
            raise BudgetError(
                f"{format_bytes(total)} of VRAM hold no experts: dense weights "
                f"{format_bytes(dense)}, KV cache {format_bytes(kv)} at {context_tokens} tokens, "
                f"workspace {format_bytes(workspace)}; give more VRAM or a smaller format"
            )
    result = MemoryPlan(usable, dense, kv, workspace, experts)
    _check_fits(result, machine)
    return result


def _check_fits(result: MemoryPlan, machine: HardwareProfile) -> None:
    if result.used_bytes > result.total_bytes:
        raise OutOfMemoryError(
            f"{machine.name} has {format_bytes(result.total_bytes)} of usable VRAM; dense weights "
            f"{format_bytes(result.dense_bytes)} + KV cache {format_bytes(result.kv_bytes)} + "
            f"workspace {format_bytes(result.workspace_bytes)} + experts "
            f"{format_bytes(result.expert_bytes)} = {format_bytes(result.used_bytes)}; give fewer "
            "slots or a smaller format"
        )


def _slots(text: str, shape: CostShape) -> int:
    """Return the bytes of a number of slots, or of a share of all experts."""
    total = shape.expert_bytes_total
    largest = max(layer.expert_bytes for layer in shape.layers)
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else None
        slots = int(text) if share is None else round(len(shape.layers) * shape.experts * share)
    except ValueError:
        slots = 0
        share = None
    if slots < 1 or (share is not None and share > 1):
        raise InputError(
            f"--slots {text}: expected a number of experts such as 400, or a share such as 25%"
        )
    return min(total, slots * largest)


def _parse(option: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except ProfileError as error:
        raise InputError(f"{option} {text}: {error}") from None
