"""Copy as large a share of the misses as the link has of link and CPU together."""

from collections.abc import Sequence

from moesim.simulator.policies.base import Demand, Group, RunInfo, SchedulePolicy, View, one_by_one
from moesim.simulator.terms import CPU, GPU

__all__ = ["BandwidthSplit"]


class BandwidthSplit(SchedulePolicy):
    """FreeToken's q*: of m misses n are copied, the others are computed on the CPU.

    With rho = link / (link + CPU), in experts a second, n is that of floor(rho m) and the next
    which makes max(n (1 - rho), (m - n) rho) least, the smaller of equals. Those used last are
    copied first. In a prompt all misses are copied.
    """

    does = frozenset({"cpu_experts"})
    paper = "FreeToken (arXiv 2608.16157), python/freetoken/moe, strategy hybrid"

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self._last_use: dict[int, int] = {}

    def plan(self, demand: Demand, view: View) -> Sequence[Group]:
        """Return the CPU's group first, then the GPU's: residents, then each as its copy ends."""
        to_gpu = sorted(demand.misses, key=lambda e: -self._last_use.get(e, -1))
        to_cpu: list[int] = []
        if view.is_decode and to_gpu:
            copied = self._copied(demand.layer, len(to_gpu))
            to_gpu, to_cpu = to_gpu[:copied], to_gpu[copied:]
        self._last_use.update(dict.fromkeys(demand.experts, view.event))
        groups = [Group(CPU, to_cpu)] if to_cpu else []
        if demand.hits:
            groups.append(Group(GPU, demand.hits))
        coming = (*demand.late, *demand.partial, *to_gpu)
        return [*groups, *one_by_one(GPU, coming)]

    def _copied(self, layer: int, misses: int) -> int:
        copy_ns = self.run.costs.copy_ns(self.run.expert_bytes_L[layer])
        cpu_ns = self.run.costs.expert_cpu_ns(layer, 1)
        least = misses * cpu_ns // (cpu_ns + copy_ns)
        choices = range(least, min(misses, least + 1) + 1)
        return min(choices, key=lambda n: max(n * copy_ns, (misses - n) * cpu_ns))
