"""The profiles that a fitted log makes: three figures from it, the rest stands for what it hides.

What a token takes with every expert at hand becomes the rate at which weights are read for
computing, what a missed byte takes becomes the bandwidth of the link, what stumbles add on average
is charged once for each token. Host costs are zero: a log of whole tokens has them in the first.
VRAM stands for wherever the engine keeps its experts, the link for wherever they come from.
"""

from dataclasses import dataclass
from typing import Any

from moesim.simulator.models.cost_shape import CostShape

_LEAST_BAND = 0.01
_PCIE = "6.0 x16"
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Constants:
    """What a log tells.

    Attributes:
        fixed_ns: A token with every expert at hand.
        byte_ns: Each byte missed.
        disturbance_ns: What tokens that stumbled add to each, on average.
    """

    fixed_ns: float
    byte_ns: float
    disturbance_ns: float


def machine_of(
    shape: CostShape,
    rates: Constants,
    shown: Constants,
    source: str,
    bands: tuple[float, float],
) -> dict[str, Any]:
    """Return a hardware profile as its YAML has it, named later.

    Args:
        shape: What is computed: its bytes turn a time into a rate.
        rates: What the machine is made of.
        shown: What a replay on it shows.
        source: What it was fitted to.
        bands: Relative errors on what was not fitted: undisturbed, and of the mean.
    """
    token_bytes = shape.head_bytes + sum(
        layer.dense_bytes + shape.top_k * layer.expert_bytes for layer in shape.layers
    )
    rate = max(1, round(token_bytes / rates.fixed_ns * 1e9))
    link_rate = max(1, round(1e9 / rates.byte_ns))
    memory = f"{2 * (shape.expert_bytes_total + shape.resident_bytes) // _GIB + 1}GiB"
    computing = [f"{rate}B/s", "computing"]
    reading = {"latency": ["0us", "reading"], "bandwidth": [f"{link_rate}B/s", "reading"]}
    return {
        "schema": "1",
        "title": f"fitted to {source}; decode alone, prompts take more computing than this",
        "sources": {
            "computing": _estimate(
                f"a replay shows {shown.fixed_ns / 1e6:.3f} ms a token with every expert at hand, "
                f"as fitted to {source}",
                bands[0],
            ),
            "reading": _estimate(
                f"a replay shows {shown.byte_ns:.6f} ns for each byte missed, beyond what is "
                f"hidden behind computing, as fitted to {source}",
                bands[0],
            ),
            "hidden": _estimate("not in a log of one model's tokens; room for all is taken", 0.5),
        },
        "gpu": {
            "name": "whatever computes",
            "vram": [memory, "hidden"],
            "vram_usable": ["100%", "hidden"],
            "memory_bandwidth": computing,
            "bf16": ["1000 TFLOP/s", "hidden"],
            "memory_efficiency": ["100%", "computing"],
            "compute_efficiency": ["100%", "hidden"],
            "slow_down_while_copying": ["0%", "hidden"],
        },
        "link": {
            "pcie": [_PCIE, "hidden"],
            "h2d": reading,
            "d2h": reading,
            "pageable": reading,
            "first_copy": {"extra": ["0us", "hidden"], "after": ["1s", "hidden"]},
        },
        "host": {
            "cpu": "whatever decides",
            "cores": "1",
            "ram": [memory, "hidden"],
            "dram_bandwidth": computing,
            "expert_bandwidth": computing,
            "expert_bandwidth_while_copying": computing,
            "expert_flops": ["1000 TFLOP/s", "hidden"],
        },
    }


def runtime_of(rates: Constants, source: str, bands: tuple[float, float]) -> dict[str, Any]:
    """Return the runtime profile that goes with `machine_of`."""
    nothing = ["0us", "computing"]
    return {
        "schema": "1",
        "title": f"fitted to {source}",
        "sources": {
            "computing": _estimate(f"within the machine's rates, fitted to {source}", bands[0]),
            "disturbance": _estimate(
                "what tokens that took far longer than their weights explain add to each, on "
                f"average, in {source}; set it to 0us for an undisturbed machine",
                bands[1],
            ),
            "hidden": _estimate("not in a log of one model's tokens", 0.5),
        },
        "launch": dict.fromkeys(("layer", "run", "per_expert", "event"), nothing),
        "wait": {"router": nothing, "poll": nothing},
        "copying": {
            "source": "pinned",
            "blocking": "no",
            "pieces_per_expert": "1",
            "issue": nothing,
            "overhead": nothing,
            "window": "16MiB",
        },
        "kernels": {
            "dense_multiple": ["1.0", "computing"],
            "dense_fixed": nothing,
            "expert_multiple": ["1.0", "computing"],
            "expert_fixed": nothing,
            "head_fixed": [f"{rates.disturbance_ns / 1000:.3f}us", "disturbance"],
        },
        "decisions": {
            "place": "host",
            "default": dict.fromkeys(("base", "per_expert", "per_command"), nothing),
        },
        "memory": {"workspace": ["1MiB", "hidden"]},
    }


def _estimate(source: str, band: float) -> dict[str, str]:
    ppm = min(1_000_000, max(round(_LEAST_BAND * 1e6), round(band * 1e6)))
    return {"evidence": "estimated", "band": f"{ppm}ppm", "source": source}
