"""What a row says of the tiers below VRAM, and how a report puts it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.ledger import Counts, Timings
from moesim.simulator.tiers.plan import TierPlan
from moesim.traces import RoutingTrace

# T tokens, L MoE layers, K chosen.

FIELDS: Mapping[str, str] = {
    "host_cache": "cache policy of RAM, which does not hold all experts; empty: it does",
    "host_cache_bytes": "room for experts in RAM; empty: for all",
    "host_demands": "demands for which an expert was looked for in RAM, where it may be absent",
    "host_hit_rate": "share of them whose expert was there",
    "peer_cache": "cache policy of the VRAM that another GPU lends; empty: none does",
    "peer_cache_bytes": "how much it lends",
    "bytes_demoted": "bytes that left VRAM for a tier below",
    "nvme_busy_ns": "time NVMe was read",
    "peer_busy_ns": "time the link from the other GPU was in use",
    "bound_nvme_bytes": "bytes that any policy must read from NVMe",
}

BOUNDS_WITHOUT_NVME = "the bounds leave NVMe out, and hold all the same"
BOUNDS_WITHOUT_PEER = "no bounds: they know no copies from another GPU"


def tier_fields(
    plan: TierPlan | None, counts: Counts, timings: Timings, bound_nvme_bytes: int | None
) -> dict[str, Any]:
    """Return the fields of the tiers of a run."""
    host = None if plan is None else plan.host
    peer = None if plan is None else plan.peer
    found = counts.host_hits / counts.host_demands if counts.host_demands else None
    return {
        "host_cache": "" if host is None else _host_text(plan, host.text),
        "host_cache_bytes": None if plan is None or host is None else plan.host_bytes,
        "host_demands": counts.host_demands,
        "host_hit_rate": None if found is None else round(found, 9),
        "peer_cache": "" if peer is None else peer.text,
        "peer_cache_bytes": 0 if plan is None else plan.peer_bytes,
        "bytes_demoted": counts.bytes_demoted,
        "nvme_busy_ns": timings.engines_busy_ns.get("nvme", 0),
        "peer_busy_ns": timings.engines_busy_ns.get("peer", 0),
        "bound_nvme_bytes": bound_nvme_bytes,
    }


def _host_text(plan: TierPlan | None, policy: str) -> str:
    return f"{policy} (exclusive)" if plan is not None and plan.is_exclusive else policy


def least_nvme_bytes(
    plan: TierPlan | None, trace: RoutingTrace, sizes_L: Iterable[int], bytes_initial: int
) -> int | None:
    """Return what must be read from NVMe: what is used and lies nowhere else as the run begins.

    Args:
        plan: The tiers.
        trace: What is demanded.
        sizes_L: Bytes of one expert of each layer.
        bytes_initial: Those that lie in VRAM as the run begins.

    Returns:
        None where RAM holds all experts.
    """
    if plan is None or plan.host is None:
        return None
    used_bytes = 0
    for layer, size in enumerate(sizes_L):
        used = np.unique(np.asarray(trace.expert_TLK[:, layer]))
        used_bytes += size * int((used >= 0).sum())
    return max(0, used_bytes - plan.host_bytes - plan.peer_bytes - bytes_initial)


def tier_lines(row: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield the lines of a report that tell of the tiers, if there are any."""
    tokens, span_ns = row["tokens"] or 1, row["span_ns"] or 1
    if row["host_cache"]:
        room = format_bytes(row["host_cache_bytes"])
        rate = row["host_hit_rate"]
        hit = "nothing was looked for" if rate is None else f"hit {rate * 100:.1f} %"
        least = row["bound_nvme_bytes"]
        at_least = "" if least is None else f" (at least {format_bytes(least // tokens)})"
        read = format_bytes(row["bytes_nvme"] // tokens)
        yield "RAM", f"{room} of experts, {row['host_cache']}: {hit} of {row['host_demands']}"
        busy = row["nvme_busy_ns"] / span_ns * 100
        yield "NVMe", f"{read} per token{at_least}, busy {busy:.1f} % of the time"
    if row["peer_cache"]:
        moved = format_bytes(row["bytes_peer"] // tokens)
        busy = row["peer_busy_ns"] / span_ns * 100
        yield (
            "peer",
            f"{format_bytes(row['peer_cache_bytes'])} of experts, {row['peer_cache']}: {moved} "
            f"per token, its link busy {busy:.1f} % of the time",
        )
    if row["bytes_demoted"]:
        yield "demoted", f"{format_bytes(row['bytes_demoted'] // tokens)} per token"
