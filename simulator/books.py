"""What a controller keeps its books in: those of whole experts, or those of parts."""

from typing import NamedTuple

from moesim.simulator.layer_event import LayerEvents
from moesim.simulator.ledger import Counts
from moesim.simulator.policies.base import CachePolicy, RunInfo, SchedulePolicy, View
from moesim.simulator.prefetch_queue import PrefetchQueue
from moesim.simulator.residency import Residency
from moesim.simulator.split_event import SplitEvents
from moesim.simulator.split_residency import SplitResidency
from moesim.simulator.split_transfers import SplitOutbox, SplitTransfers
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
    run: RunInfo, cache: CachePolicy, schedule: SchedulePolicy, counts: Counts, window_bytes: int
) -> Books:
    """Return empty books; the cache policy says whether experts are split.

    Raises:
        BudgetError: What the policy asks for does not fit, or cannot hold what one token needs.
    """
    queue = PrefetchQueue(run.experts)
    shape = run.expert_bytes_L, run.experts, run.top_k, run.budget_bytes
    partition, staging_bytes = cache.partition(), cache.staging_bytes()
    if partition is None:
        residency = Residency(*shape, cache.quotas_L(), staging_bytes)
        view, out = View(residency, kv_free_bytes=run.kv_bytes), Outbox()
        transfers = Transfers(cache, residency, view, counts, out, window_bytes)
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
