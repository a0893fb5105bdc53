"""Policies that are bad on purpose, to be run beside the one under test.

They wish for what nobody needs and split layers between devices, so that a policy meets late hits,
wasted prefetches, waves and CPU runs on a trace of a few tokens.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from moesim.simulator.policies.base import (
    CachePolicy,
    Demand,
    Evictable,
    Group,
    PrefetchPolicy,
    SchedulePolicy,
    View,
    Wish,
)
from moesim.simulator.registry import PolicySpec
from moesim.simulator.terms import CPU, GPU, Verdict


class KeepAtRandom(CachePolicy):
    """Keep some and let others pass, in room for one token's experts; give up anything."""

    def staging_bytes(self) -> int:
        """Return the bytes of the experts of one token."""
        return self.run.top_k * max(self.run.expert_bytes_L)

    def admit(self, expert: int, view: View) -> Verdict:
        """Return either, or transient where staging has taken the whole budget."""
        run = self.run
        if run.budget_bytes - self.staging_bytes() < run.size(expert):
            return Verdict.TRANSIENT
        return Verdict(int(run.rng.integers(2)))

    def choose_victim(self, evictable: Evictable, view: View) -> int:
        """Return any of those offered."""
        offered = sorted(evictable)
        return offered[int(self.run.rng.integers(len(offered)))]


class WishAtRandom(PrefetchPolicy):
    """Wish for a few experts of any layer, with any priority."""

    does: ClassVar[frozenset[str]] = frozenset({"prefetch"})

    def wants(self, demand: Demand | None, view: View) -> Iterable[Wish]:
        """Return up to three wishes."""
        run = self.run
        everything = run.layers * run.experts
        return [
            Wish(int(run.rng.integers(everything)), float(run.rng.integers(3)))
            for _ in range(int(run.rng.integers(4)))
        ]


class SplitAtRandom(SchedulePolicy):
    """Send each expert to either device, in launches of any size."""

    does: ClassVar[frozenset[str]] = frozenset({"cpu_experts"})

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        """Return the experts cut into groups at random places."""
        rng = self.run.rng
        groups: list[Group] = []
        for expert in demand.experts:
            device = CPU if rng.integers(3) == 0 else GPU
            if groups and groups[-1].device == device and rng.integers(2):
                groups[-1] = Group(device, (*groups[-1].experts, expert))
            else:
                groups.append(Group(device, (expert,)))
        return groups


KEEP_AT_RANDOM = PolicySpec("cache", "keep-at-random", KeepAtRandom, {})
WISH_AT_RANDOM = PolicySpec("prefetch", "wish-at-random", WishAtRandom, {})
SPLIT_AT_RANDOM = PolicySpec("schedule", "split-at-random", SplitAtRandom, {})
