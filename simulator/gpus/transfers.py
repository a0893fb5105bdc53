"""The copies under way to several GPUs: every link has a queue and a window of its own."""

from moesim.simulator.control.prefetch_queue import PrefetchQueue
from moesim.simulator.control.residency import Pool
from moesim.simulator.control.transfers import Outbox, Transfers
from moesim.simulator.gpus.residency import GpusResidency
from moesim.simulator.ledger import Counts
from moesim.simulator.policies.base import CachePolicy, View
from moesim.simulator.terms import Cause


class GpusTransfers(Transfers):
    """Hands copies over to the GPUs where experts live, and keeps their books."""

    def __init__(
        self,
        cache: CachePolicy,
        residency: GpusResidency,
        view: View,
        counts: Counts,
        out: Outbox,
        window_bytes: int,
    ) -> None:
        super().__init__(cache, residency, view, counts, out, window_bytes)
        self._make_room = None  # it takes room from one pool
        self._home = residency.home
        self._queued_G = [0] * residency.gpus

    def copy_into(self, pool: Pool, expert: int, cause: Cause, after: tuple[int, ...] = ()) -> bool:
        """Give the expert room in the pool and hand its copy over; see `Transfers.copy_into`."""
        if not super().copy_into(pool, expert, cause, after):
            return False
        self._queued_G[pool.device] += self._residency.size(expert)
        return True

    def hand_over(self, queue: PrefetchQueue) -> None:
        """Hand over prefetches while the window of their GPU has room."""
        closed: set[int] = set()
        for expert in queue.in_order():
            gpu = self._home(expert)
            if gpu in closed:
                continue
            if self._queued_G[gpu] < self._window_bytes and (
                self._residency.has_room(expert)
                or self.copy_into(self.choose_pool(expert), expert, Cause.PREFETCH)
            ):
                queue.remove(expert)
                continue
            closed.add(gpu)
            if len(closed) == len(self._queued_G):
                return

    def _end(self, n: int) -> None:
        expert = self._copies.get(n)
        super()._end(n)
        assert expert is not None
        self._queued_G[self._home(expert)] -= self._residency.size(expert)
