"""A shelf: the room for experts in one tier below VRAM, under a cache policy of its own.

The policy is any that VRAM can have, with the same protocol: it is told a touch when an expert is
fetched out of the shelf or looked for in vain, and chooses among what may leave. What is on its way
in, and what is being read (by a copy to VRAM or by the CPU), may not. Weights are read-only, so
what leaves is forgotten: the tier below has it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from operator import attrgetter

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.control.residency import Pool, WholeResidency
from moesim.simulator.errors import BudgetError, CapabilityError, PolicyError
from moesim.simulator.policies.base import CachePolicy, RunInfo, View, overrides
from moesim.simulator.policies.guards import CacheGuard
from moesim.simulator.terms import Cause, Place, Tier, Verdict

_NOT_ASKED = ("partition", "repartition", "rebalance", "asks")
_PRESENT = [field.name for field in fields(View) if field.name != "residency"]
_of_the_present = attrgetter(*_PRESENT)


class Shelf:
    """Who lies in one tier, who comes and who is being read; copies and CPU runs by number.

    Args:
        name: What messages call it.
        place: What commands call it; what lies in a GPU's memory they call by its own place there.
        run: What the policy was told; its budget is the shelf's room.
        policy: What stays.
        passes: Whether experts pass through on their way up, for which the policy's staging room
            is set apart.
        reads_signals: Whether the policy reads signals of the trace, which are told with the
            demand of a layer: it is told no touch by prefetches, which come at other times.

    Attributes:
        place: As given.
        room_bytes: All of its room.
        rooms: The book of its room; *loading* is on its way in, *leased* is being read.
        queued_bytes: Of what is on its way in.
    """

    def __init__(
        self,
        name: str,
        place: Place,
        run: RunInfo,
        policy: CachePolicy,
        *,
        passes: bool,
        reads_signals: bool,
    ) -> None:
        if (acting := _who_acts(policy)) is not None:
            raise CapabilityError(
                f"{name}: {type(acting).__name__} splits experts or brings them in by itself, "
                "which it can do for VRAM alone; choose another, such as lru"
            )
        largest = max(run.expert_bytes_L)
        if run.budget_bytes < largest:
            raise BudgetError(
                f"{name}: {format_bytes(run.budget_bytes)} hold no expert of "
                f"{format_bytes(largest)}; give it more"
            )
        quotas_L, staging_bytes = policy.quotas_L(), policy.staging_bytes() if passes else 0
        try:
            self.rooms = WholeResidency(
                run.expert_bytes_L,
                run.experts,
                1,
                run.budget_bytes,
                quotas_L,
                staging_bytes,
                place.device,
            )
        except BudgetError as error:
            raise BudgetError(f"{name}: {error}") from None
        self.name = name
        self.place = place
        self.room_bytes = run.budget_bytes
        self.queued_bytes = 0
        self._policy = policy
        self._reads_signals = reads_signals
        self._view = View(self.rooms)
        self._seen: tuple[object, ...] = _of_the_present(self._view)
        self._ends_events = overrides(policy, CachePolicy, "on_event_end")
        self._coming: dict[int, int] = {}  # what brings an expert -> the expert
        self._held: dict[int, list[int]] = {}  # what reads experts -> the experts
        self._readers: dict[int, list[int]] = {}  # the same by expert, while it has its room
        self._rising: set[int] = set()  # copies up that leave nothing behind
        self._unequal = not run.equal_experts
        self._taken_over: dict[int, int] = {}  # who still reads room that was given away -> expert

    # The present

    def see(self, present: View) -> None:
        """Let the policy see the present of the run."""
        view = self._view
        if self._ends_events and view.event >= 0 and view.event != present.event:
            self._policy.on_event_end(view)
        seen = _of_the_present(present)
        for name, before, now in zip(_PRESENT, self._seen, seen, strict=True):
            if now is not before:
                setattr(view, name, now)
        self._seen = seen

    def has(self, expert: int) -> bool:
        """Return whether the expert is here or on its way in."""
        return self.rooms.has_room(expert)

    def is_ready(self, expert: int) -> bool:
        """Return whether the expert is here."""
        return self.rooms.is_resident(expert)

    def place_of(self, expert: int) -> Place:
        """Return what commands call the place of an expert that is here or coming."""
        pool = self.rooms.pool_of(expert)
        assert pool is not None
        return pool.rooms[expert] if self.place.tier is Tier.VRAM else self.place

    def experts(self) -> Iterator[int]:
        """Yield all that are here or coming."""
        for pool in self.rooms.pools():
            yield from pool.rooms

    def awaits(self, expert: int) -> tuple[int, ...]:
        """Return the copy that a reader of an expert that is here or coming must wait for."""
        n = self.rooms.loading.get(expert)
        return () if n is None else (n,)

    # Coming and going

    def fill(self, skipped: Sequence[int], *, to_the_brim: bool) -> None:
        """Place the policy's initial experts before time zero.

        Args:
            skipped: Those that are not to be placed.
            to_the_brim: Whether others follow while there is room: of each layer the lowest.
        """
        passed, wanted = set(skipped), [*self._policy.initial()]
        if to_the_brim:
            total = self.rooms.experts_total
            experts = total // len(self.rooms.size_L)
            wanted += [e for first in range(experts) for e in range(first, total, experts)]
        for expert in wanted:
            pool = self.rooms.cache_of(expert)
            size = self.rooms.size(expert)
            if expert not in passed and 0 < size <= pool.free_bytes:
                pool.take(expert, size)
                passed.add(expert)
                self._policy.on_admit(expert, self._view)

    def touch(self, expert: int, cause: Cause) -> None:
        """Tell the policy that the expert is wanted from here."""
        if cause is Cause.DEMAND or not self._reads_signals:
            self._policy.on_touch(expert, self._view)

    def pool_for(self, expert: int) -> Pool:
        """Return where the policy wants an expert that is about to come."""
        if self._policy.admit(expert, self._view) is Verdict.KEEP:
            return self.rooms.cache_of(expert)
        return self.rooms.staging

    def make_room(self, pool: Pool, expert: int, *, takes_over: bool) -> list[int] | None:
        """Let experts leave until another has room.

        Args:
            pool: Where.
            expert: The other.
            takes_over: Whether it may have the room of what is being read or on its way in where
                nothing else is left.

        Returns:
            The copies and CPU runs that use that room still, which must end before it is written;
            None if there is not enough room.
        """
        size = self.rooms.size(expert)
        waits = list(self._taken_over) if self._unequal else []
        while pool.free_bytes < size:
            victim = self._victim(pool)
            if victim is None:
                if not takes_over:
                    return None
                if not pool.rooms:
                    raise PolicyError(
                        f"{self.name}: {type(self._policy).__name__} sends expert {expert} to a "
                        f"pool of {pool.capacity_bytes} bytes, which cannot hold it"
                    )
                victim = next((e for e in pool.rooms if e in self._readers), next(iter(pool.rooms)))
                busy = self._readers.get(victim) or self.awaits(victim)
                waits += busy
                self._taken_over.update(dict.fromkeys(busy, victim))
            self._drop(victim, pool)
        return list(dict.fromkeys(waits))

    def bring(self, expert: int, pool: Pool, n: int) -> None:
        """Note that copy ``n`` brings an expert into room that was made for it."""
        size = self.rooms.size(expert)
        pool.take(expert, size)
        self.rooms.loading[expert] = n
        self._coming[n] = expert
        self.queued_bytes += size
        self._policy.on_admit(expert, self._view)

    def hold(self, expert: int, n: int, *, leaves: bool = False) -> None:
        """Note that a copy or a CPU run reads the expert; with ``leaves`` it takes it away."""
        self.rooms.leased[expert] = n
        self._held.setdefault(n, []).append(expert)
        self._readers.setdefault(expert, []).append(n)
        if leaves:
            self._rising.add(n)

    def reserve(self, experts: Sequence[int]) -> list[int]:
        """Keep those that are here, until `hold` or `free`; return those that were not kept yet."""
        leased = self.rooms.leased
        found = [expert for expert in experts if self.has(expert) and expert not in leased]
        leased.update(dict.fromkeys(found, 0))
        return found

    def free(self, reserved: Sequence[int]) -> None:
        """Let those leave again that `reserve` returned and nobody reads."""
        leased = self.rooms.leased
        for expert in reserved:
            if leased.get(expert) == 0:
                del leased[expert]

    def ended(self, n: int) -> bool:
        """Note the end of a copy or CPU run; return whether it brought something here."""
        self._taken_over.pop(n, None)
        for read in self._held.pop(n, ()):
            self._let_go(read, n)
        self._rising.discard(n)
        expert = self._coming.pop(n, None)
        if expert is None:
            return False
        self.queued_bytes -= self.rooms.size(expert)
        if self.rooms.loading.get(expert) == n:
            del self.rooms.loading[expert]
        return True

    def _let_go(self, expert: int, n: int) -> None:
        """Forget a reader; with the last an expert that only passes through leaves."""
        readers = self._readers.get(expert, [])
        if n not in readers:
            return  # its room was given away
        readers.remove(n)
        if readers:
            return
        del self._readers[expert], self.rooms.leased[expert]
        pool = self.rooms.pool_of(expert)
        assert pool is not None
        if n in self._rising or pool is self.rooms.staging:
            self._drop(expert, pool)

    def _victim(self, pool: Pool) -> int | None:
        """Return who leaves the pool, or None if nobody may."""
        rooms = self.rooms
        if pool is rooms.staging:
            busy = rooms.leased.keys() | rooms.loading.keys()
            return next((expert for expert in pool.rooms if expert not in busy), None)
        if not rooms.can_evict(pool):
            return None
        evictable = rooms.evictable[pool.number]
        victim = self._policy.choose_victim(evictable, self._view)
        if victim not in evictable:
            raise PolicyError(
                f"{self.name}: {type(self._policy).__name__} chose expert {victim}, which it was "
                "not offered"
            )
        return victim

    def _drop(self, expert: int, pool: Pool) -> None:
        self.rooms.loading.pop(expert, None)
        self.rooms.leased.pop(expert, None)
        self._readers.pop(expert, None)
        pool.release(expert, self.rooms.size(expert))
        self._policy.on_evict(expert, self._view)


def _who_acts(policy: CachePolicy) -> CachePolicy | None:
    """Return the policy, of a guard and what it guards, that does what no shelf carries out."""
    inner: CachePolicy | None = policy
    while inner is not None:
        base = CacheGuard if isinstance(inner, CacheGuard) else CachePolicy
        if any(overrides(inner, base, hook) for hook in _NOT_ASKED):
            return inner
        inner = inner.inner if isinstance(inner, CacheGuard) else None
    return None
