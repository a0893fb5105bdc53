"""Builds a controller with fresh policies, each told what it declared that it needs and no more.

Simulator and backend build theirs here, so that what decides is the same, built in the same way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moesim.simulator import registry
from moesim.simulator.controller import Controller
from moesim.simulator.foresight import RecordedFuture, popularity, transitions
from moesim.simulator.policies.base import Costs, RunInfo
from moesim.simulator.registry import Axis, PolicySpec
from moesim.traces import RoutingTrace


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
        keep_log: Whether the controller keeps every call.
    """
    streams = np.random.SeedSequence(seed).spawn(len(registry.AXES))
    runs: dict[Axis, RunInfo] = {}
    built: dict[Axis, Any] = {}
    for axis, stream in zip(registry.AXES, streams, strict=True):
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
        )
        built[axis] = policies[axis].build(runs[axis])
    return Controller(
        runs["cache"],
        built["cache"],
        built["prefetch"],
        built["schedule"],
        window_bytes=window_bytes,
        keep_log=keep_log,
    )
