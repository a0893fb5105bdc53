"""Quick figures as the two YAML files that a replay reads: a machine and a runtime."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moesim.hardware_profiles import HardwareProfile, RuntimeProfile
from moesim.simulator.results.rows import write_text

BAND = "25%"
HARDWARE, RUNTIME = "cpu-quick", "cpu-threads-quick"


@dataclass(frozen=True, slots=True)
class Figures:
    """What was found, in ns and bytes per second."""

    expert_bytes_per_s: int
    flop_per_s: int
    run_ns: int
    copy_bytes_per_s: int
    slow_down_ppm: int
    dense_fixed_ns: int
    dense_multiple: float
    decision_ns: int


def write_profiles(folder: Path, found: Mapping[str, dict[str, Any]]) -> None:
    """Write both files, so that a validation that goes on uses the same figures."""
    for name, tree in found.items():
        write_text(folder / f"{name}.yaml", yaml.safe_dump(tree, sort_keys=False))


def profiles(found: Mapping[str, dict[str, Any]]) -> tuple[HardwareProfile, RuntimeProfile]:
    """Return the profiles that the trees of two files say."""
    return (
        HardwareProfile.from_tree(found[HARDWARE]),
        RuntimeProfile.from_tree(found[RUNTIME]),
    )


def trees(found: Figures, cores: int) -> dict[str, dict[str, Any]]:
    """Return what the two files hold."""
    source = {
        "evidence": "estimated",
        "band": BAND,
        "source": "moesim validate, quick figures of this CPU",
    }
    absent = {
        "evidence": "estimated",
        "band": "50%",
        "source": "of no effect in the threads driver",
    }
    sources = {"quick": source, "absent": absent}

    def ns(value: int, name: str = "quick") -> list[str]:
        return [f"{value}ns", name]

    copying = {"latency": ns(0), "bandwidth": [f"{found.copy_bytes_per_s}B/s", "quick"]}
    flops = [f"{found.flop_per_s / 1e9:.6f} GFLOP/s", "quick"]
    rate = [f"{found.expert_bytes_per_s}B/s", "quick"]
    machine = {
        "schema": 1,
        "name": HARDWARE,
        "title": "a CPU whose memory plays RAM and VRAM, threads driver",
        "sources": sources,
        "gpu": {
            "name": "none: a thread of the CPU",
            "vram": ["1GiB", "absent"],
            "vram_usable": ["100%", "absent"],
            "memory_bandwidth": rate,
            "bf16": flops,
            "memory_efficiency": ["100%", "quick"],
            "compute_efficiency": ["100%", "quick"],
            "slow_down_while_copying": [f"{found.slow_down_ppm}ppm", "quick"],
        },
        "link": {
            "pcie": ["6.0 x16", "absent"],
            "h2d": copying,
            "d2h": copying,
            "pageable": copying,
            "first_copy": {"extra": ns(0, "absent"), "after": ["1000ms", "absent"]},
        },
        "host": {
            "cpu": "generic",
            "cores": cores,
            "ram": ["1GiB", "absent"],
            "dram_bandwidth": rate,
            "expert_bandwidth": rate,
            "expert_bandwidth_while_copying": rate,
            "expert_flops": flops,
        },
    }
    runtime = {
        "schema": 1,
        "name": RUNTIME,
        "title": "the threads driver: a thread for copies, one for experts, one for the host",
        "sources": sources,
        "launch": {name: ns(0) for name in ("layer", "run", "per_expert", "event")},
        "wait": {"router": ns(0), "poll": ns(0)},
        "copying": {
            "source": "pinned",
            "blocking": False,
            "pieces_per_expert": 1,
            "issue": ns(0),
            "overhead": ns(0),
            "window": "16MiB",
        },
        "kernels": {
            "dense_multiple": [found.dense_multiple, "quick"],
            "dense_fixed": ns(found.dense_fixed_ns),
            "expert_multiple": [1.0, "quick"],
            "expert_fixed": ns(found.run_ns),
            "head_fixed": ns(0),
        },
        "cpu_experts": {"hand_over": ns(found.run_ns), "notice": ns(0)},
        "decisions": {
            "place": "host",
            "default": {"base": ns(found.decision_ns), "per_expert": ns(0), "per_command": ns(0)},
        },
        "memory": {"workspace": ["1MiB", "absent"]},
    }
    return {HARDWARE: machine, RUNTIME: runtime}
