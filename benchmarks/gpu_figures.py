"""The profiles that predict what two GPUs do: named or measured here, with this run's own links."""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from time import perf_counter_ns
from typing import Any

from two_gpus import REPEATS, SECOND_NS, Rig, command_given, today

from moesim import hardware_profiles
from moesim.backends.calibration import run as calibration
from moesim.backends.calibration.cuda_bench import CudaBench
from moesim.backends.controllers import Deciding
from moesim.hardware_profiles import HardwareProfile, RuntimeProfile, load_runtime
from moesim.hardware_profiles.link import Peer, Route
from moesim.simulator.engines.counts import count
from moesim.simulator.messages import LayerRouted
from moesim.simulator.workload.demands import Workload
from moesim.validation import quick_profile
from moesim.validation.provenance import without_folder
from moesim.validation.quick_files import write_profiles

MACHINE, RUNTIME = "two-gpus", "two-gpus-cuda"
"""What profiles that are measured here are called, and their files."""


def take_profiles(rig: Rig, given: argparse.Namespace, folder: Path | None) -> None:
    """Take the profiles that predict; those that are measured here are kept in a folder."""
    if rig.device.type == "cpu":
        opened = rig.subject.opened
        machine, runtime, _ = quick_profile.measure(
            rig.subject.serve, opened.costs_of, rig.fitted, 2
        )
        rig.profiles, rig.sources = (machine, runtime), {"profiles": "quick figures of this run"}
        return
    if not given.calibrate:
        rig.profiles = hardware_profiles.load(given.hardware), load_runtime(given.runtime)
        names = map(without_folder, (given.hardware, given.runtime))
        rig.sources = {"profiles": ", ".join(names)}
        return
    found = calibration.calibrate(
        CudaBench(), name=MACHINE, seconds=given.calibrate, command=command_given()
    )
    trees = {MACHINE: found.machine, RUNTIME: {**found.runtime, "name": RUNTIME}}
    if folder is not None:
        write_profiles(folder, trees)
    rig.profiles = (
        HardwareProfile.from_tree(trees[MACHINE]),
        RuntimeProfile.from_tree(trees[RUNTIME]),
    )
    rig.sources = {"profiles": f"calibrated in this run, {given.calibrate:g} s of samples"}


def with_links(
    profiles: tuple[HardwareProfile, RuntimeProfile],
    size: int,
    h2d_each_ns: float | None = None,
    peer_each_ns: float | None = None,
) -> tuple[HardwareProfile, RuntimeProfile]:
    """Return profiles whose links carry copies of one size as fast as they did in this run.

    What the runtime adds to each copy from the host is in what was measured, and taken out.

    Args:
        profiles: Machine and runtime.
        size: Bytes of each copy.
        h2d_each_ns: From one copy's end to the next one's, from the host; None leaves it as it is.
        peer_each_ns: The same from another GPU.
    """
    machine, runtime = profiles
    links: dict[str, Route] = {}
    if h2d_each_ns is not None:
        links["h2d"] = Route(**_figures(size, h2d_each_ns - runtime.copying.overhead.value))
    if peer_each_ns is not None:
        links["peer"] = Peer(kind="nvlink", pairs=((0, 1),), **_figures(size, peer_each_ns))
    link = machine.link.model_copy(update=links)
    return machine.model_copy(update={"gpus": 2, "link": link}), runtime


def _figures(size: int, ns: float) -> dict[str, Any]:
    """Return latency and bandwidth of a route: all of a copy's time is its bytes' time."""
    told: dict[str, Any] = {
        "evidence": "measured",
        "source": f"copies of {size} bytes in a row, in this run",
        "measured": {
            "command": command_given(),
            "date": today(),
            "driver": "the driver's own calls",
            "samples": REPEATS,
            "spread": "5%",
        },
    }
    rate = round(size * SECOND_NS / max(1.0, ns))
    return {"latency": {"value": "0ns", **told}, "bandwidth": {"value": f"{rate}B/s", **told}}


def with_decisions(
    rig: Rig, profiles: tuple[HardwareProfile, RuntimeProfile], deciding: Deciding
) -> tuple[HardwareProfile, RuntimeProfile]:
    """Return profiles that charge what another GPU's memory adds to a decision of one token.

    It is measured here, on the request that figures may be fitted on: the same calls with that
    memory and without.
    """
    if deciding.tiers is None:
        return profiles
    machine, runtime = profiles
    alone = replace(deciding, tiers=None)
    more_ns = max(0.0, _call_ns(rig, deciding) - _call_ns(rig, alone))
    row = runtime.decisions.default
    base = row.base.model_copy(update={"value": row.base.value + round(more_ns)})
    decisions = runtime.decisions.model_copy(
        update={"default": row.model_copy(update={"base": base})}
    )
    return machine, runtime.model_copy(update={"decisions": decisions})


def _call_ns(rig: Rig, deciding: Deciding) -> float:
    """Return the mean time of a call that a router of one token's step brings about."""
    trace, store = rig.fitted, rig.subject.opened.store
    found = []
    for _ in range(REPEATS):
        told: dict[str, Any] = {
            "experts": trace.experts,
            "top_k": trace.top_k,
            "sizes_L": store.sizes_L,
        }
        recorded = deciding.controller(**told, keep_log=True)
        count(recorded, Workload(trace), budget_bytes=deciding.budget_bytes)
        again = deciding.controller(**told)
        times_ns = []
        for facts, now_ns, _ in recorded.log or []:
            began_ns = perf_counter_ns()
            again.decide(facts, now_ns)
            took_ns = perf_counter_ns() - began_ns
            if any(_is_one_token(fact, trace.top_k) for fact in facts):
                times_ns.append(took_ns)
        found.append(fmean(times_ns))
    return min(found)


def _is_one_token(fact: object, top_k: int) -> bool:
    return isinstance(fact, LayerRouted) and len(fact.experts) == top_k
