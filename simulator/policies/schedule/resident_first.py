"""Run what is here while the rest arrives."""

from collections.abc import Sequence

from moesim.simulator.policies.base import Demand, Group, SchedulePolicy, View, one_by_one
from moesim.simulator.terms import GPU

__all__ = ["ResidentFirst"]


class ResidentFirst(SchedulePolicy):
    """All on the GPU: residents in one launch, then late ones and misses, each as its copy ends."""

    paper = "MoE-Infinity, mixtral-offloading (expert_cache.py yields resident experts first)"

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        """Return one group of all hits, then one for each expert that is still to come."""
        groups = [Group(GPU, demand.hits)] if demand.hits else []
        if len(demand.hits) < len(demand.experts):
            groups += one_by_one(GPU, (*demand.late, *demand.partial, *demand.misses))
        return groups
