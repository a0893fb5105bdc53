"""Where an expert's bytes are copied from: the nearest of a neighbour's VRAM, RAM and NVMe.

NVMe, or RAM where that is large enough, has every expert always. Above it lie *shelves*
(``shelf.py``): RAM, through which everything passes that comes from NVMe, and a part of another
GPU's VRAM. A copy of an expert that lies on NVMe is two: NVMe to RAM, then RAM to VRAM, which waits
for the first. So is a CPU run of one: read, then run.

An expert that leaves VRAM is *offered* downwards: to the neighbour, and to RAM if RAM is exclusive.
A shelf whose policy keeps it gets it by a copy, for which the next owner of its room in VRAM waits.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from moesim.simulator.control.residency import Pool
from moesim.simulator.control.transfers import Outbox
from moesim.simulator.ledger import Counts
from moesim.simulator.messages import Copy
from moesim.simulator.policies.base import View
from moesim.simulator.terms import ALL, NVME, RAM, Cause, Place
from moesim.simulator.tiers.shelf import Shelf


class Shelves(NamedTuple):
    """What lies between VRAM and the tier that has everything.

    Attributes:
        ram: RAM, where it cannot hold all experts; NVMe then has them. None: RAM has them.
        peer: Room in another GPU's VRAM.
        is_exclusive: Whether RAM gives up what VRAM gets, and is offered what leaves VRAM.
        starts_empty: Whether RAM is empty at time zero, but for what its policy places; else the
            loading of the model has filled it.
    """

    ram: Shelf | None = None
    peer: Shelf | None = None
    is_exclusive: bool = False
    starts_empty: bool = False


class Tiers:
    """The shelves of a run, and what is copied between them.

    Attributes:
        takes_victims: Whether anything is offered what leaves VRAM.
    """

    def __init__(self, shelves: Shelves, counts: Counts, view: View, out: Outbox) -> None:
        self._ram, self._peer, self._is_exclusive, self._starts_empty = shelves
        self._shelves = [shelf for shelf in (self._peer, self._ram) if shelf is not None]
        self._offered = [
            shelf
            for shelf in (self._peer, self._ram if self._is_exclusive else None)
            if shelf is not None
        ]
        self.takes_victims = bool(self._offered)
        self._counts = counts
        self._view = view
        self._out = out
        self._vacating: dict[Place | int, list[int]] = {}  # room in VRAM -> copies out of it

    def place(self, residents: Sequence[int]) -> None:
        """Fill the shelves before time zero, given what lies in VRAM."""
        for shelf in self._shelves:
            is_ram = shelf is self._ram
            skipped = residents if is_ram and self._is_exclusive else ()
            shelf.fill(skipped, to_the_brim=is_ram and not self._starts_empty)

    # Upwards

    def nearest_first(self, experts: Sequence[int]) -> list[int]:
        """Return experts in the order in which their copies can begin: those on NVMe come last."""
        return [*experts] if self._ram is None else sorted(experts, key=self.is_far)  # stable

    def reserve(self, experts: Sequence[int]) -> list[list[int]]:
        """Keep experts where they lie while room is made for them, for victims go down first.

        Returns:
            What `free` is to be told once they were handed over.
        """
        return [shelf.reserve(experts) for shelf in self._shelves]

    def free(self, reserved: list[list[int]]) -> None:
        """Let experts leave again that were reserved and nobody reads."""
        for shelf, kept in zip(self._shelves, reserved, strict=True):
            if kept:
                shelf.free(kept)

    def is_far(self, expert: int) -> bool:
        """Return whether the expert lies on NVMe alone, or is still on its way to RAM."""
        if self._ram is None or (self._peer is not None and self._peer.has(expert)):
            return False
        return not self._ram.is_ready(expert)

    def fetch(
        self, expert: int, place: Place, cause: Cause, nbytes: int, after: tuple[int, ...]
    ) -> int:
        """Hand over the copies that bring an expert to a place in VRAM; return the last's number.

        It begins when the runs in ``after`` have ended, what left the place included.
        """
        after += self._waits_of(place)
        peer, ram = self._peer, self._ram
        if peer is not None and peer.has(expert):
            peer.see(self._view)
            peer.touch(expert, cause)
            src = peer.place_of(expert)
            n = self._copy(expert, src, place, cause, after + peer.awaits(expert))
            peer.hold(expert, n)
            self._counts.bytes_peer += nbytes
            return n
        if ram is None:
            return self._copy(expert, RAM, place, cause, after)
        after += self._bring_to_ram(expert, cause)
        n = self._copy(expert, RAM, place, cause, after)
        ram.hold(expert, n, leaves=self._is_exclusive)
        return n

    def promote(self, expert: int) -> bool:
        """Read an expert into RAM ahead of its use; return whether there was room."""
        assert self._ram is not None
        self._ram.see(self._view)
        return self._read(expert, Cause.PREFETCH, takes_over=False) is not None

    def is_coming(self, expert: int) -> bool:
        """Return whether the expert is on its way to RAM."""
        return self._ram is not None and bool(self._ram.awaits(expert))

    @property
    def queued_bytes(self) -> int:
        """Bytes on their way into RAM."""
        return 0 if self._ram is None else self._ram.queued_bytes

    # To the CPU

    def batches(self, experts: Sequence[int]) -> Iterable[tuple[Sequence[int], tuple[int, ...]]]:
        """Yield what runs on the CPU at once and what it waits for: what is in RAM, then the rest.

        Each that must be read first is by itself, so that it runs when it has come. `hold` those
        of one batch before the next is asked for.
        """
        if self._ram is None:
            yield experts, ()
            return
        ready = [expert for expert in experts if self._ram.is_ready(expert)]
        for expert in ready:
            self._bring_to_ram(expert, Cause.DEMAND)
        if ready:
            yield ready, ()
        for expert in experts:
            if expert not in ready:
                yield [expert], self._bring_to_ram(expert, Cause.DEMAND)

    def hold(self, experts: Sequence[int], run: int) -> None:
        """Keep experts in RAM until a CPU run has ended."""
        if self._ram is not None:
            for expert in experts:
                self._ram.hold(expert, run)

    # Downwards

    def offer(self, expert: int, pool: Pool) -> None:
        """Offer an expert that leaves a pool of VRAM to the shelves that take such, in turn."""
        place = pool.rooms[expert]
        for shelf in self._offered:
            if shelf.has(expert):
                return
            shelf.see(self._view)
            into = shelf.pool_for(expert)
            if into is shelf.rooms.staging:
                continue
            waits = shelf.make_room(into, expert, takes_over=False)
            if waits is None:
                continue
            n = self._out.number + 1  # the copy's, which is told the room that it brings to
            shelf.bring(expert, into, n)
            self._copy(expert, place, shelf.place_of(expert), Cause.DEMOTION, tuple(waits))
            self._counts.copies += 1
            self._counts.bytes_demoted += shelf.rooms.size(expert)
            self._vacating.setdefault(_room_of(place), []).append(n)
            return

    def ended(self, n: int) -> bool:
        """Note the end of a copy or CPU run; return whether it was a copy to one of the shelves."""
        for room, copies in list(self._vacating.items()):
            if n in copies:
                copies.remove(n)
                if not copies:
                    del self._vacating[room]
        brought = [shelf.ended(n) for shelf in self._shelves]
        return any(brought)

    # Between

    def _bring_to_ram(self, expert: int, cause: Cause) -> tuple[int, ...]:
        """See that an expert lies in RAM; return what its reader waits for."""
        ram, counts = self._ram, self._counts
        assert ram is not None
        ram.see(self._view)
        ram.touch(expert, cause)
        if cause is Cause.DEMAND:
            counts.host_demands += 1
            counts.host_hits += ram.is_ready(expert)
        if ram.has(expert):
            return ram.awaits(expert)
        n = self._read(expert, cause, takes_over=True)
        assert n is not None
        return (n,)

    def _read(self, expert: int, cause: Cause, *, takes_over: bool) -> int | None:
        """Hand over the copy of an expert from NVMe to RAM; return its number, or None."""
        ram = self._ram
        assert ram is not None
        pool = ram.pool_for(expert)
        waits = ram.make_room(pool, expert, takes_over=takes_over)
        if waits is None:
            return None
        n = self._copy(expert, NVME, ram.place, cause, tuple(waits))
        ram.bring(expert, pool, n)
        self._counts.copies += 1
        self._counts.bytes_nvme += ram.rooms.size(expert)
        return n

    def _waits_of(self, place: Place) -> tuple[int, ...]:
        return tuple(self._vacating.get(_room_of(place), ()))

    def _copy(
        self, expert: int, src: Place, dst: Place, cause: Cause, after: tuple[int, ...]
    ) -> int:
        out = self._out
        out.number = n = out.number + 1
        out.commands.append(Copy(n, expert, ALL, src, dst, cause, after))
        return n


def _room_of(place: Place) -> Place | int:
    """Return the slot, or the pool where room has no slots: its bytes may then be anyone's."""
    return place if place.offset_bytes is not None else place.pool
