"""The copies under way and the room they fill: who comes in, who leaves for it, what came of it.

What was handed over is irrevocable (design 4.1 rule 4). Room and victim are chosen when a copy is
handed over, and the cache policy chooses among what may leave and nothing else.
"""

from collections.abc import Callable, Iterable, Sequence

from moesim.simulator.control.prefetch_queue import PrefetchQueue
from moesim.simulator.control.residency import Pool, Residency
from moesim.simulator.errors import PolicyError, ProtocolError
from moesim.simulator.ledger import Counts
from moesim.simulator.messages import Copies, CopiesEnded, Copy, CopyEnded, Order
from moesim.simulator.policies.base import CachePolicy, Partition, View, has_shortcut
from moesim.simulator.terms import ALL, RAM, Cause, Place, Verdict

DEFAULT_WINDOW_BYTES = 16 << 20
"""Prefetches are handed over while fewer bytes than these are unfinished (4.1 rule 4)."""

DEMAND = Cause.DEMAND
_new = tuple.__new__  # half the time of Copies(...), which is Python


class Outbox:
    """The commands of one answer, and the number given to the last of them."""

    __slots__ = ("commands", "number")

    def __init__(self) -> None:
        self.commands: list[Order] = []
        self.number = 0

    def copy(
        self, expert: int, place: Place, cause: Cause, nbytes: int, after: tuple[int, ...] = ()
    ) -> int:
        """Hand over a copy that begins when these runs have ended, and return its number."""
        self.number = number = self.number + 1
        commands = self.commands
        if after:
            commands.append(Copy(number, expert, ALL, RAM, place, cause, after))
            return number
        if commands and type(last := commands[-1]) is Copies:
            assert isinstance(last, Copies)
            if last.cause is cause and last.nbytes == nbytes:
                last.experts.append(expert)
                last.places.append(place)
                return number
        commands.append(_new(Copies, (number, [expert], [place], cause, nbytes, ALL, RAM)))
        return number


class Transfers:
    """Hands copies over and keeps their books.

    Attributes:
        unused: Bytes of each expert that was prefetched and has not been demanded.
        at_once: Numbers of the copies of the last demand, in its order, if made at once.
        run_of: The run of each expert of the open event that was handed over, oldest first, if
            another may want its room.
    """

    def __init__(
        self,
        cache: CachePolicy,
        residency: Residency,
        view: View,
        counts: Counts,
        out: Outbox,
        window_bytes: int,
    ) -> None:
        self.unused: dict[int, int] = {}
        self.at_once = range(0)
        self.run_of: dict[int, int] = {}
        self._cache = cache
        self._choose_victim = cache.choose_victim
        self._on_admit: Callable[[int, View], None] = cache.on_admit
        self._on_evict: Callable[[int, View], None] = cache.on_evict
        self._admits = type(cache).admit is not CachePolicy.admit
        self._make_room = (
            cache.make_room
            if has_shortcut(cache, "make_room", "admit", "choose_victim", "on_admit", "on_evict")
            else None
        )
        self._ends_alike = type(self)._end is Transfers._end  # noqa: SLF001  our own
        self._residency = residency
        self._view = view
        self._counts = counts
        self._out = out
        self._window_bytes = window_bytes
        self._copies: dict[int, int] = {}  # number -> expert, until reported
        self._leaving: set[int] = set()  # staged, not demanded when it could be, still loading

    def place(self, experts: Sequence[int]) -> None:
        """Give room to what lies in VRAM before time zero."""
        for expert in experts:
            if not self._residency.exists(expert) or self._residency.has_room(expert):
                raise ProtocolError(f"expert {expert} cannot be placed: unknown, or placed before")
            size = self._residency.size(expert)
            pool = self._residency.cache_of(expert)
            if pool.free_bytes < size:
                raise ProtocolError(f"no room for initial expert {expert}")
            pool.take(expert, size)
            self._cache.on_admit(expert, self._view)
            self._counts.bytes_initial += size

    def choose_pool(self, expert: int) -> Pool:
        """Return where the cache policy wants an expert that is about to be copied."""
        if not self._admits or self._cache.admit(expert, self._view) is Verdict.KEEP:
            return self._residency.cache_of(expert)
        return self._residency.staging_of(expert)

    def copy_demand(self, experts: Sequence[int]) -> list[tuple[int, Pool]]:
        """Give the missing experts of one layer room and hand their copies over, as many as fit.

        Returns:
            Those that found no room, and where they want it.
        """
        self.at_once = range(0)
        if self._make_room is not None and self._copy_at_once(experts):
            return []
        waiting = []
        for expert in experts:
            pool = self.choose_pool(expert)
            if not self.copy_into(pool, expert, DEMAND):
                waiting.append((expert, pool))
        return waiting

    def _copy_at_once(self, experts: Sequence[int]) -> bool:
        """Do the same in one turn for all; return False, having done nothing, if that can't be."""
        residency, view, counts = self._residency, self._view, self._counts
        leased, loading = residency.leased, residency.loading
        pool = residency.cache_of(experts[0])
        size = pool.slot_bytes
        leaving = max(0, len(experts) - pool.free_slots)
        if size is None or leaving > len(pool.rooms) - len(leased) - len(loading):
            return False
        assert self._make_room is not None
        evictable = residency.evictable[pool.number]
        victims = self._make_room(experts, leaving, evictable, view)
        try:
            places = pool.swap(evictable.check(victims, leaving), experts)
        except LookupError:
            raise PolicyError(
                f"{type(self._cache).__name__} chose experts {list(victims)}; to be chosen were "
                f"{leaving} of those offered, each once"
            ) from None
        out, count = self._out, len(experts)
        first = out.number + 1
        out.number += count
        self.at_once = numbers = range(first, first + count)
        loading.update(zip(experts, numbers, strict=True))
        self._copies.update(zip(numbers, experts, strict=True))
        view.queued_bytes += count * size
        counts.copies += count
        counts.bytes_demand += count * size
        counts.evictions += leaving
        if self.unused:
            for victim in victims:
                counts.bytes_prefetch_wasted += self.unused.pop(victim, 0)
        out.commands.append(_new(Copies, (first, list(experts), places, DEMAND, size, ALL, RAM)))
        return True

    def copy_into(self, pool: Pool, expert: int, cause: Cause, after: tuple[int, ...] = ()) -> bool:
        """Give the expert room in the pool, by eviction if need be, and hand its copy over.

        Returns:
            False if nothing that may leave makes enough room; then nothing was done but evictions.
        """
        residency = self._residency
        leased, loading = residency.leased, residency.loading
        size = residency.size(expert)
        while pool.free_bytes < size:
            if pool.is_staging or not (
                len(pool.rooms) > len(leased) + len(loading) or residency.can_evict(pool)
            ):
                return False
            self.evict_victim(pool)
        number = self._out.copy(expert, pool.take(expert, size), cause, size, after)
        loading[expert] = number
        self._copies[number] = expert
        self._view.queued_bytes += size
        self._counts.copies += 1
        if cause is DEMAND:
            self._counts.bytes_demand += size
        elif cause is Cause.REBALANCE:
            self._counts.bytes_rebalance += size
        else:
            self.unused[expert] = size
        self._on_admit(expert, self._view)
        return True

    def cut(self, partition: Partition) -> None:
        """Cut the pools anew for experts that are split.

        Raises:
            PolicyError: They are whole.
        """
        tops = len(partition.top_bytes_L)
        raise PolicyError(
            f"{type(self._cache).__name__} splits the experts of {tops} layers anew; as the run "
            "began they were whole"
        )

    def rebalance(self, experts: Iterable[int]) -> None:
        """Hand over copies of what the cache policy wants here as a step begins."""
        residency = self._residency
        for expert in experts:
            if not residency.exists(expert):
                raise PolicyError(
                    f"{type(self._cache).__name__} brings in expert {expert}; no such expert"
                )
            if not residency.has_room(expert):
                self.copy_into(residency.cache_of(expert), expert, Cause.REBALANCE)

    def evict_victim(self, pool: Pool) -> None:
        """Let whom the cache policy chooses leave a cache pool.

        Raises:
            PolicyError: It is nobody who may.
        """
        evictable = self._residency.evictable[pool.number]
        victim = self._choose_victim(evictable, self._view)
        if victim not in evictable:
            raise PolicyError(
                f"{type(self._cache).__name__} chose expert {victim}, which it was not offered"
            )
        self.evict(victim, pool)

    def evict(self, expert: int, pool: Pool) -> None:
        """Take an expert's room back, be it resident or still loading."""
        residency = self._residency
        residency.loading.pop(expert, None)
        pool.release(expert, residency.size(expert))
        if not pool.is_staging:
            self._counts.evictions += 1
        if expert in self.unused:
            self._counts.bytes_prefetch_wasted += self.unused.pop(expert)
        self._on_evict(expert, self._view)

    def give_way(self, expert: int, pool: Pool) -> int:
        """Take the room of one whose run was handed over; return what the next owner awaits."""
        del self._residency.leased[expert]
        self.evict(expert, pool)
        return self.run_of.pop(expert)

    def give_up_prefetch(self, expert: int, pool: Pool) -> None:
        """Take the room of the oldest prefetch in the pool for an expert that is demanded.

        Raises:
            PolicyError: The pool holds none; it is too small for the expert.
        """
        leased = self._residency.leased
        oldest = next((e for e in pool.rooms if e not in leased), None)
        if oldest is None:
            raise PolicyError(
                f"{type(self._cache).__name__} sends expert {expert} to a pool of "
                f"{pool.capacity_bytes} bytes, which cannot hold it"
            )
        self._leaving.discard(oldest)
        self.evict(oldest, pool)

    def settle(self, hits: Iterable[int], late: Iterable[int]) -> None:
        """Count prefetches that are demanded: useful if they were there, late if on their way."""
        unused, counts = self.unused, self._counts
        for expert in hits:
            if expert in unused:
                counts.bytes_prefetch_useful += unused.pop(expert)
        for expert in late:
            self._leaving.discard(expert)
            if expert in unused:
                counts.bytes_prefetch_late += unused.pop(expert)

    def host_batches(
        self, experts: Sequence[int]
    ) -> Iterable[tuple[Sequence[int], tuple[int, ...]]]:
        """Return what runs on the CPU at once, and the copies that bring it to RAM: none here."""
        return ((experts, ()),)

    def hold_on_host(self, experts: Sequence[int], run: int) -> None:
        """Keep experts in RAM until a CPU run of them has ended; here all stay there."""

    def cpu_run_ended(self, run: int) -> None:
        """Note that a CPU run is over."""

    def clear_staging(self, layer: int) -> None:
        """Take the staging room of a layer's experts back, now or when their copy has ended."""
        residency = self._residency
        for expert in [e for e in residency.staging.rooms if residency.layer(e) == layer]:
            if expert in residency.loading:
                self._leaving.add(expert)
            else:
                self.evict(expert, residency.staging_of(expert))

    def copy_ended(self, fact: CopyEnded) -> None:
        """Note that a copy is complete; its expert is resident, unless its room was given away."""
        self._end(fact.n)

    def copies_ended(self, fact: CopiesEnded) -> None:
        """Note that several copies are complete."""
        copies, numbers = self._copies, fact.numbers
        is_usual = self._ends_alike and not self._leaving
        if is_usual and len(numbers) == len(copies) and list(copies) == numbers:
            copies.clear()
            self._residency.loading.clear()
            self._view.queued_bytes = 0
            return
        for n in numbers:
            self._end(n)

    def _end(self, n: int) -> None:
        try:
            expert = self._copies.pop(n)
        except KeyError:
            raise ProtocolError(f"copy {n} ended but was not under way") from None
        residency = self._residency
        self._view.queued_bytes -= residency.size(expert)
        loading = residency.loading
        if loading.get(expert) == n:
            del loading[expert]
            if expert in self._leaving:
                self._leaving.discard(expert)
                self.evict(expert, residency.staging_of(expert))

    def hand_over(self, queue: PrefetchQueue) -> None:
        """Hand over prefetches while the window has room, choosing victims now (rule 4)."""
        view = self._view
        while queue.wishes and (view.queued_bytes < self._window_bytes or not self._copies):
            expert = queue.first()
            if not self._residency.has_room(expert) and not self.copy_into(
                self.choose_pool(expert), expert, Cause.PREFETCH
            ):
                return
            queue.remove(expert)

    def close(self) -> None:
        """Count what was prefetched and never demanded as wasted."""
        self._counts.bytes_prefetch_wasted += sum(self.unused.values())
        self.unused.clear()
