"""The book of who has room, on several GPUs: the pools of each, and homes that say which is whose.

An expert is cached, staged and leased on its home GPU alone. The cache policy's quotas of layers,
and its staging room, are shared out over the GPUs in whole slots by the room that each has.
Policies choose victims among what one GPU's pool offers and need not know of the others.
"""

from collections.abc import Iterator, Mapping, Sequence

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.control.residency import Evictable, Pool, Residency
from moesim.simulator.errors import BudgetError
from moesim.simulator.policies.base import RunInfo
from moesim.simulator.terms import Place


class Rooms(Mapping[int, Place]):
    """Who has room in any of several GPUs' pools."""

    __slots__ = ("_home", "_rooms_G")

    def __init__(self, pools_G: Sequence[Pool], home: Sequence[int]) -> None:
        self._rooms_G = [pool.rooms for pool in pools_G]
        self._home = home

    def __contains__(self, expert: object) -> bool:
        return expert in self._rooms_G[self._home[expert]]  # type: ignore[call-overload]  # an int

    def __getitem__(self, expert: int) -> Place:
        return self._rooms_G[self._home[expert]][expert]

    def __iter__(self) -> Iterator[int]:
        for rooms in self._rooms_G:
            yield from rooms

    def __len__(self) -> int:
        return sum(map(len, self._rooms_G))

    def __bool__(self) -> bool:
        return any(self._rooms_G)


class PoolsOfGpus(Pool):
    """What the pools of several GPUs are together; each by itself gives and takes room."""

    __slots__ = ("pools_G",)

    def __init__(self, pools_G: Sequence[Pool], home: Sequence[int]) -> None:
        super().__init__(-1, 0, None)
        self.pools_G = pools_G
        self.rooms = Rooms(pools_G, home)  # type: ignore[assignment]  # read alone
        self.capacity_bytes = sum(pool.capacity_bytes for pool in pools_G)


class GpusResidency(Residency):
    """All pools of several GPUs.

    Args:
        run: What the cache policy was told.
        home: The GPU of each expert.
        rooms_G: Room for experts on each GPU, staging included.
        quotas_L: Bytes of each layer's own pools together, or None for one pool on each GPU.
        staging_bytes: How much is set apart for experts that do not stay, on all GPUs together;
            each that has experts gets a slot at least.

    Attributes:
        gpus: How many there are.
        rooms_G: As given.
    """

    def __init__(
        self,
        run: RunInfo,
        home: Sequence[int],
        rooms_G: Sequence[int],
        quotas_L: Sequence[int] | None,
        staging_bytes: int,
    ) -> None:
        super().__init__(run.expert_bytes_L, run.experts)
        self._home = home
        self._dropped_bytes = 0
        self.gpus = len(rooms_G)
        self.rooms_G = rooms_G
        one_size = self.size_L[0] if run.equal_experts else None
        staging_G = _staging(rooms_G, staging_bytes, max(self.size_L))
        left_G = [room - staged for room, staged in zip(rooms_G, staging_G, strict=True)]
        if min(left_G) < 0:
            raise BudgetError(
                f"the cache policy asks for {staging_bytes} bytes of staging; the GPU with least "
                f"room has {min(rooms_G)} for experts: give more memory or a policy that needs less"
            )
        pools_GL: list[list[Pool]] = []
        self.caches = []
        begins_G = [0] * len(rooms_G)
        quotas_GL = None if quotas_L is None else self._divide(quotas_L, left_G)
        for gpu, left_bytes in enumerate(left_G):
            if quotas_GL is None:
                pool = Pool(len(self.caches), left_bytes, one_size, device=gpu)
                self.caches.append(pool)
                pools_GL.append([pool] * len(self.size_L))
                continue
            pools_GL.append([])
            for layer, quota_bytes in enumerate(quotas_GL[gpu]):
                pool = Pool(
                    len(self.caches), quota_bytes, self.size_L[layer], begins_G[gpu], device=gpu
                )
                begins_G[gpu] += pool.capacity_bytes
                self.caches.append(pool)
                pools_GL[gpu].append(pool)
        self._staging_G = [
            Pool(len(self.caches) + gpu, staged, one_size, left_G[gpu], device=gpu, is_staging=True)
            for gpu, staged in enumerate(staging_G)
        ]
        self._pools_GL = pools_GL
        self.cache_L = [
            PoolsOfGpus([pools_L[layer] for pools_L in pools_GL], home)
            for layer in range(len(self.size_L))
        ]
        self.staging = PoolsOfGpus(self._staging_G, home)
        self.evictable = [Evictable(pool, self.loading, self.leased) for pool in self.caches]
        self._check_room(run)

    def _divide(self, quotas_L: Sequence[int], left_G: Sequence[int]) -> list[list[int]]:
        """Return each GPU's share of each layer's quota, in whole slots."""
        gpus, experts = len(left_G), self._experts
        open_G = list(left_G)
        shares_GL = [[0] * len(quotas_L) for _ in range(gpus)]
        rests_L = []
        for layer, quota_bytes in enumerate(quotas_L):
            size = self.size_L[layer]
            homes = self._home[layer * experts : (layer + 1) * experts]
            mine_G = [homes.count(gpu) for gpu in range(gpus)]
            room_bytes = sum(left_G[gpu] for gpu in range(gpus) if mine_G[gpu]) or 1
            slots = quota_bytes // size
            for gpu, mine in enumerate(mine_G):
                given = min(mine, slots * left_G[gpu] // room_bytes, open_G[gpu] // size)
                if mine:
                    shares_GL[gpu][layer] = given
                    open_G[gpu] -= given * size
            rests_L.append((slots - sum(shares_L[layer] for shares_L in shares_GL), mine_G))
        for layer, (rest, mine_G) in enumerate(rests_L):
            size = self.size_L[layer]
            for _ in range(rest):
                takers = [
                    gpu
                    for gpu in range(gpus)
                    if shares_GL[gpu][layer] < mine_G[gpu] and open_G[gpu] >= size
                ]
                if not takers:
                    self._dropped_bytes += size
                    continue
                gpu = min(takers, key=lambda g: (shares_GL[g][layer], -open_G[g]))
                shares_GL[gpu][layer] += 1
                open_G[gpu] -= size
        return [
            [share * self.size_L[layer] for layer, share in enumerate(shares_L)]
            for shares_L in shares_GL
        ]

    def _check_room(self, run: RunInfo) -> None:
        """Refuse room that cannot hold one token's experts of a layer, or one where it lives."""
        for layer, size in enumerate(self.size_L):
            homes = set(self._home[layer * self._experts : (layer + 1) * self._experts])
            rooms = {
                gpu: max(
                    self._pools_GL[gpu][layer].capacity_bytes, self._staging_G[gpu].capacity_bytes
                )
                for gpu in homes
            }
            if sum(rooms.values()) < run.top_k * size or min(rooms.values()) < size:
                told = ", ".join(f"GPU {gpu}: {format_bytes(room)}" for gpu, room in rooms.items())
                raise BudgetError(
                    f"an expert budget of {format_bytes(run.budget_bytes)} leaves too little for "
                    f"layer {layer} ({told}): {run.top_k} experts of one token need "
                    f"{format_bytes(run.top_k * size)}, and each GPU one of {format_bytes(size)}"
                )

    @property
    def notes(self) -> list[str]:
        """What a reader of results must know of how room was shared."""
        if not self._dropped_bytes:
            return []
        return [
            f"{format_bytes(self._dropped_bytes)} of the policy's quotas are on no GPU: none with "
            "experts of those layers has room"
        ]

    def home(self, expert: int) -> int:
        """Return the GPU of an expert."""
        return self._home[expert]

    def by_home(self, experts: Sequence[int]) -> list[list[int]]:
        """Return the experts of each GPU, in their order."""
        found: list[list[int]] = [[] for _ in range(self.gpus)]
        for expert in experts:
            found[self._home[expert]].append(expert)
        return found

    def cache_of(self, expert: int) -> Pool:
        """Return the cache pool of an expert, on its home."""
        return self._pools_GL[self._home[expert]][expert // self._experts]

    def staging_of(self, expert: int) -> Pool:
        """Return the staging pool of its home."""
        return self._staging_G[self._home[expert]]

    def pool_of(self, expert: int) -> Pool | None:
        """Return the pool in which the expert has room, or None."""
        for pool in (self.cache_of(expert), self.staging_of(expert)):
            if expert in pool.rooms:
                return pool
        return None

    def free_bytes(self, layer: int) -> int:
        """Return the free room for this layer on the GPU that has least."""
        homes = self._home[layer * self._experts : (layer + 1) * self._experts]
        return min(self._pools_GL[gpu][layer].free_bytes for gpu in set(homes))

    def pools(self) -> list[Pool]:
        """Return all pools of all GPUs."""
        return [*self.caches, *self._staging_G]


def _staging(rooms_G: Sequence[int], staging_bytes: int, slot_bytes: int) -> list[int]:
    """Return each GPU's staging room: its share by room, in whole slots, and one at least."""
    if not staging_bytes:
        return [0] * len(rooms_G)
    total_bytes = sum(rooms_G)
    return [
        max(1, staging_bytes * room // total_bytes // slot_bytes) * slot_bytes if room else 0
        for room in rooms_G
    ]
