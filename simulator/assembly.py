"""Builds a controller with fresh policies, each told what it declared that it needs and no more.

Simulator and backend build theirs here, so that what decides is the same, built in the same way.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from moesim.simulator import registry
from moesim.simulator.controller import Controller
from moesim.simulator.gpus.plan import GpuPlan
from moesim.simulator.policies.base import UNLIMITED_BYTES, CachePolicy, Costs, RunInfo
from moesim.simulator.registry import Axis, PolicySpec
from moesim.simulator.tiers.hierarchy import Shelves
from moesim.simulator.tiers.plan import TierPlan
from moesim.simulator.workload.foresight import RecordedFuture, popularity, transitions
from moesim.traces import RoutingTrace

_CACHE: tuple[Axis, ...] = ("cache",)


def build_policies(
    policies: Mapping[Axis, PolicySpec],
    *,
    experts: int,
    top_k: int,
    sizes_L: Sequence[int],
    budget_bytes: int,
    costs: Costs,
    seed: int = 0,
    profile_trace: RoutingTrace | None = None,
    future: RecordedFuture | None = None,
    kv_bytes: int = UNLIMITED_BYTES,
    axes: Collection[Axis] = tuple(registry.AXES),
) -> tuple[dict[Axis, RunInfo], dict[Axis, Any]]:
    """Return what each policy is told, and fresh policies.

    Args:
        policies: One of each axis.
        experts: As for `assemble`.
        top_k: As for `assemble`.
        sizes_L: As for `assemble`.
        budget_bytes: As for `assemble`.
        costs: As for `assemble`.
        seed: As for `assemble`.
        profile_trace: As for `assemble`.
        future: As for `assemble`.
        kv_bytes: As for `assemble`.
        axes: Those of which a policy is built; which they are changes nothing for the others.
    """
    streams = np.random.SeedSequence(seed).spawn(len(registry.AXES))
    runs: dict[Axis, RunInfo] = {}
    built: dict[Axis, Any] = {}
    for axis, stream in zip(registry.AXES, streams, strict=True):
        if axis not in axes:
            continue
        needs = policies[axis].needs
        counted = profile_trace if needs & {"profile", "transitions"} else None
        runs[axis] = RunInfo(
            layers=len(sizes_L),
            experts=experts,
            top_k=top_k,
            expert_bytes_L=tuple(sizes_L),
            budget_bytes=budget_bytes,
            costs=costs,
            rng=np.random.default_rng(stream),
            popularity_LE=popularity(counted) if counted and "profile" in needs else None,
            follows_LEE=transitions(counted) if counted and "transitions" in needs else None,
            future=future if "future" in needs else None,
            profile_trace=counted if "profile" in needs else None,
            kv_bytes=kv_bytes,
        )
        built[axis] = policies[axis].build(runs[axis])
    return runs, built


def build_shelves(tiers: TierPlan, *, seed: int, **told: Any) -> Shelves:  # noqa: ANN401  as it is
    """Return the shelves of a run's tiers, with fresh policies and random streams of their own.

    Args:
        tiers: Which there are.
        seed: As for `assemble`.
        told: What `build_policies` takes but policies, room, seed and axes.
    """

    def build(policy: PolicySpec, room_bytes: int, number: int) -> tuple[RunInfo, CachePolicy]:
        own_seed = int(np.random.SeedSequence([seed, number + 1]).generate_state(1)[0])
        runs, built = build_policies(
            {"cache": policy}, budget_bytes=room_bytes, seed=own_seed, axes=_CACHE, **told
        )
        return runs["cache"], built["cache"]

    return tiers.shelves(build)


def assemble(
    policies: Mapping[Axis, PolicySpec],
    *,
    experts: int,
    top_k: int,
    sizes_L: Sequence[int],
    budget_bytes: int,
    costs: Costs,
    window_bytes: int,
    seed: int = 0,
    profile_trace: RoutingTrace | None = None,
    future: RecordedFuture | None = None,
    kv_bytes: int = UNLIMITED_BYTES,
    tiers: TierPlan | None = None,
    gpus: GpuPlan | None = None,
    keep_log: bool = False,
) -> Controller:
    """Return a fresh controller; that the run can grant what the policies need was checked before.

    Args:
        policies: One of each axis.
        experts: Experts of each MoE layer.
        top_k: Experts that a token uses in each layer.
        sizes_L: Bytes of one expert of each layer.
        budget_bytes: Room for experts, staging included.
        costs: What cost-aware policies may ask.
        window_bytes: Prefetches are handed over while fewer bytes than these are unfinished.
        seed: Of the policies' random streams, one for each axis.
        profile_trace: Another recording of the same model, for offline-profiled policies.
        future: The demands to come, for those that may see them.
        kv_bytes: Room for the KV caches of all requests together.
        tiers: Where experts lie that are not in VRAM; None puts them all in RAM.
        gpus: How experts are spread over several GPUs; None if there is one.
        keep_log: Whether the controller keeps every call.
    """
    told: dict[str, Any] = {
        "experts": experts,
        "top_k": top_k,
        "sizes_L": sizes_L,
        "costs": costs,
        "seed": seed,
        "profile_trace": profile_trace,
        "future": future,
        "kv_bytes": kv_bytes,
    }
    runs, built = build_policies(policies, budget_bytes=budget_bytes, **told)
    return Controller(
        runs["cache"],
        built["cache"],
        built["prefetch"],
        built["schedule"],
        window_bytes=window_bytes,
        keep_log=keep_log,
        shelves=None if tiers is None else build_shelves(tiers, **told),
        gpus=gpus,
    )
