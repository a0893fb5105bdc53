"""What cache policies start from that give up the expert of the lowest score.

Scores change with the layer at hand, without a touch, so they are worked out for each victim anew,
of all experts that may leave at once.
"""

from collections.abc import Sequence

from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View


class LowestScore(CachePolicy):
    """Give up the lowest score; ties go to the least recently touched, then to the lower expert."""

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self._serial = 0
        self._touched: dict[int, int] = {}

    def scores(self, experts: Sequence[int], view: View) -> Sequence[float]:
        """Return what each of these experts is worth."""
        raise NotImplementedError

    def touch(self, expert: int) -> None:
        """Make the expert the youngest."""
        self._serial += 1
        self._touched[expert] = self._serial

    def on_admit(self, expert: int, view: View) -> None:
        """Let a prefetched expert in as the youngest; one just touched is that already."""
        if expert not in self._touched:
            self.touch(expert)

    def on_evict(self, expert: int, view: View) -> None:
        """Forget the expert's age."""
        self._touched.pop(expert, None)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the lowest that may leave."""
        experts = list(evictable)
        scores = self.scores(experts, view)
        least, touched = min(scores), self._touched
        alike = (e for e, score in zip(experts, scores, strict=True) if score == least)
        return min(alike, key=lambda expert: (touched[expert], expert))
