"""Room that experts lend to KV caches and take back: VRAM stays the same, its division does not.

Experts lie from the beginning of an arena and KV caches grow from its end, so the slots that go are
the highest (design 4.1 rule 8). As many experts leave as there will be slots too few, those that
the cache policy chooses; who then lies in a slot that goes moves into a free one, on the device.
What is still on its way cannot move: slots up to it stay. All this happens between two steps.
"""

from moesim.simulator.control.residency import Pool, Residency, WholeResidency
from moesim.simulator.control.transfers import Outbox, Transfers
from moesim.simulator.errors import CapabilityError, PolicyError
from moesim.simulator.messages import Move
from moesim.simulator.policies.base import CachePolicy, View
from moesim.simulator.terms import ALL

__all__ = ["Lender"]


class Lender:
    """Changes how many slots the cache has.

    Args:
        cache: Whose choice it is who leaves.
        residency: Who has room.
        transfers: Takes room back.
        view: What policies see; its ``kv_free_bytes`` is lent to and taken from.
        out: Where moves are commanded.
    """

    def __init__(
        self,
        cache: CachePolicy,
        residency: Residency,
        transfers: Transfers,
        view: View,
        out: Outbox,
    ) -> None:
        self._cache = cache
        self._residency = residency
        self._transfers = transfers
        self._view = view
        self._out = out
        self._moves = 0
        self._had: list[int] = []  # numbers of slots, the least and the most

    def check(self) -> None:
        """Refuse a cache that has not just one pool of equal slots, several GPUs and tiers.

        Raises:
            CapabilityError: One line with the way out.
        """
        residency = self._residency
        is_one = len(residency.caches) == 1 and not residency.staging.capacity_bytes
        plain = isinstance(residency, WholeResidency) and type(self._transfers) is Transfers
        if not (is_one and plain and residency.caches[0].slot_bytes):
            raise CapabilityError(
                f"{type(self._cache).__name__}: room for experts can change during a run where one "
                "GPU keeps whole experts of one size in one pool, and RAM has them all; take such "
                "a cache (lru) without --gpus and tiers, or leave out kv=elastic"
            )

    @property
    def pool(self) -> Pool:
        """The slots."""
        return self._residency.caches[0]

    @property
    def slot_bytes(self) -> int:
        """Bytes of one."""
        slot_bytes = self.pool.slot_bytes
        assert slot_bytes is not None
        return slot_bytes

    @property
    def notes(self) -> list[str]:
        """What a reader of results must know."""
        if not self._had:
            return []
        least, most = self._had
        return [
            f"KV caches and experts shared VRAM: between {least} and {most} slots for experts, "
            f"{self._moves} experts moved"
        ]

    def lendable_bytes(self, least: int) -> int:
        """Return what experts could give up now and keep so many slots."""
        pool, loading = self.pool, self._residency.loading
        busy = max((pool.rooms[expert].slot + 1 for expert in loading), default=0)
        return max(0, pool.slots - max(least, busy)) * self.slot_bytes

    def lend(self, nbytes: int) -> None:
        """Give KV caches at least so many bytes more."""
        slots = -(-nbytes // self.slot_bytes)
        self.resize(self.pool.slots - slots)
        self._view.kv_free_bytes += slots * self.slot_bytes

    def take_back(self) -> None:
        """Give experts what no KV cache has reserved, as far as there are experts for it."""
        pool = self.pool
        slots = self._view.kv_free_bytes // self.slot_bytes
        slots = min(slots, self._residency.experts_total - pool.slots)
        if slots > 0:
            self.resize(pool.slots + slots)
            self._view.kv_free_bytes -= slots * self.slot_bytes

    def resize(self, slots: int) -> None:
        """Leave the cache so many slots.

        Raises:
            PolicyError: Too many experts are in use, or the policy chose one that is.
        """
        pool = self.pool
        while len(pool.rooms) > slots:
            if not self._residency.can_evict(pool):
                raise PolicyError(f"{slots} slots do not hold the {len(pool.rooms)} experts in use")
            self._transfers.evict_victim(pool)
        for expert, src, dst in pool.resize(slots):
            self._out.number += 1
            self._moves += 1
            self._out.commands.append(Move(self._out.number, expert, ALL, src, dst))
        had = self._had or [slots, slots]
        self._had = [min(had[0], slots), max(had[1], slots)]
