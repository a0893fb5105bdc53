"""The hands of the host on several GPUs: a compute stream and a link for each, and the exchange.

Each GPU has a copy engine for its experts; links that share a switch, or all of them the host's
DRAM, get fair shares of it (``shared_links.py``). A GPU other than the layer's router's gets the
activations of the tokens that are routed to it before its first run of the layer, and what it
computed travels back, a row for each token and expert, before the next attention. Where whole
layers are placed the residual travels instead, whenever the next layer is on another GPU. These
copies are on engines of their own (they are small and kernels read them where they land), one for
each sending GPU, and queue behind no expert.
"""

from collections.abc import Sequence
from typing import Any

from moesim.simulator.choices import tokens_of
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.dram import Workers
from moesim.simulator.engines.hands import Hands, copy_times
from moesim.simulator.engines.machine import Server
from moesim.simulator.gpus.machine import Gpus
from moesim.simulator.gpus.plan import GpuPlan
from moesim.simulator.gpus.shared_links import Flow, Limit, SharedEngine, SharedLinks
from moesim.simulator.ledger import GpuTimings, Timings
from moesim.simulator.messages import Copy, LayerRouted, Move, Run
from moesim.simulator.terms import Device


class Exchange(SharedEngine):
    """What sends a GPU's activations, where the way to the host's memory is shared.

    Attributes:
        flows: What each copy that was handed over does, by number.
    """

    def __init__(self, *args: Any) -> None:  # noqa: ANN401  those of Server
        super().__init__(*args)
        self.flows: dict[int, Flow] = {}

    def _flow(self, idle_ns: int) -> Flow:
        """Return what the copy in turn does."""
        del idle_ns
        return self.flows.pop(self._queue[0][0])


class GpusHands(Hands):
    """Commands in, jobs out, on several GPUs; see `Hands`.

    Args:
        plan: How the run is spread over them.
        costs: How long things take.
        told: As for `Hands`.
    """

    def __init__(self, plan: GpuPlan, costs: CostModel, *told: Any, **options: Any) -> None:  # noqa: ANN401  those of Hands
        super().__init__(costs, *told, **options)
        self._plan = plan
        gpus = range(plan.gpus)
        to_gpus, from_gpus = limits_of(costs, plan.gpus), limits_back(costs, plan.gpus)
        copying = frozenset(gpus) if costs.shares_dram else _crossing(to_gpus)
        self._links = [self._new_link(gpu, is_shared=gpu in copying) for gpu in gpus]
        self._gpu_of = [self._new_gpu(self._links[gpu], f"gpu {gpu}") for gpu in gpus]
        self.gpu = self._gpu_of[plan.router_L[0]]
        sending = _crossing(from_gpus)
        self._exchange = [
            (Exchange if gpu in sending else Server)(
                f"exchange {gpu}", lambda ns, _: ns, self._ends, self.waiting, self._spans
            )
            for gpu in gpus
        ]
        if costs.shares_dram:
            self.cpu = Workers(costs, self._experts, self._ends, self.waiting, self._spans)
        shared = self._share(to_gpus, from_gpus)
        self._streams = Gpus(self._gpu_of, shared, self._ends, self.waiting)
        self._exchanged_bytes = [0] * plan.gpus
        self._router = plan.router_L[0]  # of the layer launched last
        self._rows_G = [0] * plan.gpus  # that the open layer routed to each GPU
        self._sent: dict[int, int] = {}  # the copy that took them there
        self._results: dict[int, int] = {}  # rows computed on each GPU
        self._last_run: dict[int, int] = {}

    @property
    def takes_batches(self) -> bool:
        """Return False: each command is for a GPU of its own."""
        return False

    def routed(self, fact: LayerRouted) -> LayerRouted:
        """Take note of how many tokens go to each GPU, and name that of the router."""
        assert self.step is not None
        home, rows_G = self._plan.home, [0] * self._plan.gpus
        for expert, count in tokens_of(fact.experts).items():
            rows_G[home[expert]] += count
        self._rows_G = [min(rows, self.step.tokens) for rows in rows_G]
        return fact._replace(device=Device("gpu", self._router))

    def launch_layer(self, layer: int) -> None:
        """Launch attention and router of a layer, or the head, where its inputs come together."""
        router_L = self._plan.router_L
        target = router_L[layer] if layer < self._layers else self._plan.head
        self._inputs = self._gather(target) if layer else ()
        self._sent.clear()
        self._results.clear()
        self._router = target
        self.gpu = self._gpu_of[target]
        super().launch_layer(layer)

    def end_step(self) -> None:
        """Forget all jobs that no command may name any more; see `Hands.end_step`."""
        super().end_step()
        for engine in self._exchange:
            engine.unreported.clear()

    def drain(self) -> int:
        """Let everything that was handed over end, and return when that is."""
        last_ns = super().drain()
        return max(last_ns, *(server.free_ns for server in (*self._links, *self._exchange)))

    def measure(self, timings: Timings) -> None:
        """Enter what the machine did: of times those of the GPU and of the link with most."""
        busiest = max(self._gpu_of, key=lambda gpu: sum(gpu.busy_ns))
        self.gpu = busiest
        super().measure(timings)
        timings.engines_busy_ns["h2d"] = max(link.busy_ns for link in self._links)
        timings.engine_bytes["h2d"] = sum(link.work for link in self._links)
        timings.engine_copies["h2d"] = sum(link.jobs for link in self._links)
        timings.slow_down_ns = sum(gpu.slow_down_ns for gpu in self._gpu_of)
        timings.by_gpu = [
            GpuTimings(
                gpu_busy_ns=sum(gpu.busy_ns),
                link_busy_ns=link.busy_ns,
                bytes_copied=link.work,
                copies=link.jobs,
                exchange_busy_ns=exchange.busy_ns,
                bytes_sent=sent_bytes,
            )
            for gpu, link, exchange, sent_bytes in zip(
                self._gpu_of, self._links, self._exchange, self._exchanged_bytes, strict=True
            )
        ]

    def _copy(self, command: Copy | Move) -> None:
        self._h2d = self._links[command.dst.device]
        super()._copy(command)

    def _run(self, command: Run) -> None:
        if command.device.kind == "gpu":
            gpu = command.device.number
            if gpu != self._router:
                command = command._replace(after=(*command.after, self._send_tokens(gpu)))
            self._results[gpu] = self._results.get(gpu, 0) + sum(command.tokens)
            self._last_run[gpu] = command.n
        super()._run(command)

    def _send_tokens(self, gpu: int) -> int:
        """Return the copy that takes the open layer's activations to a GPU, made once."""
        if gpu not in self._sent:
            self._sent[gpu] = self._send(self._router, gpu, self._rows_G[gpu], ())
        return self._sent[gpu]

    def _gather(self, target: int) -> tuple[int, ...]:
        """Return the copies that bring the last layer's results to where the next begins."""
        router, results = self._router, self._results
        arriving = tuple(
            self._send(gpu, router, results[gpu], (self._last_run[gpu],))
            for gpu in sorted(results)
            if gpu != router
        )
        if target == router:
            return arriving
        assert self.step is not None
        own = self._last_run[router] if router in results else self.launched
        return (self._send(router, target, self.step.tokens, (own, *arriving)),)

    def _send(self, src: int, dst: int, rows: int, after: tuple[int, ...]) -> int:
        """Hand over a copy of activations, and return its number."""
        self.free_ns += self._issue_ns
        self._unnamed -= 1
        costs, engine = self._costs, self._exchange[src]
        ns = costs.exchange_ns(src, dst, rows)
        if isinstance(engine, Exchange):
            to_host_ns = costs.exchange_to_host_ns(src, dst, rows)
            latency_ns = costs.exchange_to_host_ns(src, dst, 0)
            flow_ns = to_host_ns - latency_ns
            nbytes = rows * costs.row_bytes
            engine.flows[self._unnamed] = Flow(
                nbytes, latency_ns, flow_ns, flow_ns, ns - to_host_ns
            )
        engine.submit(self._unnamed, f"activations to GPU {dst}", ns, self.free_ns, after)
        self._exchanged_bytes[src] += rows * self._costs.row_bytes
        return self._unnamed

    def _share(self, to_gpus: list[Limit], from_gpus: list[Limit]) -> SharedLinks | None:
        """Return what moves on all that crosses something together, if anything does."""
        users = [
            engine
            for engine in (*self._links, *self._exchange, self.cpu)
            if isinstance(engine, SharedEngine)
        ]
        if not users:
            return None
        number = {id(engine): at for at, engine in enumerate(users)}
        limits = [
            Limit(frozenset(number[id(engines[gpu])] for gpu in members), most)
            for engines, limited in ((self._links, to_gpus), (self._exchange, from_gpus))
            for members, most in limited
        ]
        links = frozenset(number[id(link)] for link in self._links if id(link) in number)
        if isinstance(self.cpu, Workers):
            limits.append(Limit(links | {number[id(self.cpu)]}, self._costs.dram_bytes_per_s))
        return SharedLinks(users, limits, slowing=links)

    def _new_link(self, gpu: int, *, is_shared: bool) -> Server:
        """Return the copy engine of a GPU."""
        costs = self._costs
        make = SharedEngine if is_shared else Server
        return make(
            f"h2d {gpu}",
            copy_times(costs, "h2d"),
            self._ends,
            self.waiting,
            self._spans,
            is_observed=costs.copies_slow_kernels,
        )


def limits_of(costs: CostModel, gpus: int) -> list[Limit]:
    """Return what the links of the first GPUs share and could fill together.

    What carries as much as all that cross it can ask for is not in the way of anybody.
    """
    machine = costs.profile
    pinned = costs.runtime.copying.source == "pinned"
    route = machine.link.h2d if pinned else machine.link.pageable
    most = max(point.bytes_per_s for point in route.bandwidth.value)
    shared = [(frozenset(part.gpus), part.h2d.value) for part in machine.link.shared.values()]
    if all(len(members) < machine.gpus for members, _ in shared):
        shared.append((frozenset(range(gpus)), machine.host.dram_bandwidth.value))
    return _in_the_way(shared, most, gpus)


def limits_back(costs: CostModel, gpus: int) -> list[Limit]:
    """Return what the links of the first GPUs share of the way to the host, where that is known."""
    link = costs.profile.link
    most = max(point.bytes_per_s for point in link.d2h.bandwidth.value)
    shared = [
        (frozenset(part.gpus), part.d2h.value)
        for part in link.shared.values()
        if part.d2h is not None
    ]
    return _in_the_way(shared, most, gpus)


def _in_the_way(shared: Sequence[tuple[frozenset[int], int]], most: int, gpus: int) -> list[Limit]:
    """Return the limits that the links of the first GPUs could reach, at so many bytes/s each."""
    present = [(members & frozenset(range(gpus)), limit) for members, limit in shared]
    return [Limit(members, limit) for members, limit in present if len(members) * most > limit]


def _crossing(limits: Sequence[Limit]) -> frozenset[int]:
    """Return the GPUs whose links share anything."""
    return frozenset().union(*(limit.engines for limit in limits))
