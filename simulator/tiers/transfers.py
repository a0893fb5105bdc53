"""The copies into VRAM where experts may lie further off than RAM; see ``hierarchy.py``.

Two things differ from ``Transfers``. Of the experts that a layer misses, those on NVMe get their
room and their copies last: one engine is a queue, and what is near must not wait behind what is
not. And a prefetch goes up in two steps, since a copy to VRAM that waits for NVMe would hold up
every demand after it: an expert that is wished for is first read into RAM, within a window of its
own, and handed over for VRAM once it is there.
"""

from collections.abc import Iterable, Sequence

from moesim.simulator.control.prefetch_queue import PrefetchQueue
from moesim.simulator.control.residency import Pool, Residency
from moesim.simulator.control.transfers import Outbox, Transfers
from moesim.simulator.ledger import Counts
from moesim.simulator.policies.base import CachePolicy, View
from moesim.simulator.terms import Cause, Place
from moesim.simulator.tiers.hierarchy import Shelves, Tiers


class TieredOutbox(Outbox):
    """Asks where an expert lies, and hands over the copies that bring it from there."""

    __slots__ = ("tiers",)

    tiers: Tiers

    def copy(
        self, expert: int, place: Place, cause: Cause, nbytes: int, after: tuple[int, ...] = ()
    ) -> int:
        """Hand over the copies that bring an expert to VRAM, and return the last's number."""
        return self.tiers.fetch(expert, place, cause, nbytes, after)


class TieredTransfers(Transfers):
    """Hands copies over from wherever experts lie, and keeps their books."""

    def __init__(
        self,
        cache: CachePolicy,
        residency: Residency,
        view: View,
        counts: Counts,
        out: TieredOutbox,
        window_bytes: int,
        shelves: Shelves,
    ) -> None:
        super().__init__(cache, residency, view, counts, out, window_bytes)
        self._make_room = None
        self._reserves = True  # what is copied by itself; False while a layer's demand is reserved
        self._promoted: set[int] = set()  # read into RAM for a wish that stands
        self._tiers = out.tiers = Tiers(shelves, counts, view, out)
        view.below = self._tiers

    def place(self, experts: Sequence[int]) -> None:
        """Give room to what lies in VRAM and below before time zero."""
        super().place(experts)
        self._tiers.place(experts)

    def copy_demand(self, experts: Sequence[int]) -> list[tuple[int, Pool]]:
        """Hand over copies of the missing experts of one layer, the nearest first."""
        tiers = self._tiers
        reserved, self._reserves = tiers.reserve(experts), False
        try:
            return super().copy_demand(tiers.nearest_first(experts))
        finally:
            self._reserves = True
            tiers.free(reserved)

    def copy_into(self, pool: Pool, expert: int, cause: Cause, after: tuple[int, ...] = ()) -> bool:
        """Give the expert room in a pool of VRAM and hand its copies over."""
        if not self._reserves:
            return super().copy_into(pool, expert, cause, after)
        reserved = self._tiers.reserve([expert])
        try:
            return super().copy_into(pool, expert, cause, after)
        finally:
            self._tiers.free(reserved)

    def evict(self, expert: int, pool: Pool) -> None:
        """Take an expert's room back, and offer what was here to the tiers below."""
        if self._tiers.takes_victims and expert not in self._residency.loading:
            self._tiers.offer(expert, pool)
        super().evict(expert, pool)

    def hand_over(self, queue: PrefetchQueue) -> None:
        """Hand over prefetches to RAM and to VRAM while their windows have room."""
        tiers, view = self._tiers, self._view
        self._promoted &= queue.wishes.keys()
        is_open = True
        for expert in queue.in_order():
            if self._residency.has_room(expert):
                queue.remove(expert)
            elif tiers.is_far(expert):
                self._promote(expert)
            elif is_open and (view.queued_bytes < self._window_bytes or not self._copies):
                is_open = self.copy_into(self.choose_pool(expert), expert, Cause.PREFETCH)
                if is_open:
                    queue.remove(expert)

    def _promote(self, expert: int) -> None:
        """Read an expert into RAM, once for each wish, while the window of that has room."""
        tiers, queued_bytes = self._tiers, self._tiers.queued_bytes
        has_window = queued_bytes < self._window_bytes or not queued_bytes
        may_come = expert not in self._promoted and not tiers.is_coming(expert)
        if has_window and may_come and tiers.promote(expert):
            self._promoted.add(expert)

    def host_batches(
        self, experts: Sequence[int]
    ) -> Iterable[tuple[Sequence[int], tuple[int, ...]]]:
        """Yield what runs on the CPU at once, and the copies that bring it to RAM."""
        return self._tiers.batches(experts)

    def hold_on_host(self, experts: Sequence[int], run: int) -> None:
        """Keep experts in RAM until a CPU run of them has ended."""
        self._tiers.hold(experts, run)

    def cpu_run_ended(self, run: int) -> None:
        """Note that a CPU run is over."""
        self._tiers.ended(run)

    def _end(self, n: int) -> None:
        if not self._tiers.ended(n):
            super()._end(n)
