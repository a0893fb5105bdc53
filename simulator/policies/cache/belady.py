"""Evict the expert whose next use is farthest away: the offline optimum."""

from typing import Literal

from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View
from moesim.simulator.policies.order import Key, LowestFirst
from moesim.simulator.policies.quotas import staging_bytes
from moesim.simulator.terms import Verdict

__all__ = ["Belady"]

_NEVER = 1 << 62


class Belady(CachePolicy):
    """Belady's MIN by event: farthest next use first, and those never used again before all.

    Optimal for experts of one size. With ``bypass`` it settles at an event's first miss which of
    the misses are worth keeping: those used again before what would have to leave for them.

    Args:
        admit: ``forced`` keeps every expert that is copied; ``bypass`` passes those through
            staging whose next use is later than that of all that could leave.
        staging: Staging slots under ``bypass``; none takes the top-k of one layer.
    """

    needs = frozenset({"future"})
    paper = "Belady (IBM Systems Journal 1966); event-atomic as moe-cache-eval, arXiv 2608.07911"

    def __init__(
        self,
        run: RunInfo,
        *,
        admit: Literal["forced", "bypass"] = "forced",
        staging: int | None = None,
    ) -> None:
        super().__init__(run)
        assert run.future is not None
        self._future = run.future
        self._staging_bytes = staging_bytes(run, staging) if admit == "bypass" else 0
        self._serial = 0
        self._next_use: dict[int, int] = {}
        self._last_touch: dict[int, int] = {}
        self._touched: dict[int, int] = {}  # expert -> event of its last touch
        self._order = LowestFirst(self._key)
        self._passing: set[int] = set()
        self._event = -1
        self._misses: list[int] = []
        self._kept: set[int] | None = None  # of this event's misses, once that is settled
        smallest = min(run.expert_bytes_L)
        self._leave_for_one = -(-max(run.expert_bytes_L) // smallest)

    def staging_bytes(self) -> int:
        """Return the room for what is not worth keeping."""
        return self._staging_bytes

    def on_touch(self, expert: int, view: View) -> None:
        """Rank the expert by its use after this event."""
        if view.event != self._event:
            self._event = view.event
            self._misses = []
            self._kept = None
        if expert not in self._order:
            self._misses.append(expert)
        self._touched[expert] = view.event
        self._rank(expert, view)

    def admit(self, expert: int, view: View) -> Verdict:
        """Return whether the expert is worth its room."""
        if not self._staging_bytes:
            return Verdict.KEEP
        if self._event == view.event and expert in self._misses:
            if self._kept is None:
                self._kept = self._worth_keeping(self._misses, view)
            keeps = expert in self._kept
        else:
            self._next_use[expert] = self._foresee(expert, view)
            keeps = bool(self._worth_keeping([expert], view))
        if keeps:
            return Verdict.KEEP
        self._passing.add(expert)
        return Verdict.TRANSIENT

    def on_admit(self, expert: int, view: View) -> None:
        """Rank a prefetched expert; one just touched is ranked already."""
        if expert not in self._order:
            self._rank(expert, view)

    def on_evict(self, expert: int, view: View) -> None:
        """Forget the expert."""
        self._order.drop(expert)
        self._passing.discard(expert)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the one used last of all, or never."""
        return self._order.lowest(evictable)

    def _rank(self, expert: int, view: View) -> None:
        self._serial += 1
        self._last_touch[expert] = self._serial
        self._next_use[expert] = self._foresee(expert, view)
        self._order.put(expert)

    def _key(self, expert: int) -> Key:
        return -self._next_use[expert], self._last_touch[expert], expert

    def _foresee(self, expert: int, view: View) -> int:
        event = self._future.next_use(expert, view.event)
        return _NEVER if event is None else event

    def _worth_keeping(self, coming: list[int], view: View) -> set[int]:
        """Return those of one layer's coming experts that are worth keeping, soonest used first."""
        size = self.run.size(coming[0])
        room_bytes = view.residency.free_bytes(self.run.layer(coming[0]))

        def may_leave(expert: int) -> bool:
            return (
                self._touched.get(expert) != view.event
                and expert not in self._passing
                and view.residency.is_resident(expert)
            )

        leavers = iter(self._order.several(may_leave, len(coming) * self._leave_for_one))
        kept: set[int] = set()
        for expert in sorted(coming, key=self._next_use.__getitem__):
            while room_bytes < size:
                leaver = next(leavers, None)
                if leaver is None or self._next_use[leaver] <= self._next_use[expert]:
                    return kept
                room_bytes += self.run.size(leaver)
            room_bytes -= size
            kept.add(expert)
        return kept
