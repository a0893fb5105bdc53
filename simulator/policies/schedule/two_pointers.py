"""Deal a layer's experts out from both ends: residents to the GPU, the missing to the CPU."""

from collections.abc import Sequence

from moesim.simulator.policies.base import Demand, Group, SchedulePolicy, View, one_by_one
from moesim.simulator.terms import CPU, GPU

__all__ = ["TwoPointers"]


class TwoPointers(SchedulePolicy):
    """HybriMoE's simulation: whichever side would finish its next expert first takes it.

    Experts stand in one line: residents by falling number of tokens, then the missing ones alike.
    The GPU takes from the front, after the expert's copy if it is missing; the CPU from the back,
    residents too when no others are left. A tie goes to the GPU.
    """

    does = frozenset({"cpu_experts"})
    paper = "HybriMoE (arXiv 2504.05897) section 4.1; ktransformers/operators/experts.py"
    timing_free = False

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        """Return the CPU's group first, then the GPU's: what is here, then each as it comes."""
        costs, layer, tokens = self.run.costs, demand.layer, demand.tokens
        hits = set(demand.hits)
        missing = set(demand.misses)
        line = sorted(demand.experts, key=lambda e: (e in missing, e not in hits, -tokens[e]))
        link_ns = costs.copy_ns(view.queued_bytes) if view.queued_bytes else 0
        arrived_ns = link_ns  # of what is on its way
        copy_ns = costs.copy_ns(self.run.expert_bytes_L[layer])
        gpu_ns = cpu_ns = 0
        front, back = 0, len(line) - 1
        while front <= back:
            first, last = line[front], line[back]
            here_ns = 0 if first in hits else arrived_ns
            if first in missing:
                here_ns = link_ns + copy_ns
            gpu_end_ns = max(gpu_ns, here_ns) + costs.experts_gpu_ns(layer, [tokens[first]])
            cpu_end_ns = cpu_ns + costs.expert_cpu_ns(layer, tokens[last])
            if gpu_end_ns <= cpu_end_ns:
                gpu_ns = gpu_end_ns
                link_ns = here_ns if first in missing else link_ns
                front += 1
            else:
                cpu_ns = cpu_end_ns
                back -= 1
        groups = [Group(CPU, line[front:])] if line[front:] else []
        here = [expert for expert in line[:front] if expert in hits]
        if here:
            groups.append(Group(GPU, here))
        return [*groups, *one_by_one(GPU, line[len(here) : front])]
