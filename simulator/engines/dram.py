"""The host's DRAM, shared by the products of CPU experts, copies and reads from NVMe.

A product reads its expert's weights as fast as the CPU can or as its share allows: ``Workers`` are
to the DRAM what a copy engine is to a link (``gpus/shared_links.py``), and their activations'
travel is to them what a latency is to a copy. Two figures of a profile bind:

- beside copies to a GPU the CPU reads at most at ``host.expert_bandwidth_while_copying``;
- all together get ``host.dram_bandwidth``, in max-min fair shares, or what was seen side by side
  (the figure above and copies) where that is more than this one stream of reads.

A run asks for it (``RunSpec.shared_dram``); where no two of these ever use the DRAM at a time,
nothing is a ns later than without.
"""

from typing import Any

from moesim.simulator.costs import CopyKind, CostModel
from moesim.simulator.engines.hands import Hands, copy_times
from moesim.simulator.engines.machine import Ends, Server, Span
from moesim.simulator.gpus.machine import Gpus
from moesim.simulator.gpus.shared_links import Flow, Limit, SharedEngine, SharedLinks
from moesim.simulator.messages import Run

__all__ = ["DramHands", "Workers"]


class Workers(SharedEngine):
    """The CPU's expert workers, whose products take what they get of the DRAM.

    Args:
        costs: How long products and the round trip take.
        experts: Experts of each layer.
        ends: As for `Server`.
        waiting: As for `Server`.
        spans: As for `Server`.
    """

    def __init__(
        self,
        costs: CostModel,
        experts: int,
        ends: Ends,
        waiting: list[Server],
        spans: list[Span] | None,
    ) -> None:
        super().__init__("cpu", lambda ns, _: ns, ends, waiting, spans)
        self._costs = costs
        self._experts = experts

    def _flow(self, idle_ns: int) -> Flow:
        """Return what the run in turn does: activations out, products, results back."""
        del idle_ns
        _, run, whole_ns, _, _ = self._queue[0]
        assert isinstance(run, Run)
        costs, layer = self._costs, run.experts[0] // self._experts
        alone_ns, beside_ns = (
            sum(costs.product_cpu_ns(layer, n, while_copying=is_beside) for n in run.tokens)
            for is_beside in (False, True)
        )
        return_ns = costs.cpu_return_ns(sum(run.tokens))
        nbytes = len(run.experts) * costs.shape.layers[layer].expert_bytes
        return Flow(nbytes, whole_ns - alone_ns - return_ns, alone_ns, beside_ns, return_ns)


class DramHands(Hands):
    """Commands in, jobs out, on one GPU beside whose copies the CPU computes; see `Hands`."""

    def __init__(self, costs: CostModel, *told: Any, **options: Any) -> None:  # noqa: ANN401  those of Hands
        super().__init__(costs, *told, **options)
        engines: dict[str, SharedEngine] = {}
        kinds: list[CopyKind] = ["h2d", "d2h"]
        if costs.profile.nvme is not None:
            kinds.append("nvme")
        for name in kinds:
            engines[name] = SharedEngine(
                name,
                copy_times(costs, name),
                self._ends,
                self.waiting,
                self._spans,
                is_observed=name == "h2d" and costs.copies_slow_kernels,
            )
        self._engines |= engines
        self._h2d = engines["h2d"]
        self.cpu = workers = Workers(costs, self._experts, self._ends, self.waiting, self._spans)
        self.gpu = self._new_gpu(self._h2d, "gpu")
        self._gpu_of = [self.gpu]
        users = [*engines.values(), workers]
        limit = Limit(frozenset(range(len(users))), costs.dram_bytes_per_s)
        links = SharedLinks(users, [limit], slowing=frozenset([0]))
        self._streams = Gpus(self._gpu_of, links, self._ends, self.waiting)

    @property
    def takes_batches(self) -> bool:
        """Return False: ends are not certain as copies are handed over."""
        return False
