"""Checks that every byte came from a tier that had it, and that no tier holds more than its room.

Beside the ``Witness``, whose books are of VRAM, this one keeps those of the tiers below: which
copies brought an expert there and have ended, and what still reads it. It believes a shelf only as
to who has room there, since what leaves is never announced. Each finding is law 19's.
"""

from collections.abc import Mapping, Sequence

from moesim.simulator.messages import Command, Copy, CopyEnded, CpuRunEnded, Fact, Run
from moesim.simulator.terms import CPU, NVME, RAM, Place, Tier
from moesim.simulator.tiers.hierarchy import Shelves
from moesim.simulator.tiers.shelf import Shelf


class TierWitness:
    """Watches the commands of a run that has shelves."""

    def __init__(self, shelves: Shelves) -> None:
        known = [shelf for shelf in (shelves.ram, shelves.peer) if shelf is not None]
        self._shelves: dict[Place, Shelf] = {shelf.place: shelf for shelf in known}
        self._lent: dict[Place, int] = {}  # whose bytes lie, or were last sent, in another GPU
        self._brought: dict[tuple[Place, int], int] = {}  # the copy that last brought an expert
        self._open: set[int] = set()  # copies and CPU runs that have not ended
        self._readers: dict[tuple[Place, int], set[int]] = {}
        self._rooms: dict[Place, set[int]] = {place: set() for place in self._shelves}

    def began(self) -> None:
        """Learn what lies in the tiers before time zero."""
        for place, shelf in self._shelves.items():
            self._rooms[place] = _having(shelf)
            self._brought |= {(place, expert): 0 for expert in self._rooms[place]}
            if place.device:
                self._lent |= {shelf.place_of(expert): expert for expert in self._rooms[place]}

    def learn(self, fact: Fact) -> None:
        """Learn what has ended."""
        if isinstance(fact, CopyEnded | CpuRunEnded):
            self._open.discard(fact.n)

    def check(self, commands: Sequence[Command], vram: Mapping[Place, int]) -> None:
        """Check the commands of one answer, and what it left behind.

        Args:
            commands: All of them.
            vram: Whose bytes lie, or were last sent, where in VRAM before them.
        """
        content = dict(vram)
        awaited: set[int] = set()
        for command in commands:
            if isinstance(command, Copy):
                awaited.update(command.after)
                self._check_copy(command, content, awaited)
            elif isinstance(command, Run) and command.device == CPU:
                for expert in command.experts:
                    self._check_read(command, RAM, expert)
                self._open.add(command.n)
        self._check_rooms(awaited)

    def _check_copy(self, copy: Copy, content: dict[Place, int], awaited: set[int]) -> None:
        src, dst = copy.src, copy.dst
        if src.tier is Tier.VRAM:
            holds = (self._lent if src.device else content).get(src)
            assert holds == copy.expert, f"law 19: {copy} reads expert {holds} in VRAM"
        if src == NVME:
            assert RAM in self._shelves, f"law 19: {copy}, but RAM has every expert"
        elif src.tier is not Tier.VRAM or src.device:
            self._check_read(copy, _tier_of(src), copy.expert)
        self._open.add(copy.n)
        tier = _tier_of(dst)
        if tier in self._shelves:
            self._check_let_go(tier, copy.expert, awaited)  # had it been here, it left in between
            self._brought[tier, copy.expert] = copy.n
            self._rooms[tier].add(copy.expert)
            if dst.device:
                self._lent[dst] = copy.expert
        else:
            assert dst.tier is Tier.VRAM, f"law 19: {copy} to a tier that this run has not"
            assert not dst.device, f"law 19: {copy} to a GPU that lends nothing"
            assert src != NVME, f"law 19: {copy} passes RAM by"
            content[dst] = copy.expert

    def _check_read(self, reader: Copy | Run, src: Place, expert: int) -> None:
        """Check that an expert is where it is read, or will be when the reader may begin."""
        if src == RAM and RAM not in self._shelves:
            return  # all experts lie there
        brought = self._brought.get((src, expert))
        is_there = brought is not None and expert in self._rooms[src]
        assert is_there, f"law 19: {reader} reads expert {expert}, which {src} has not"
        assert brought not in self._open or brought in reader.after, (
            f"law 19: {reader} does not wait for copy {brought}, which brings expert {expert}"
        )
        self._readers.setdefault((src, expert), set()).add(reader.n)

    def _check_rooms(self, awaited: set[int]) -> None:
        """Check the room of each tier, and that whoever lost it is read no more.

        Room may be lost to a copy of the same answer that waits for the readers.
        """
        for place, shelf in self._shelves.items():
            rooms = shelf.rooms
            try:
                rooms.check()
            except AssertionError as error:
                raise AssertionError(f"law 19: {shelf.name}: {error}") from None
            having = _having(shelf)
            used_bytes = sum(rooms.size(expert) for expert in having)
            room_bytes = sum(pool.capacity_bytes for pool in (*rooms.caches, rooms.staging))
            assert used_bytes <= room_bytes, f"law 19: {shelf.name} holds {used_bytes} bytes"
            for expert in rooms.leased:
                readers = self._readers.get((place, expert), set())
                assert readers & self._open, (
                    f"law 19: the {shelf.name} keeps expert {expert}, which nobody reads"
                )
            for expert in self._rooms[place] - having:
                self._check_let_go(place, expert, awaited)
            self._rooms[place] = having

    def _check_let_go(self, place: Place, expert: int, awaited: set[int]) -> None:
        reading = self._readers.pop((place, expert), set()) & self._open
        name = self._shelves[place].name
        assert reading <= awaited, (
            f"law 19: expert {expert} left the {name} while {reading} read it"
        )


def _having(shelf: Shelf) -> set[int]:
    return set(shelf.experts())


def _tier_of(place: Place) -> Place:
    """Return what a shelf is called, for any place in it."""
    return Place(Tier.VRAM, place.device) if place.device else place
