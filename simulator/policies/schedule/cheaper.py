"""Send each miss where it is done sooner or cheaper: to the GPU by copy, or to the CPU in place."""

from collections.abc import Sequence
from typing import Literal

from moesim.simulator.policies.base import Demand, Group, RunInfo, SchedulePolicy, View, one_by_one
from moesim.simulator.terms import CPU, GPU

__all__ = ["Cheaper"]


class Cheaper(SchedulePolicy):
    """Copy and GPU against CPU by the run's cost model, for each miss in router order.

    Residents run on the GPU at once; each copied expert after its copy. Both sides work at the same
    time whatever the objective, where Fiddler's released code runs one after the other. What lies
    on NVMe must be read into RAM for either side: with ``max`` both wait for that.

    Args:
        objective: ``max`` sends an expert to the side that would finish it first, given what that
            side and the link have to do already; ``sum`` to where it costs less by itself, as
            Fiddler's released code.
    """

    does = frozenset({"cpu_experts"})
    paper = "Fiddler (arXiv 2402.07033) section 3.3 (max); its released code enumerates the sum"
    timing_free = False

    def __init__(self, run: RunInfo, *, objective: Literal["sum", "max"] = "max") -> None:
        super().__init__(run)
        self._overlaps = objective == "max"

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        """Return the CPU's group first, then the GPU's: residents, then each as its copy ends."""
        to_gpu, to_cpu = self._divide(demand, view)
        groups = [Group(CPU, to_cpu)] if to_cpu else []
        if demand.hits:
            groups.append(Group(GPU, demand.hits))
        return [*groups, *one_by_one(GPU, (*demand.late, *demand.partial, *to_gpu))]

    def _divide(self, demand: Demand, view: View) -> tuple[list[int], list[int]]:
        """Return the misses that go to the GPU and those that go to the CPU."""
        costs, layer, tokens = self.run.costs, demand.layer, demand.tokens
        copy_ns = costs.copy_ns(self.run.expert_bytes_L[layer])
        link_ns = costs.copy_ns(view.queued_bytes) if view.queued_bytes else 0
        gpu_ns = costs.experts_gpu_ns(layer, [tokens[e] for e in demand.hits]) if demand.hits else 0
        for expert in (*demand.late, *demand.partial):
            gpu_ns = max(gpu_ns, link_ns) + costs.experts_gpu_ns(layer, [tokens[expert]])
        cpu_ns = 0
        in_ram_ns = self._in_ram(demand, view)
        to_gpu: list[int] = []
        to_cpu: list[int] = []
        for expert in demand.misses:
            on_gpu_ns = costs.experts_gpu_ns(layer, [tokens[expert]])
            on_cpu_ns = costs.expert_cpu_ns(layer, tokens[expert])
            if self._overlaps:
                copied_ns = max(link_ns, in_ram_ns[expert]) + copy_ns
                gpu_end_ns = max(gpu_ns, copied_ns) + on_gpu_ns
                cpu_end_ns = max(cpu_ns, in_ram_ns[expert]) + on_cpu_ns
            else:
                gpu_end_ns, cpu_end_ns = copy_ns + on_gpu_ns, on_cpu_ns
            if gpu_end_ns <= cpu_end_ns:
                to_gpu.append(expert)
                link_ns = max(link_ns, in_ram_ns[expert]) + copy_ns
                gpu_ns = max(gpu_ns, link_ns) + on_gpu_ns
            else:
                to_cpu.append(expert)
                cpu_ns = max(cpu_ns, in_ram_ns[expert]) + on_cpu_ns
        return to_gpu, to_cpu

    def _in_ram(self, demand: Demand, view: View) -> dict[int, int]:
        """Return when each miss will be in RAM, if NVMe is read in router order."""
        ready_ns = dict.fromkeys(demand.misses, 0)
        if view.below is not None and self._overlaps:
            costs, size = self.run.costs, self.run.expert_bytes_L[demand.layer]
            queued_bytes = view.below.queued_bytes
            nvme_ns = costs.read_ns(queued_bytes) if queued_bytes else 0
            for expert in filter(view.below.is_far, demand.misses):
                nvme_ns += costs.read_ns(size)
                ready_ns[expert] = nvme_ns
        return ready_ns
