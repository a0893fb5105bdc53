"""What a row says of several GPUs, and how a report puts it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.control.residency import Residency
from moesim.simulator.gpus.plan import GpuPlan
from moesim.simulator.ledger import Timings

FIELDS: Mapping[str, str] = {
    "gpus": "GPUs of the host that serve; of several, times are those of the busiest GPU and link",
    "placement": "how experts or layers are spread over them; empty: one GPU",
    "bytes_exchanged": "bytes of activations sent from GPU to GPU",
    "by_gpu": "for each of several GPUs: busy times, bytes, experts and VRAM at the peak",
}

NO_BOUNDS = "no bounds: they know one GPU"


def gpu_fields(plan: GpuPlan | None, timings: Timings, residency: Residency) -> dict[str, Any]:
    """Return the fields of a run's GPUs."""
    if plan is None:
        return {"gpus": 1, "placement": "", "bytes_exchanged": 0, "by_gpu": None}
    experts_G = [0] * plan.gpus
    for pool in residency.pools():
        experts_G[pool.device] += pool.peak_bytes
    by_gpu = [
        {
            **asdict(times),
            "peak_expert_bytes": experts_bytes,
            "expert_budget_bytes": room_bytes,
            "peak_vram_bytes": fixed.total_bytes + room_bytes,
        }
        for times, experts_bytes, room_bytes, fixed in zip(
            timings.by_gpu, experts_G, plan.rooms_G, plan.fixed_G, strict=True
        )
    ]
    return {
        "gpus": plan.gpus,
        "placement": plan.placement,
        "bytes_exchanged": sum(times.bytes_sent for times in timings.by_gpu),
        "by_gpu": by_gpu,
    }


def exchange_ns(timings: Timings) -> int:
    """Return the time in which the GPU that sent most was sending activations."""
    return max((times.exchange_busy_ns for times in timings.by_gpu), default=0)


def gpu_lines(row: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield what a report says of several GPUs, as name and text."""
    if row["by_gpu"] is None:
        return
    yield "GPUs", f"{row['gpus']}, experts placed {row['placement'].replace('_', ' ')}"
    span_ns = row["span_ns"] or 1
    for gpu, own in enumerate(row["by_gpu"]):
        yield (
            f"GPU {gpu}",
            f"computes {own['gpu_busy_ns'] / span_ns:.0%}, link {own['link_busy_ns'] / span_ns:.0%}"
            f" ({format_bytes(own['bytes_copied'])}), {format_bytes(own['peak_vram_bytes'])} of "
            "VRAM",
        )
