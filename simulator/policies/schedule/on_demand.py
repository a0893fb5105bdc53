"""Bring and run one expert after another, in the router's order."""

from collections.abc import Sequence

from moesim.simulator.policies.base import Demand, Group, SchedulePolicy, View, one_by_one
from moesim.simulator.terms import GPU

__all__ = ["OnDemand"]


class OnDemand(SchedulePolicy):
    """All on the GPU, one launch for each expert in router order, each waiting for its own copy."""

    paper = "the on-demand baseline of MoE-Infinity, mixtral-offloading and Pre-gated MoE"

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        """Return one group for each expert."""
        return one_by_one(GPU, demand.experts)
