"""Caches written the plain way, as a second opinion: whole-list scans, no shared code.

An event is the list of its choices in touch order. Victims are chosen one by one, after all touches
of the event, among residents that the event does not need.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations

Events = Sequence[Sequence[int]]


class Notes:
    """What a score may look at.

    Attributes:
        clock: Touches so far.
        event: Number of the present event.
        last_touch: Clock of each expert's last touch.
        entered: Serial of each resident's insertion.
        uses: Events since its insertion in which a resident was used, the first included.
        lifetime: Events in which an expert was ever used.
    """

    def __init__(self) -> None:
        self.clock = 0
        self.event = 0
        self.last_touch: dict[int, int] = {}
        self.entered: dict[int, int] = {}
        self.uses: dict[int, list[int]] = {}
        self.lifetime: dict[int, list[int]] = {}


Score = Callable[[int, Notes], float]

SCORES: dict[str, Score] = {
    "lru": lambda e, notes: notes.last_touch[e],
    "fifo": lambda e, notes: notes.entered[e],
    "lfu": lambda e, notes: len(notes.uses[e]),
    "lfu:count=lifetime": lambda e, notes: len(notes.lifetime[e]),
    "lfu:decay=0.5": lambda e, notes: sum(0.5 ** (notes.event - at) for at in notes.uses[e]),
    "lfru": lambda e, notes: len(notes.uses[e]) / (notes.clock - notes.last_touch[e] + 1),
    "lfru:count=lifetime": lambda e, notes: (
        len(notes.lifetime[e]) / (notes.clock - notes.last_touch[e] + 1)
    ),
}
"""The lowest leaves first; ties go to the least recently touched."""


def copies(events: Events, slots: int, score: Score) -> list[int]:
    """Return the experts copied, in order."""
    notes = Notes()
    residents: list[int] = []
    copied: list[int] = []
    for number, choices in enumerate(events):
        notes.event = number
        for expert in choices:
            notes.clock += 1
            notes.last_touch[expert] = notes.clock
        needed = list(dict.fromkeys(choices))
        for expert in needed:
            notes.lifetime.setdefault(expert, []).append(number)
            if expert in residents:
                notes.uses[expert].append(number)
        for expert in needed:
            if expert in residents:
                continue
            if len(residents) == slots:
                victim = min(
                    (e for e in residents if e not in needed),
                    key=lambda e: (score(e, notes), notes.last_touch[e], e),
                )
                residents.remove(victim)
            residents.append(expert)
            copied.append(expert)
            notes.entered[expert] = len(copied)
            notes.uses[expert] = [number]
    return copied


def fewest_copies(events: Events, slots: int, *, bypass: bool) -> int:
    """Return the fewest copies that any choice of victims can do with, by trying all of them.

    Args:
        events: What is demanded.
        slots: Room in the cache.
        bypass: Whether an expert that is copied may be let go after its event; one that was
            there already stays through the event in either case.
    """
    needs = [frozenset(choices) for choices in events]

    @cache
    def best(at: int, residents: frozenset[int]) -> int:
        if at == len(needs):
            return 0
        need = needs[at]
        stays = residents & need if bypass else need
        others = sorted((residents | need) - stays)
        room = min(slots - len(stays), len(others))
        later = min(best(at + 1, stays | frozenset(kept)) for kept in combinations(others, room))
        return len(need - residents) + later

    return best(0, frozenset())
