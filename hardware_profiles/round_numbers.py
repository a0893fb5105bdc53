"""A machine and a runtime of round numbers, for tests and examples that are checked by hand.

Every figure is called datasheet without a band, so that what a test sees is arithmetic alone.
"""

from collections.abc import Sequence
from typing import Any

from moesim.hardware_profiles.runtime_schema import RuntimeProfile
from moesim.hardware_profiles.schema import HardwareProfile

_SOURCES = {"round": {"evidence": "datasheet", "source": "round numbers for tests"}}


def _ns(time_ns: int) -> list[str]:
    return [f"{time_ns}ns", "round"]


def _rate(bytes_per_s: int) -> list[str]:
    return [f"{bytes_per_s}B/s", "round"]


def _flop(flop_per_s: int) -> list[str]:
    return [f"{flop_per_s / 10**9}GFLOP/s", "round"]


def round_machine(
    *,
    vram_bytes: int = 24 * 2**30,
    memory_bytes_per_s: int = 10**12,
    flop_per_s: int = 10**15,
    slow_down_ppm: int = 50_000,
    link_bytes_per_s: int = 10**10,
    link_latency_ns: int = 5_000,
    pageable_bytes_per_s: int = 10**9,
    first_copy_extra_ns: int = 200_000,
    pause_threshold_ns: int = 100_000_000,
    cpu_bytes_per_s: int = 10**11,
    cpu_flop_per_s: int = 10**12,
    gpus: int = 2,
    pairs: Sequence[tuple[int, int]] = ((0, 1),),
    peer_bytes_per_s: int | None = None,
    peer_latency_ns: int | None = None,
    shared: Sequence[tuple[Sequence[int], int]] = (),
    shared_back: Sequence[tuple[Sequence[int], int]] = (),
    dram_bytes_per_s: int | None = None,
    nvme_bytes_per_s: int = 10**9,
    nvme_latency_ns: int = 100_000,
) -> HardwareProfile:
    """Return a machine on which 1 MB takes 100 µs over PCIe, 1 µs in VRAM and 10 µs on the CPU.

    NVLink is as fast as PCIe unless its own figures are given, and DRAM as the CPU's. ``shared``
    are GPUs and the bytes/s that their links carry together to them, ``shared_back`` from them.
    """
    link: dict[str, Any] = {"latency": _ns(link_latency_ns), "bandwidth": _rate(link_bytes_per_s)}
    return HardwareProfile.from_tree(
        {
            "schema": 1,
            "name": "round",
            "title": "round numbers for tests",
            "sources": _SOURCES,
            "gpus": gpus,
            "gpu": {
                "name": "round GPU",
                "vram": [f"{vram_bytes}B", "round"],
                "vram_usable": ["100%", "round"],
                "memory_bandwidth": _rate(memory_bytes_per_s),
                "bf16": _flop(flop_per_s),
                "memory_efficiency": ["100%", "round"],
                "compute_efficiency": ["100%", "round"],
                "slow_down_while_copying": [f"{slow_down_ppm}ppm", "round"],
            },
            "link": {
                "pcie": ["6.0 x16", "round"],
                "h2d": link,
                "d2h": link,
                "pageable": link | {"bandwidth": _rate(pageable_bytes_per_s)},
                "first_copy": {"extra": _ns(first_copy_extra_ns), "after": _ns(pause_threshold_ns)},
                "peer": {
                    "latency": _ns(link_latency_ns if peer_latency_ns is None else peer_latency_ns),
                    "bandwidth": _rate(peer_bytes_per_s or link_bytes_per_s),
                    "kind": "nvlink",
                    "pairs": [list(pair) for pair in pairs],
                },
                "shared": {
                    f"switch {number}": {"gpus": list(members), "h2d": _rate(most)}
                    for number, (members, most) in enumerate(shared)
                }
                | {
                    f"way back {number}": {
                        "gpus": list(members),
                        "h2d": _rate(10**15),
                        "d2h": _rate(most),
                    }
                    for number, (members, most) in enumerate(shared_back)
                },
            },
            "host": {
                "cpu": "round CPU",
                "cores": 8,
                "ram": ["64GiB", "round"],
                "dram_bandwidth": _rate(dram_bytes_per_s or cpu_bytes_per_s),
                "expert_bandwidth": _rate(cpu_bytes_per_s),
                "expert_bandwidth_while_copying": _rate(cpu_bytes_per_s // 2),
                "expert_flops": _flop(cpu_flop_per_s),
            },
            "nvme": {"latency": _ns(nvme_latency_ns), "bandwidth": _rate(nvme_bytes_per_s)},
        }
    )


def round_runtime(
    *,
    source: str = "pinned",
    blocking: bool = False,
    pieces_per_expert: int = 1,
    copy_overhead_ns: int = 0,
    copy_start_ns: int = 0,
    copy_issue_ns: int = 2_000,
    launch_layer_ns: int = 10_000,
    launch_run_ns: int = 5_000,
    launch_per_expert_ns: int = 1_000,
    launch_prompt_layer_ns: int | None = None,
    launch_prompt_expert_ns: int | None = None,
    launch_prompt_run_ns: int | None = None,
    event_ns: int = 0,
    router_wait_ns: int = 4_000,
    poll_ns: int = 1_000,
    dense_fixed_ns: int = 0,
    expert_fixed_ns: int = 0,
    head_fixed_ns: int = 0,
    expert_after_copy_ns: int = 0,
    expert_while_copying_ns: int = 0,
    kernel_multiple: float = 1.0,
    hand_over_ns: int = 3_000,
    notice_ns: int = 2_000,
    decision_ns: tuple[int, int, int] = (1_000, 100, 10),
    decision_place: str = "host",
) -> RuntimeProfile:
    """Return a runtime whose kernels reach the roofline and whose host costs are round.

    Prompts are launched at the cost of decode steps unless their own is given.
    `decision_ns` is base, per expert and per command; `kernel_multiple` is that of dense and
    expert kernels alike.
    """
    base, per_expert, per_command = decision_ns
    prompt_ns = {
        "prompt_layer": launch_prompt_layer_ns,
        "prompt_expert": launch_prompt_expert_ns,
        "prompt_run": launch_prompt_run_ns,
    }
    return RuntimeProfile.from_tree(
        {
            "schema": 1,
            "name": "round",
            "title": "round numbers for tests",
            "sources": _SOURCES,
            "launch": {
                "layer": _ns(launch_layer_ns),
                "run": _ns(launch_run_ns),
                "per_expert": _ns(launch_per_expert_ns),
                "event": _ns(event_ns),
                **{key: _ns(time_ns) for key, time_ns in prompt_ns.items() if time_ns is not None},
            },
            "wait": {"router": _ns(router_wait_ns), "poll": _ns(poll_ns)},
            "copying": {
                "source": source,
                "blocking": blocking,
                "pieces_per_expert": pieces_per_expert,
                "issue": _ns(copy_issue_ns),
                "overhead": _ns(copy_overhead_ns),
                "start": _ns(copy_start_ns),
                "window": "16MiB",
            },
            "kernels": {
                "dense_multiple": [kernel_multiple, "round"],
                "dense_fixed": _ns(dense_fixed_ns),
                "expert_multiple": [kernel_multiple, "round"],
                "expert_fixed": _ns(expert_fixed_ns),
                "head_fixed": _ns(head_fixed_ns),
                "expert_after_copy": _ns(expert_after_copy_ns),
                "expert_while_copying": _ns(expert_while_copying_ns),
            },
            "cpu_experts": {"hand_over": _ns(hand_over_ns), "notice": _ns(notice_ns)},
            "decisions": {
                "place": decision_place,
                "default": {
                    "base": _ns(base),
                    "per_expert": _ns(per_expert),
                    "per_command": _ns(per_command),
                },
            },
            "memory": {"workspace": ["1GiB", "round"]},
        }
    )
