"""What a controller keeps its books in: whole experts or parts, on one GPU or several, in tiers."""

from typing import NamedTuple

from moesim.simulator.control.layer_event import LayerEvents
from moesim.simulator.control.prefetch_queue import PrefetchQueue
from moesim.simulator.control.residency import Residency, WholeResidency
from moesim.simulator.control.splits.layer_event import SplitEvents
from moesim.simulator.control.splits.residency import SplitResidency
from moesim.simulator.control.splits.transfers import SplitOutbox, SplitTransfers
from moesim.simulator.control.transfers import Outbox, Transfers
from moesim.simulator.errors import CapabilityError
from moesim.simulator.gpus.layer_event import GpusEvents
from moesim.simulator.gpus.plan import GpuPlan
from moesim.simulator.gpus.residency import GpusResidency
from moesim.simulator.gpus.transfers import GpusTransfers
from moesim.simulator.ledger import Counts
from moesim.simulator.policies.base import CachePolicy, RunInfo, SchedulePolicy, View
from moesim.simulator.tiers.hierarchy import Shelves
from moesim.simulator.tiers.transfers import TieredOutbox, TieredTransfers


class Books(NamedTuple):
    """Who has room, what policies see, what was wished for, what is commanded, copies, events."""

    residency: Residency
    view: View
    queue: PrefetchQueue
    out: Outbox
    transfers: Transfers
    events: LayerEvents


def open_books(
    run: RunInfo,
    cache: CachePolicy,
    schedule: SchedulePolicy,
    counts: Counts,
    window_bytes: int,
    shelves: Shelves | None = None,
    gpus: GpuPlan | None = None,
) -> Books:
    """Return empty books; the cache policy says whether experts are split.

    Args:
        run: What the cache policy was told.
        cache: What stays in VRAM.
        schedule: Where experts run.
        counts: Where decisions are counted.
        window_bytes: Prefetches are handed over while fewer bytes than these are unfinished.
        shelves: What lies between VRAM and the tier that has everything; None if nothing does.
        gpus: How experts are spread over several GPUs; None if there is one.

    Raises:
        BudgetError: What the policy asks for does not fit, or cannot hold what one token needs.
        CapabilityError: Experts are split, and lie in tiers or on several GPUs.
    """
    partition, staging_bytes = cache.partition(), cache.staging_bytes()
    if partition is not None:
        _check_whole(cache, shelves, gpus)
    shape = run.expert_bytes_L, run.experts, run.top_k, run.budget_bytes
    residency: Residency
    transfers: Transfers
    out = Outbox()
    events: type[LayerEvents] = LayerEvents

    def seen(residency: Residency) -> View:
        return View(residency, kv_free_bytes=run.kv_bytes)

    if partition is not None:
        residency = parts = SplitResidency(*shape, partition, staging_bytes)
        view, out, events = seen(parts), SplitOutbox(parts.experts_total), SplitEvents
        transfers = SplitTransfers(cache, parts, view, counts, out, window_bytes)
    elif gpus is not None:
        residency = spread = GpusResidency(
            run, gpus.home, gpus.rooms_G, cache.quotas_L(), staging_bytes
        )
        view, events = seen(spread), GpusEvents
        transfers = GpusTransfers(cache, spread, view, counts, out, window_bytes)
    else:
        residency = WholeResidency(*shape, cache.quotas_L(), staging_bytes)
        view = seen(residency)
        if shelves is None:
            transfers = Transfers(cache, residency, view, counts, out, window_bytes)
        else:
            out = tiered = TieredOutbox()
            transfers = TieredTransfers(
                cache, residency, view, counts, tiered, window_bytes, shelves
            )
    queue = PrefetchQueue(run.experts)
    served = events(
        run,
        cache,
        schedule,
        residency=residency,
        transfers=transfers,
        queue=queue,
        view=view,
        counts=counts,
        out=out,
    )
    return Books(residency, view, queue, out, transfers, served)


def _check_whole(cache: CachePolicy, shelves: Shelves | None, gpus: GpuPlan | None) -> None:
    """Refuse what holds whole experts only, for a policy that splits them."""
    if gpus is not None:
        raise CapabilityError(
            f"{type(cache).__name__} splits experts, and several GPUs hold whole ones; choose "
            "another cache policy, or --gpus 1"
        )
    if shelves is not None:
        raise CapabilityError(
            f"{type(cache).__name__} splits experts, and tiers below VRAM hold whole ones; choose "
            "another cache policy, or give RAM for all experts and no peer cache"
        )
