"""How long some steps take at least, whatever is decided, as a function of the bytes they copy.

A step is a chain, for no layer is known before its router has run. Let the router of layer l end at
A(l). The host needs ``sync + poll`` to read it (deciding is free here, so that it shows in the
distance of a run). Then, until the router of layer l+1 begins on the GPU's FIFO,

- on the GPU, the runs of the layer's experts: the first begins after one launch, and all of them
  take at least as long as one run of all hits, since every further run and every slow-down adds;
- on the host, the launches of those runs, one issue for each demand copy (4.1 rule 4: handed over
  at once, all), and the launch of layer l+1 (rule 3: returned once all is handed over). If copies
  block the host it also waits for each;
- on the link, without prefetch, the layer's demand copies: handed over after A(l), one at a time,
  and awaited by runs that layer l+1 queues behind. With m copies of x ns each that is m x.

So A(l+1) - A(l) is at least sync + poll + attention(l+1) + max(e, m x, h + m i): e is the time of
the experts or of the launches, whichever is longer, h that of the launches, i one issue. Summed
over layers, with M copies in all and d the layer's demand (so m <= d):

    sum max(e, m x) = sum e + sum (m x - min(e, m x)) >= sum e + M x - sum min(e, d x)

which, with sum e and sum (h + m i) by themselves, is ``Floor.time_ns`` without prefetch: the two
sides of its outer max. With prefetch a copy may run beside anything, and the floor is the longest
of chain, link and host alone. The CPU may take experts from the GPU: see ``_shared_ns``.
"""

from collections import Counter
from dataclasses import astuple, dataclass
from fractions import Fraction

import numpy as np

from moesim.simulator.costs import CostModel
from moesim.simulator.models.cost_shape import CostLayer
from moesim.simulator.workload.demand_table import DemandTable
from moesim.simulator.workload.recorded_steps import Ints

__all__ = ["Event", "Floor", "Link", "StepFloors", "Sums"]

# S steps; V events, one for each layer of each step.


@dataclass(frozen=True, slots=True)
class Link:
    """What it takes to bring bytes to the GPU, at least.

    Attributes:
        ns_per_byte: The best rate of a whole expert: time of its copy over its bytes.
        largest_bytes: Of any expert, which gives the least number of copies.
        issue_ns: Host time of one copy.
        blocks_host: Whether the host waits for each copy.
    """

    ns_per_byte: Fraction
    largest_bytes: int
    issue_ns: int
    blocks_host: bool

    @classmethod
    def of(cls, costs: CostModel) -> "Link":
        """Return the link of a machine and a model."""
        sizes = {layer.expert_bytes for layer in costs.shape.layers}
        return cls(
            ns_per_byte=min(Fraction(costs.copy_ns(size), size) for size in sizes),
            largest_bytes=max(sizes),
            issue_ns=costs.copy_issue_ns(1),
            blocks_host=costs.copies_block_host,
        )

    def busy_ns(self, moved_bytes: int) -> int:
        """Return how long the link is in use."""
        return int(moved_bytes * self.ns_per_byte)

    def issuing_ns(self, moved_bytes: int) -> int:
        """Return how long the host issues the copies."""
        return -(-moved_bytes // self.largest_bytes) * self.issue_ns

    def host_ns(self, moved_bytes: int) -> int:
        """Return how long the host issues the copies, and waits for them if they block it."""
        waiting_ns = self.busy_ns(moved_bytes) if self.blocks_host else 0
        return self.issuing_ns(moved_bytes) + waiting_ns


@dataclass(frozen=True, slots=True)
class Floor:
    """The least that some steps take; sums over their layers, in ns.

    Attributes:
        fixed_ns: Attention, head, reading routers, first launches: beside no demand copy.
        experts_ns: Sum of e.
        launching_ns: Sum of h.
        beside_ns: Sum of min(e, d x): what of a layer's copies may hide behind its experts.
        host_ns: Work of the host, without copies.
        gpu_ns: Work of the GPU.
    """

    fixed_ns: int = 0
    experts_ns: int = 0
    launching_ns: int = 0
    beside_ns: int = 0
    host_ns: int = 0
    gpu_ns: int = 0

    def __add__(self, other: "Floor") -> "Floor":
        """Return the floor of these steps and others."""
        return Floor(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def time_ns(self, link: Link, moved_bytes: int, *, prefetch: bool) -> int:
        """Return the least time of the steps if this many bytes are copied in them.

        Args:
            link: What copies take.
            moved_bytes: At least these are handed over, and demanded, during the steps.
            prefetch: Whether a copy may begin before it is demanded.
        """
        link_ns, copying_ns = link.busy_ns(moved_bytes), link.host_ns(moved_bytes)
        if prefetch:
            return max(self.fixed_ns + self.experts_ns, link_ns, self.host_ns + copying_ns)
        bare_ns = max(0, link_ns - self.beside_ns)
        return self.fixed_ns + max(self.experts_ns + bare_ns, self.launching_ns + copying_ns)


class Sums:
    """The floors of consecutive steps, as running sums."""

    def __init__(self, floor_S6: Ints) -> None:
        self._sum_S6 = np.cumsum(floor_S6, axis=0)

    def between(self, first: int, last: int) -> Floor:
        """Return the floor of steps [first, last)."""
        return Floor(*(self._sum_S6[last] - self._sum_S6[first]).tolist())

    def whole(self) -> Floor:
        """Return the floor of all steps."""
        return self.between(0, len(self._sum_S6) - 1)

    def weighted(self, weight_S: Ints) -> Floor:
        """Return the sum of the steps' floors, each as often as its weight says."""
        return Floor(*(weight_S @ np.diff(self._sum_S6, axis=0)).tolist())


@dataclass(frozen=True, slots=True)
class Event:
    """One layer of one step, at least: e, h, min(e, d x), and the work of the GPU."""

    experts_ns: int
    launching_ns: int
    beside_ns: int
    gpu_ns: int


class StepFloors:
    """The floors of the steps of one model on one machine.

    Args:
        costs: How long things take.
        cpu_experts: Whether the CPU may compute experts.
        lossy: Whether the router's choices may be left unserved, so that no expert need run.
    """

    def __init__(self, costs: CostModel, *, cpu_experts: bool, lossy: bool = False) -> None:
        self._costs = costs
        self._lossy = lossy
        self._cpu_experts = cpu_experts
        self._copy_ns_L = [costs.copy_ns(layer.expert_bytes) for layer in costs.shape.layers]

    def of(self, demands: DemandTable) -> "Sums":
        """Return the floors of all steps of a workload, to be summed over any range of them."""
        costs = self._costs
        events = [self._new_event(*kind) for kind in demands.kinds]
        of_kind = np.array(
            [(e.experts_ns, e.launching_ns, e.beside_ns, e.gpu_ns) for e in events], np.int64
        ).reshape(-1, 4)
        layers_S = of_kind[demands.kind_V].reshape(-1, demands.layers, 4).sum(axis=1)
        dense_S = self._dense_ns(demands)
        reading_ns = (demands.layers + 1) * (costs.sync_ns + costs.poll_ns)
        hosting_S = np.full_like(dense_S, costs.launch_layer_ns + reading_ns)
        experts_S, launching_S, beside_S, gpu_S = layers_S.T
        columns = (
            hosting_S + dense_S,
            experts_S,
            launching_S,
            beside_S,
            hosting_S + launching_S,
            dense_S + gpu_S,
        )
        return Sums(np.concatenate([np.zeros((1, 6), np.int64), np.stack(columns, axis=1)]))

    def _dense_ns(self, demands: DemandTable) -> Ints:
        """Return the time of attention and head of each step."""
        costs = self._costs
        first: dict[CostLayer, int] = {}
        for number, layer in enumerate(costs.shape.layers):
            first.setdefault(layer, number)
        alike = [(first[layer], count) for layer, count in Counter(costs.shape.layers).items()]
        columns_S = [demands.tokens_S, demands.context_S]
        if demands.together is not None:
            columns_S += demands.together
        different, which_S = np.unique(np.stack(columns_S, axis=1), axis=0, return_inverse=True)
        dense = []
        for tokens, context, *rest in different.tolist():
            requests, pairs, given = rest or (1, None, 1)
            dense.append(
                costs.head_ns(max(1, given))
                + sum(
                    count * costs.attention_ns(layer, tokens, context, requests, pairs)
                    for layer, count in alike
                )
            )
        return np.array(dense, np.int64)[which_S.ravel()]

    def _new_event(self, layer: int, tokens: tuple[int, ...]) -> Event:
        costs = self._costs
        if not tokens or self._lossy:
            return Event(costs.launch_layer_ns, costs.launch_layer_ns, 0, 0)
        launching_ns = costs.launch_run_ns(len(tokens)) + costs.launch_layer_ns
        if self._cpu_experts:
            gpu_ns, computing_ns = 0, self._shared_ns(layer, tokens)
        else:
            gpu_ns = computing_ns = costs.experts_gpu_ns(layer, tokens)
        experts_ns = max(costs.launch_run_ns(1) + computing_ns, launching_ns)
        copying_ns = len(tokens) * self._copy_ns_L[layer]
        return Event(experts_ns, launching_ns, min(experts_ns, copying_ns), gpu_ns)

    def _shared_ns(self, layer: int, tokens: tuple[int, ...]) -> int:
        """Return the least time in which GPU and CPU together compute the experts of a layer.

        Say expert i takes g on the GPU or c on the CPU, G and C are the sums. For any split, the
        longer of the two loads is at least their mean with weights C / (G + C) and G / (G + C); in
        it each expert counts at least min(C g, G c) / (G + C), wherever it is.
        """
        costs = self._costs
        per_run_ns = costs.experts_gpu_ns(layer, ())
        gpu = [costs.experts_gpu_ns(layer, (count,)) - per_run_ns for count in tokens]
        cpu = [costs.expert_cpu_ns(layer, count) for count in tokens]
        gpu_ns, cpu_ns = sum(gpu), sum(cpu)
        weighted = sum(min(cpu_ns * g, gpu_ns * c) for g, c in zip(gpu, cpu, strict=True))
        return weighted // max(1, gpu_ns + cpu_ns)
