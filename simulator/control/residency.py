"""The book of who has room in VRAM.

A *pool* is room for experts on one device: the cache (one pool, or one for each layer) or the
staging room for experts that only pass through. Where all experts of a pool are equal in size it
has slots at fixed offsets; else it counts bytes, as an arena that is compacted for free would.

An expert that has room is *loading* until its copy has ended, then resident. It is *leased* from
the judgement that it is needed until its run has ended; only what is neither loading nor leased
may leave.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import filterfalse, islice
from typing import ClassVar

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.errors import BudgetError
from moesim.simulator.terms import ALL, Place, Tier


class Pool:
    """Room for experts, in slots of ``slot_bytes`` each, or in bytes where that is None.

    Attributes:
        device: The GPU that it is on.
        is_staging: Whether experts only pass through.
    """

    __slots__ = (
        "_free",
        "_least_free_bytes",
        "capacity_bytes",
        "device",
        "free_bytes",
        "is_staging",
        "number",
        "rooms",
        "slot_bytes",
    )

    def __init__(
        self,
        number: int,
        capacity_bytes: int,
        slot_bytes: int | None,
        begins_bytes: int = 0,
        *,
        device: int = 0,
        is_staging: bool = False,
    ) -> None:
        self.number = number
        self.device = device
        self.is_staging = is_staging
        self.slot_bytes = slot_bytes
        self.rooms: dict[int, Place] = {}
        self._free: list[Place] = []
        if slot_bytes:
            slots = capacity_bytes // slot_bytes
            capacity_bytes = slots * slot_bytes
            self._free = [
                Place(Tier.VRAM, device, number, slot, begins_bytes + slot * slot_bytes)
                for slot in reversed(range(slots))
            ]
        self.capacity_bytes = capacity_bytes
        self.free_bytes = capacity_bytes
        self._least_free_bytes = capacity_bytes

    def take(self, expert: int, size: int) -> Place:
        """Give the expert room, of which there must be enough, and return it."""
        self.free_bytes = free_bytes = self.free_bytes - size
        assert free_bytes >= 0
        if free_bytes < self._least_free_bytes:
            self._least_free_bytes = free_bytes
        if self._free:
            place = self._free.pop()
        else:
            place = Place(Tier.VRAM, self.device, self.number, expert)
        self.rooms[expert] = place
        return place

    @property
    def free_slots(self) -> int:
        """How many slots nobody has."""
        return len(self._free)

    @property
    def slots(self) -> int:
        """How many slots there are."""
        assert self.slot_bytes is not None
        return self.capacity_bytes // self.slot_bytes

    def resize(self, slots: int) -> list[tuple[int, Place, Place]]:
        """Cut the highest slots off, or add some behind them.

        Returns:
            Who lay in a slot that went: it was given the lowest free one, of which there must be
            enough.
        """
        slot_bytes, before = self.slot_bytes, self.slots
        assert slot_bytes is not None
        assert len(self.rooms) <= slots
        places = [*self._free, *self.rooms.values()]
        begins_bytes = min(place.offset_bytes or 0 for place in places) if places else 0
        grown_bytes = (slots - before) * slot_bytes
        self.capacity_bytes += grown_bytes
        self.free_bytes += grown_bytes
        self._least_free_bytes += grown_bytes  # what was the most in use stays so
        added = [
            Place(Tier.VRAM, self.device, self.number, slot, begins_bytes + slot * slot_bytes)
            for slot in range(before, slots)
        ]
        # Taken from the end: the lowest first.
        free = sorted(
            (place for place in [*self._free, *added] if place.slot < slots),
            key=lambda place: -place.slot,
        )
        moved = []
        for expert in [expert for expert, place in self.rooms.items() if place.slot >= slots]:
            src, dst = self.rooms[expert], free.pop()
            self.rooms[expert] = dst
            moved.append((expert, src, dst))
        self._free = free
        return moved

    def swap(self, leaving: Sequence[int], coming: Sequence[int]) -> list[Place]:
        """Give experts the room of others, and free slots to the first; return it.

        Raises:
            KeyError: One that is to leave has no room, or leaves twice.
        """
        assert self.slot_bytes is not None
        free = len(coming) - len(leaving)
        places = [self._free.pop() for _ in range(free)]
        places += map(self.rooms.pop, leaving)
        self.rooms.update(zip(coming, places, strict=True))
        if free:
            self.free_bytes -= free * self.slot_bytes
            self._least_free_bytes = min(self._least_free_bytes, self.free_bytes)
        return places

    @property
    def peak_bytes(self) -> int:
        """Most bytes that had room at one time."""
        return self.capacity_bytes - self._least_free_bytes

    def release(self, expert: int, size: int) -> Place:
        """Take the expert's room back and return it."""
        place = self.rooms.pop(expert)
        self.free_bytes += size
        if self.slot_bytes:
            self._free.append(place)
        return place


class Evictable:
    """The experts of one pool that may leave now; membership costs three dictionary look-ups."""

    __slots__ = ("_has_room", "_is_leased", "_is_loading", "_leased", "_loading", "_rooms")

    def __init__(self, pool: Pool, loading: dict[int, int], leased: dict[int, int]) -> None:
        self._rooms = pool.rooms
        self._loading = loading
        self._leased = leased
        self._has_room = pool.rooms.__contains__
        self._is_loading = loading.__contains__
        self._is_leased = leased.__contains__

    def __contains__(self, expert: int) -> bool:
        return expert in self._rooms and expert not in self._leased and expert not in self._loading

    def __iter__(self) -> Iterator[int]:
        leased, loading = self._leased, self._loading
        return (e for e in self._rooms if e not in leased and e not in loading)

    def check(self, experts: Sequence[int], count: int) -> Sequence[int]:
        """Return these if they are so many and none is in use; `Pool.swap` sees to the rest.

        Raises:
            LookupError: They are not.
        """
        leased, loading = self._leased, self._loading
        if len(experts) != count or not (
            leased.keys().isdisjoint(experts)
            and (not loading or loading.keys().isdisjoint(experts))
        ):
            raise LookupError
        return experts

    def first(self, order: Iterable[int], count: int) -> list[int]:
        """Return the first of an order that may leave, ``count`` of them if there are so many."""
        ready = filterfalse(self._is_leased, filter(self._has_room, order))
        if self._loading:
            ready = filterfalse(self._is_loading, ready)
        return list(islice(ready, count))


class Residency:
    """All pools of a run, who is in them, and in which state.

    Attributes:
        is_split: Whether experts are kept, copied and run in parts.
        gpus: On how many GPUs there are pools.
        size_L: Bytes of one expert of each layer.
        experts_total: Experts of all layers.
        loading: The copy that brings each expert that is on its way.
        leased: What the open event demands, and the tokens that each serves: those that have room
            keep it until their run has ended.
        caches: The pools in which experts stay, by number.
        cache_L: That of each layer.
        staging: The room for experts that only pass through.
        evictable: Who may leave each of the caches.
    """

    is_split: ClassVar[bool] = False
    gpus: int = 1
    caches: list[Pool]
    cache_L: Sequence[Pool]
    staging: Pool
    evictable: list[Evictable]

    def __init__(self, expert_bytes_L: Sequence[int], experts: int) -> None:
        self._experts = experts
        self.size_L = list(expert_bytes_L)
        self.experts_total = len(self.size_L) * experts
        self.loading: dict[int, int] = {}
        self.leased: dict[int, int] = {}

    def size(self, expert: int) -> int:
        """Return the bytes of one expert."""
        return self.size_L[expert // self._experts]

    def room_bytes(self, expert: int, pool: Pool) -> int:
        """Return what the expert takes of a pool that holds it."""
        del pool
        return self.size(expert)

    def units(self, expert: int) -> Sequence[int]:
        """Return the parts of an expert that are copied and run by themselves: here it is one."""
        return (expert,)

    @property
    def notes(self) -> list[str]:
        """What a reader of results must know of how room was shared."""
        return []

    def part_bytes(self, expert: int, part: int) -> int:
        """Return the bytes of a part of an expert."""
        begin, end = self.stretch(expert, part)
        return end - begin

    def stretch(self, expert: int, part: int) -> tuple[int, int]:
        """Return where in an expert's bytes a part of it begins and ends."""
        assert part == ALL
        return 0, self.size(expert)

    def exists(self, expert: int) -> bool:
        """Return whether the number is an expert's."""
        return 0 <= expert < self.experts_total

    def layer(self, expert: int) -> int:
        """Return the MoE layer of an expert."""
        return expert // self._experts

    def cache_of(self, expert: int) -> Pool:
        """Return the cache pool of an expert's layer."""
        return self.cache_L[expert // self._experts]

    def staging_of(self, expert: int) -> Pool:
        """Return the staging pool through which an expert passes."""
        del expert
        return self.staging

    def pool_of(self, expert: int) -> Pool | None:
        """Return the pool in which the expert has room, or None."""
        cache = self.cache_L[expert // self._experts]
        if expert in cache.rooms:
            return cache
        return self.staging if expert in self.staging.rooms else None

    def has_all(self, expert: int) -> bool:
        """Return whether all of the expert is resident or loading."""
        return self.pool_of(expert) is not None

    def has_room(self, expert: int) -> bool:
        """Return whether the expert is resident or loading."""
        return self.pool_of(expert) is not None

    def is_resident(self, expert: int) -> bool:
        """Return whether the expert is in VRAM and ready."""
        return expert not in self.loading and self.pool_of(expert) is not None

    def is_loading(self, expert: int) -> bool:
        """Return whether a copy of it was handed over and has not ended."""
        return expert in self.loading

    def free_bytes(self, layer: int) -> int:
        """Return the free room of the cache pool of this layer."""
        return self.cache_L[layer].free_bytes

    def can_evict(self, pool: Pool) -> bool:
        """Return whether anything in a cache pool may leave."""
        return any(True for _ in self.evictable[pool.number])

    @property
    def peak_bytes(self) -> int:
        """Most bytes that had room at one time, pool by pool."""
        return sum(pool.peak_bytes for pool in self.pools())

    def pools(self) -> list[Pool]:
        """Return all pools, staging last."""
        return [*self.caches, self.staging]

    def check(self) -> None:
        """Check invariant 1: slots and bytes are conserved, and every state has its room."""
        for pool in self.pools():
            used = sum(self.room_bytes(expert, pool) for expert in pool.rooms)
            assert used + pool.free_bytes == pool.capacity_bytes, f"pool {pool.number} lost bytes"
            places = set(pool.rooms.values())
            assert len(places) == len(pool.rooms), f"pool {pool.number} gave one place twice"
        for expert in self.loading:
            assert self.has_room(expert), f"expert {expert} is loading without room"


class WholeResidency(Residency):
    """The pools of one device whose experts are whole.

    Args:
        expert_bytes_L: Bytes of one expert of each layer.
        experts: Experts of each layer.
        top_k: Experts of one token, for which there must be room.
        budget_bytes: Room for experts, staging included.
        quotas_L: Bytes of each layer's own pool, or None for one pool of all.
        staging_bytes: How much is set apart for experts that do not stay.
        device: The GPU that they are on.

    Raises:
        BudgetError: More is asked for than there is, or one token's experts have no room.
    """

    def __init__(
        self,
        expert_bytes_L: Sequence[int],
        experts: int,
        top_k: int,
        budget_bytes: int,
        quotas_L: Sequence[int] | None,
        staging_bytes: int,
        device: int = 0,
    ) -> None:
        super().__init__(expert_bytes_L, experts)
        cache_bytes = budget_bytes - staging_bytes
        if cache_bytes < 0 or (quotas_L is not None and sum(quotas_L) > cache_bytes):
            asked = staging_bytes + sum(quotas_L or ())
            raise BudgetError(
                f"the cache policy asks for {asked} bytes of an expert budget of {budget_bytes}: "
                "give more memory or a policy that needs less"
            )
        layers = len(expert_bytes_L)
        one_size = self.size_L[0] if len(set(self.size_L)) == 1 else None
        if quotas_L is None:
            pool = Pool(0, cache_bytes, one_size, device=device)
            self.caches = [pool]
            self.cache_L = [pool] * layers
        else:
            self.caches, begins = [], 0
            for layer, quota_bytes in enumerate(quotas_L):
                pool = Pool(layer, quota_bytes, self.size_L[layer], begins, device=device)
                begins += pool.capacity_bytes
                self.caches.append(pool)
            self.cache_L = self.caches
        self.staging = Pool(
            len(self.caches), staging_bytes, one_size, cache_bytes, device=device, is_staging=True
        )
        self.evictable = [Evictable(pool, self.loading, self.leased) for pool in self.caches]
        for layer, size in enumerate(self.size_L):
            room = max(self.cache_L[layer].capacity_bytes, self.staging.capacity_bytes)
            if room < top_k * size:
                least = top_k * (sum(self.size_L) if quotas_L is not None else max(self.size_L))
                raise BudgetError(
                    f"an expert budget of {format_bytes(budget_bytes)} leaves {format_bytes(room)} "
                    f"for layer {layer}, whose {top_k} experts of one token need "
                    f"{format_bytes(top_k * size)}; this cache needs {format_bytes(least)} at least"
                )
