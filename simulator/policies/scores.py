"""What cache policies start from that give up the expert of the lowest score.

Scores that depend on the layer at hand change without a touch, so they are worked out anew in each
event in which something must leave, once for each expert that may.
"""

from typing import ClassVar

from moesim.simulator.policies.base import CachePolicy, Evictable, RunInfo, View
from moesim.simulator.policies.order import Key


class LowestScore(CachePolicy):
    """Give up the lowest score; ties go to the least recently touched, then to the lower expert.

    Attributes:
        steady: Whether scores stay as they are between the touches of one event and the next.
    """

    steady: ClassVar[bool] = True

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self._serial = 0
        self._touched: dict[int, int] = {}
        self._moment = (-1, -1)
        self._keys = _Keys(self)

    def score(self, expert: int, view: View) -> float:
        """Return what the expert is worth."""
        raise NotImplementedError

    def touch(self, expert: int) -> None:
        """Make the expert the youngest."""
        self._serial += 1
        self._touched[expert] = self._serial
        self._keys.clear()

    def on_admit(self, expert: int, view: View) -> None:
        """Let a prefetched expert in as the youngest; one just touched is that already."""
        if expert not in self._touched:
            self._serial += 1
            self._touched[expert] = self._serial
        self._keys.pop(expert, None)

    def on_evict(self, expert: int, view: View) -> None:
        """Forget the expert's age."""
        self._touched.pop(expert, None)
        self._keys.pop(expert, None)

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return the lowest that may leave."""
        moment = (view.step, view.event)
        if moment != self._moment or not self.steady:
            self._moment = moment
            self._keys.clear()
        self._keys.view = view
        return min(evictable, key=self._keys.__getitem__)

    def key(self, expert: int, view: View) -> Key:
        """Return what experts are ordered by."""
        return self.score(expert, view), self._touched[expert], expert


class _Keys(dict[int, Key]):
    """The keys of one moment, each worked out when it is first asked for."""

    view: View

    def __init__(self, policy: LowestScore) -> None:
        super().__init__()
        self._policy = policy

    def __missing__(self, expert: int) -> Key:
        self[expert] = key = self._policy.key(expert, self.view)
        return key
