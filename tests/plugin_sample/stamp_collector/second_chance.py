"""CLOCK: first in, first out, but one that was used since gets a second chance."""

from collections import OrderedDict

from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View

__all__ = ["SecondChance"]


class SecondChance(CachePolicy):
    """Evict the first that came and was not used since the hand passed; the used ones go back.

    Args:
        chances: How often a used expert may go back to the young end.
    """

    paper = "F. J. Corbato, A Paging Experiment with the Multics System, 1968"

    def __init__(self, run: RunInfo, *, chances: int = 1) -> None:
        super().__init__(run)
        self._chances = chances
        self._left: OrderedDict[int, int] = OrderedDict()

    def on_touch(self, expert: int, view: View) -> None:
        """Give a resident expert its chances back."""
        if expert in self._left:
            self._left[expert] = self._chances

    def on_admit(self, expert: int, view: View) -> None:
        """Let it in at the young end, without a chance."""
        self._left[expert] = 0

    def on_evict(self, expert: int, view: View) -> None:
        """Forget it."""
        self._left.pop(expert, None)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Move the hand on until it finds one that may leave and has no chance left."""
        while True:
            for expert in list(self._left):
                if expert not in evictable:
                    continue
                if not self._left[expert]:
                    return expert
                self._left[expert] -= 1
                self._left.move_to_end(expert)
