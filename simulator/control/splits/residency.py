"""The book of who has room where experts are split into a top, which may stay, and a bottom.

A *unit* is one part of one expert, counted ``part * L * E + expert``: tops have the numbers that
whole experts have, so whatever knows nothing of parts means tops. Tops live in a pool for each
layer, in slots of a top's size; bottoms in the buffer (the staging pool), in slots of the largest
bottom. A part without bytes does not exist: of a layer that keeps whole experts no bottom, of one
that keeps nothing no top.
"""

from collections.abc import Iterator, Sequence

from moesim.hardware_profiles.units import format_bytes
from moesim.simulator.control.residency import Evictable, Pool, Residency
from moesim.simulator.errors import BudgetError, PolicyError
from moesim.simulator.policies.base import Partition
from moesim.simulator.terms import Place

# L MoE layers, E experts of a layer.

TOP, BOTTOM = 0, 1


class SplitResidency(Residency):
    """Pools of tops, and a buffer of bottoms.

    Attributes:
        parts_L: Which parts the experts of each layer have.
    """

    is_split = True

    def __init__(
        self,
        expert_bytes_L: Sequence[int],
        experts: int,
        top_k: int,
        budget_bytes: int,
        partition: Partition,
        staging_bytes: int,
    ) -> None:
        super().__init__(expert_bytes_L, experts)
        self._whole_L = tuple(expert_bytes_L)
        self._layers = len(expert_bytes_L)
        self._top_k = top_k
        self._budget_bytes = budget_bytes
        self._staging_bytes = staging_bytes
        self._peak_bytes = 0
        self.caches = []
        self.cut(partition)

    def cut(self, partition: Partition) -> None:
        """Make the pools of a partition; all are empty, or were not changed.

        Raises:
            PolicyError: It is none of these experts.
            BudgetError: It asks for more than there is, or cannot hold what one token needs.
        """
        self._check(partition)
        if self.caches:
            self._peak_bytes = self.peak_bytes
        tops_L = list(partition.top_bytes_L)
        bottoms_L = [whole - top for whole, top in zip(self._whole_L, tops_L, strict=True)]
        self.size_L = [*tops_L, *bottoms_L]
        self.parts_L = [
            tuple(part for part, size in ((TOP, top), (BOTTOM, bottom)) if size)
            for top, bottom in zip(tops_L, bottoms_L, strict=True)
        ]
        pools, begins = [], 0
        for layer, (quota_bytes, top) in enumerate(zip(partition.quotas_L, tops_L, strict=True)):
            pools.append(Pool(layer, quota_bytes if top else 0, top or None, begins))
            begins += pools[-1].capacity_bytes
        largest = max(bottoms_L)
        self.staging = Buffer(
            self._layers,
            self._staging_bytes if largest else 0,
            largest or None,
            self._budget_bytes - self._staging_bytes,
            is_staging=True,
        )
        self.caches = pools
        self.cache_L = [*pools, *[self.staging] * self._layers]
        self.evictable = [Evictable(pool, self.loading, self.leased) for pool in pools]

    def _check(self, partition: Partition) -> None:
        tops_L, quotas_L = partition
        if len(tops_L) != self._layers or len(quotas_L) != self._layers:
            raise PolicyError(f"a partition of {len(tops_L)} layers; there are {self._layers}")
        asked_bytes = sum(quotas_L) + self._staging_bytes
        if asked_bytes > self._budget_bytes:
            raise BudgetError(
                f"the cache policy asks for {asked_bytes} bytes of an expert budget of "
                f"{self._budget_bytes}: give more memory or a policy that needs less"
            )
        top_k = self._top_k
        for layer, (top, whole) in enumerate(zip(tops_L, self._whole_L, strict=True)):
            if not 0 <= top <= whole:
                raise PolicyError(f"a top of {top} bytes of an expert of {whole} in layer {layer}")
            if quotas_L[layer] < top_k * top or (
                top < whole and self._staging_bytes < top_k * (whole - top)
            ):
                raise BudgetError(
                    f"an expert budget of {format_bytes(self._budget_bytes)} leaves "
                    f"{format_bytes(quotas_L[layer])} for tops of layer {layer} and "
                    f"{format_bytes(self._staging_bytes)} for bottoms; {top_k} experts of one "
                    f"token need {format_bytes(top_k * top)} and "
                    f"{format_bytes(top_k * (whole - top))}"
                )

    def units(self, expert: int) -> list[int]:
        """Return the parts that an expert has, as units."""
        return [part * self.experts_total + expert for part in self.parts_L[self.layer(expert)]]

    def absent(self, expert: int) -> Iterator[int]:
        """Yield those parts of an expert that have no room."""
        return (unit for unit in self.units(expert) if not self.has_room(unit))

    def stretch(self, expert: int, part: int) -> tuple[int, int]:
        """Return where in an expert's bytes a part of it begins and ends."""
        layer = self.layer(expert)
        cut = self.size_L[layer]
        return (0, cut) if part == TOP else (cut, self._whole_L[layer])

    def layer(self, expert: int) -> int:
        """Return the MoE layer of a unit."""
        return expert // self._experts % self._layers

    def has_all(self, expert: int) -> bool:
        """Return whether every part of the expert is resident or loading."""
        return all(map(self.has_room, self.units(expert)))

    def is_resident(self, expert: int) -> bool:
        """Return whether the whole expert is in VRAM and ready."""
        return self.has_all(expert) and not self.is_loading(expert)

    def is_loading(self, expert: int) -> bool:
        """Return whether a copy of some part was handed over and has not ended."""
        return any(unit in self.loading for unit in self.units(expert))

    @property
    def notes(self) -> list[str]:
        """What a reader of results must know: how experts are split now."""
        sizes = zip(self.size_L, self._whole_L, strict=False)
        percents = sorted(round(100 * top / whole) for top, whole in sizes)
        kept = sorted(
            pool.capacity_bytes // top if top else 0
            for pool, top in zip(self.caches, self.size_L, strict=False)
        )
        return [
            f"at the end {_range(kept)} of a layer's {self._experts} experts had room for their "
            f"tops, {_range(percents)} % of an expert"
        ]

    @property
    def peak_bytes(self) -> int:
        """Most bytes that had room at one time, pool by pool."""
        return max(self._peak_bytes, super().peak_bytes)

    def room_bytes(self, expert: int, pool: Pool) -> int:
        """Return what a unit takes of a pool that holds it: of the buffer a whole slot."""
        return (pool.slot_bytes or 0) if pool is self.staging else self.size(expert)


class Buffer(Pool):
    """Slots that smaller units take as a whole."""

    __slots__ = ()

    def take(self, expert: int, size: int) -> Place:
        """Give a unit a slot, of which there must be one."""
        assert self.slot_bytes is not None
        assert size <= self.slot_bytes
        return super().take(expert, self.slot_bytes)

    def release(self, expert: int, size: int) -> Place:
        """Take the slot of a unit of at most this size back."""
        assert self.slot_bytes is not None
        del size
        return super().release(expert, self.slot_bytes)


def _range(ascending: Sequence[int]) -> str:
    """Return the ends of some numbers, or the one that all of them are."""
    first, last = ascending[0], ascending[-1]
    return str(first) if first == last else f"{first} to {last}"
