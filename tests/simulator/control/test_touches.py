"""Touches told at once come to the same as touches told one by one."""

from moesim.simulator.policies.base import CachePolicy, View
from moesim.simulator.policies.cache.lru import LeastRecentlyUsed
from moesim.simulator.testing import counted, small_run, tiny_trace

TOUCHED: list[int] = []


class OneByOne(LeastRecentlyUsed):
    """LRU, told by the hook that every policy has."""

    on_touches = CachePolicy.on_touches


class Listening(LeastRecentlyUsed):
    """LRU that notes its touches, and leaves the hook for many to its parent."""

    def on_touch(self, expert: int, view: View) -> None:
        """Note the touch."""
        TOUCHED.append(expert)
        super().on_touch(expert, view)


def test_lru_decides_alike_told_at_once_or_one_by_one() -> None:
    """The logs of both are equal, prompts with repeated experts included."""
    at_once = counted(small_run(tiny_trace(), cache=LeastRecentlyUsed, slots=8))
    one_by_one = counted(small_run(tiny_trace(), cache=OneByOne, slots=8))
    assert at_once.log == one_by_one.log


def test_a_derived_policy_hears_its_own_touches() -> None:
    """A class with an ``on_touch`` of its own is told one by one, in touch order."""
    TOUCHED.clear()
    trace = tiny_trace()
    counted(small_run(trace, cache=Listening, slots=8))
    assert len(TOUCHED) == trace.expert_TLK.size
