"""What a controller keeps its books in: those of whole experts, or those of parts."""

from typing import NamedTuple

from moesim.simulator.errors import CapabilityError
from moesim.simulator.gpus_event import GpusEvents
from moesim.simulator.gpus_plan import GpuPlan
from moesim.simulator.gpus_residency import GpusResidency
from moesim.simulator.gpus_transfers import GpusTransfers
from moesim.simulator.layer_event import LayerEvents
from moesim.simulator.ledger import Counts
from moesim.simulator.policies.base import CachePolicy, RunInfo, SchedulePolicy, View
from moesim.simulator.prefetch_queue import PrefetchQueue
from moesim.simulator.residency import Residency
from moesim.simulator.split_event import SplitEvents
from moesim.simulator.split_residency import SplitResidency
from moesim.simulator.split_transfers import SplitOutbox, SplitTransfers
from moesim.simulator.tiers import Shelves
from moesim.simulator.tiers_transfers import TieredOutbox, TieredTransfers
from moesim.simulator.transfers import Outbox, Transfers


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
        CapabilityError: Experts are split and lie in tiers.
    """
    queue = PrefetchQueue(run.experts)
    shape = run.expert_bytes_L, run.experts, run.top_k, run.budget_bytes
    partition, staging_bytes = cache.partition(), cache.staging_bytes()
    if gpus is not None:
        if partition is not None:
            raise CapabilityError(
                f"{type(cache).__name__} splits experts, and several GPUs hold whole ones; choose "
                "another cache policy, or --gpus 1"
            )
        spread = GpusResidency(run, gpus.home, gpus.rooms_G, cache.quotas_L(), staging_bytes)
        view, sent = View(spread, kv_free_bytes=run.kv_bytes), Outbox()
        copies = GpusTransfers(cache, spread, view, counts, sent, window_bytes, gpus.gpus)
        served = GpusEvents(
            run,
            cache,
            schedule,
            residency=spread,
            transfers=copies,
            queue=queue,
            view=view,
            counts=counts,
            out=sent,
        )
        served.gpus = gpus.gpus
        return Books(spread, view, queue, sent, copies, served)
    if partition is None:
        residency = Residency(*shape, cache.quotas_L(), staging_bytes)
        view = View(residency, kv_free_bytes=run.kv_bytes)
        out: Outbox
        if shelves is None:
            out = Outbox()
            transfers = Transfers(cache, residency, view, counts, out, window_bytes)
        else:
            out = tiered = TieredOutbox()
            transfers = TieredTransfers(
                cache, residency, view, counts, tiered, window_bytes, shelves
            )
        events = LayerEvents(
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
        return Books(residency, view, queue, out, transfers, events)
    if shelves is not None:
        raise CapabilityError(
            f"{type(cache).__name__} splits experts, and tiers below VRAM hold whole ones; choose "
            "another cache policy, or give RAM for all experts and no peer cache"
        )
    parts = SplitResidency(*shape, partition, staging_bytes)
    view, out = View(parts, kv_free_bytes=run.kv_bytes), SplitOutbox(parts.experts_total)
    moves = SplitTransfers(cache, parts, view, counts, out, window_bytes)
    split = SplitEvents(
        run,
        cache,
        schedule,
        residency=parts,
        transfers=moves,
        queue=queue,
        view=view,
        counts=counts,
        out=out,
    )
    return Books(parts, view, queue, out, moves, split)
