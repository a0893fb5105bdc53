"""The copies of parts: bottoms into the buffer, tops into their layer's pool.

The cache policy hears of tops alone. Where no slot of the buffer is free, a prefetch may have that
of a bottom whose run was handed over: its copy waits for that run.
"""

from collections.abc import Collection, Iterable

from moesim.simulator.control.prefetch_queue import PrefetchQueue
from moesim.simulator.control.residency import Pool
from moesim.simulator.control.splits.residency import SplitResidency
from moesim.simulator.control.transfers import Outbox, Transfers
from moesim.simulator.ledger import Counts
from moesim.simulator.messages import Copies, Copy
from moesim.simulator.policies.base import CachePolicy, Partition, View
from moesim.simulator.terms import RAM, Cause, Place


class SplitOutbox(Outbox):
    """Takes units, and names their parts and experts in commands."""

    __slots__ = ("_experts",)

    def __init__(self, experts: int) -> None:
        super().__init__()
        self._experts = experts

    def copy(
        self, expert: int, place: Place, cause: Cause, nbytes: int, after: tuple[int, ...] = ()
    ) -> int:
        """Hand over the copy of a unit, and return its number."""
        part, expert = divmod(expert, self._experts)
        self.number = number = self.number + 1
        commands = self.commands
        if after:
            commands.append(Copy(number, expert, part, RAM, place, cause, after))
            return number
        last = commands[-1] if commands else None
        is_alike = isinstance(last, Copies) and last[3:6] == (cause, nbytes, part)
        if isinstance(last, Copies) and is_alike:
            last.experts.append(expert)
            last.places.append(place)
            return number
        commands.append(Copies(number, [expert], [place], cause, nbytes, part))
        return number


class SplitTransfers(Transfers):
    """Hands copies of parts over and keeps their books, by unit."""

    def __init__(
        self,
        cache: CachePolicy,
        residency: SplitResidency,
        view: View,
        counts: Counts,
        out: Outbox,
        window_bytes: int,
    ) -> None:
        super().__init__(cache, residency, view, counts, out, window_bytes)
        self._parts = residency
        self._on_admit = self._admitted
        self._on_evict = self._evicted

    def copy_missing(self, units: Collection[int]) -> list[tuple[int, Pool]]:
        """Give units of the open layer room and hand their copies over; return those without."""
        wanted = [(unit, self._parts.cache_of(unit)) for unit in units]
        return [(u, pool) for u, pool in wanted if not self.copy_into(pool, u, Cause.DEMAND)]

    def hand_over(self, queue: PrefetchQueue) -> None:
        """Hand over what is absent of the experts wished for while the window has room."""
        view, parts = self._view, self._parts
        while queue.wishes and (view.queued_bytes < self._window_bytes or not self._copies):
            expert = queue.first()
            for unit in parts.absent(expert):
                if not self._fetch(unit):
                    return
            queue.remove(expert)

    def _fetch(self, unit: int) -> bool:
        """Hand over the prefetch of a unit; return whether there was room."""
        pool = self._parts.cache_of(unit)
        after: tuple[int, ...] = ()
        if pool is self._parts.staging and not pool.free_slots:
            spent = [other for other in pool.rooms if other in self.run_of]
            if not spent:
                return False
            oldest = min(spent, key=self.run_of.__getitem__)
            after = (self.give_way(oldest, pool),)
        return self.copy_into(pool, unit, Cause.PREFETCH, after)

    def drop_unwanted(self, layer: int, wanted: Collection[int]) -> None:
        """Take the slots of bottoms that were prefetched for a layer in vain."""
        staging = self._parts.staging
        for unit in [*staging.rooms]:
            if unit not in wanted and self._parts.layer(unit) == layer:
                self._leaving.discard(unit)
                self.evict(unit, staging)

    def cut(self, partition: Partition) -> None:
        """Cut the pools anew; everything in them leaves.

        A copy under way ends in room that is another's by then, and what comes there is copied
        later: copies of one engine end in order.
        """
        parts = self._parts
        for pool in (*parts.caches, parts.staging):
            for unit in [*pool.rooms]:
                self.evict(unit, pool)
        parts.cut(partition)
        self._leaving.clear()
        self._view.queued_bytes = sum(map(parts.size, self._copies.values()))

    def rebalance(self, experts: Iterable[int]) -> None:
        """Hand over copies of the tops that the cache policy wants here, where there are tops."""
        parts = self._parts
        super().rebalance(e for e in experts if not parts.exists(e) or parts.size(e))

    def _admitted(self, unit: int, view: View) -> None:
        if unit < self._parts.experts_total:
            self._cache.on_admit(unit, view)

    def _evicted(self, unit: int, view: View) -> None:
        if unit < self._parts.experts_total:
            self._cache.on_evict(unit, view)
