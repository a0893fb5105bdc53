"""Compute on the CPU whatever is not in VRAM."""

from collections.abc import Sequence

from moesim.simulator.policies.base import Demand, Group, SchedulePolicy, View, one_by_one
from moesim.simulator.terms import CPU, GPU

__all__ = ["CpuOnMiss"]


class CpuOnMiss(SchedulePolicy):
    """Misses on the CPU, residents on the GPU meanwhile; no miss is ever copied.

    A cache fills only by placement before the run or by prefetch. Experts on their way are waited
    for on the GPU.
    """

    does = frozenset({"cpu_experts"})
    paper = "KTransformers (SOSP'25) kt_ep_wrapper.py, without deferral; llama.cpp -ot exps=CPU"

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        """Return the CPU's group first, so that it begins first, then the GPU's."""
        groups = [Group(CPU, demand.misses)] if demand.misses else []
        if demand.hits:
            groups.append(Group(GPU, demand.hits))
        return [*groups, *one_by_one(GPU, (*demand.late, *demand.partial))]
