"""One event: what a layer needs once its router has run, and how it is met.

It is judged, told to the policies, planned and carried out: the copies of what is missing, the
runs they allow, and, where the demand is larger than the room, wave after wave. What the event
uses is leased from the judgement until its runs have ended, which is when the next one begins.
"""

from collections.abc import Sequence
from functools import partial
from itertools import count, filterfalse, repeat

from moesim.simulator.choices import tokens_of
from moesim.simulator.control.prefetch_queue import PrefetchQueue
from moesim.simulator.control.rerouting import LOSSY, Rerouting, rerouter
from moesim.simulator.control.residency import Pool, Residency
from moesim.simulator.control.transfers import Outbox, Transfers
from moesim.simulator.errors import CapabilityError, PolicyError, ProtocolError
from moesim.simulator.ledger import Counts
from moesim.simulator.messages import CpuRunEnded, LayerDone, LayerRouted, Order, Run, Runs
from moesim.simulator.policies.base import (
    CachePolicy,
    Demand,
    Group,
    RunInfo,
    SchedulePolicy,
    View,
    has_shortcut,
    overrides,
)
from moesim.simulator.terms import CPU, GPU, Cause

_new = tuple.__new__
"""Makes a named tuple in half the time of calling its class, which is Python."""


class LayerEvents:
    """Serves the demand of one layer of one step after another.

    Attributes:
        open_layer: The layer whose ``LayerDone`` waits for CPU runs, or -1.
        is_decode: Whether the step has no prompt tokens.
        lossy: How the schedule may change the router's choices.
    """

    def __init__(
        self,
        run: RunInfo,
        cache: CachePolicy,
        schedule: SchedulePolicy,
        *,
        residency: Residency,
        transfers: Transfers,
        queue: PrefetchQueue,
        view: View,
        counts: Counts,
        out: Outbox,
    ) -> None:
        self.open_layer = -1
        self.is_decode = False
        self.counts = counts
        self.residency = residency
        self._cache = cache
        self._schedule = schedule
        self._transfers = transfers
        self._queue = queue
        self._view = view
        self._out = out
        self._cpu_runs: set[int] = set()
        self._is_single = False  # whether every expert of the event serves one token
        self._run_of = transfers.run_of
        self._experts = run.experts
        self._touches = overrides(cache, CachePolicy, "on_touch")
        self._touch_all = (
            cache.on_touches
            if has_shortcut(cache, "on_touches", "on_touch")
            else partial(CachePolicy.on_touches, cache)
        )
        self._ends_events = overrides(cache, CachePolicy, "on_event_end")
        self.lossy: frozenset[str] = frozenset()
        self._rerouting: Rerouting | None = None
        if (lossy := rerouter(schedule)) is not None:
            self.lossy = lossy.does & LOSSY
            self._rerouting = Rerouting(
                run, lossy, cache, residency=residency, view=view, counts=counts, out=out
            )

    def serve(self, fact: LayerRouted) -> Demand:
        """Meet the demand of the layer that was routed, and return it as judged."""
        view, lossy = self._view, self._rerouting
        served = fact if lossy is None else lossy.serve(fact)
        demand = self._judge(served)
        if self._touches:
            touched = served if lossy is not None and lossy.counts_served else fact
            self._touch_all(touched.experts, view)
        groups = self._schedule.plan(demand, view)
        self._carry_out(groups, demand)
        if self._cpu_runs:
            self.open_layer = fact.layer
        else:
            self._out.commands.append(_new(LayerDone, (fact.layer,)))
        if lossy is not None and served is not fact:
            lossy.forget(fact.experts, served.experts)
        if self._ends_events:
            self._cache.on_event_end(view)
        return demand

    def release(self) -> None:
        """Let go of what the last event used: its runs have ended (rules 1 and 3)."""
        residency = self.residency
        residency.leased.clear()
        if residency.staging.rooms and self._view.layer >= 0:
            self._transfers.clear_staging(self._view.layer)

    def cpu_run_ended(self, fact: CpuRunEnded) -> None:
        """Note that a CPU run is over; the layer is done with its last."""
        if fact.n not in self._cpu_runs:
            raise ProtocolError(f"CPU run {fact.n} ended but was not under way")
        self._cpu_runs.discard(fact.n)
        self._transfers.cpu_run_ended(fact.n)
        if not self._cpu_runs and self.open_layer >= 0:
            self._out.commands.append(LayerDone(self.open_layer))
            self.open_layer = -1

    def _judge(self, fact: LayerRouted) -> Demand:
        """Tell hits from late ones and misses, lease what is here, settle prefetches (rule 5)."""
        step, layer, chosen, gates = fact[:4]
        residency, transfers, counts = self.residency, self._transfers, self.counts
        loading = residency.loading
        rooms = residency.cache_L[layer].rooms
        staged = residency.staging.rooms
        tokens = tokens_of(chosen)
        experts = list(tokens)
        begin = layer * self._experts
        if experts and (min(experts) < begin or max(experts) >= begin + self._experts):
            raise self._stray(layer, experts)
        here = list(filter(rooms.__contains__, experts))
        late: list[int] = []
        misses: list[int] = []
        if len(here) < len(experts):
            if staged:
                here = [e for e in experts if e in rooms or e in staged]
                misses = [e for e in experts if e not in rooms and e not in staged]
            else:
                misses = list(filterfalse(rooms.__contains__, experts))
        hits = here
        if loading:
            late = [expert for expert in here if expert in loading]
            hits = [expert for expert in here if expert not in loading] if late else here
        residency.leased.update(tokens)
        self._is_single = len(tokens) == len(chosen)
        if late or transfers.unused:
            transfers.settle(hits, late)
        if self._queue.wishes:
            self._queue.cancel_layer(layer)
        counts.demands += len(experts)
        counts.hits += len(hits)
        counts.late_hits += len(late)
        counts.misses += len(misses)
        if self.is_decode:
            counts.decode_demands += len(experts)
            counts.decode_hits += len(hits)
        return _new(Demand, (step, layer, experts, tokens, hits, late, (), misses, gates))

    def _stray(self, layer: int, experts: Sequence[int]) -> ProtocolError:
        stray = next(expert for expert in experts if expert // self._experts != layer)
        return ProtocolError(f"expert {stray} was chosen in layer {layer}")

    def _carry_out(self, groups: Sequence[Group], demand: Demand) -> None:
        """Hand over the copies that fit, the runs they allow, then wave after wave (rules 4, 7)."""
        on_cpu = self._check_plan(groups, demand)
        misses = demand.misses
        if on_cpu:
            misses = [expert for expert in misses if expert not in on_cpu]
        waiting = self._transfers.copy_demand(misses) if misses else []
        has_waves = bool(waiting)
        self._run_of.clear()
        for group in groups:
            if group.device == GPU:
                self._run_on_gpu(group, demand, has_waves=has_waves)
            else:
                self._run_on_cpu(group, demand)
        while waiting:
            self.counts.waves += 1
            waiting = self._next_wave(waiting, self._oldest_first(demand))
            for group in groups:
                if group.device == GPU:
                    self._run_on_gpu(group, demand, has_waves=True)

    def _check_plan(self, groups: Sequence[Group], demand: Demand) -> list[int]:
        """Check that every expert is planned once; return those that are to run on the CPU."""
        planned: list[int] = []
        on_cpu: list[int] = []
        for device, experts, _ in groups:
            planned += experts
            if device is GPU or device == GPU:
                continue
            if device != CPU:
                raise CapabilityError(
                    f"{type(self._schedule).__name__} plans for {device}; there are {GPU} and {CPU}"
                )
            on_cpu += experts
        hits, misses, tokens = demand.hits, demand.misses, demand.tokens
        is_usual = planned == [*hits, *misses] and not (demand.late or demand.partial)
        if not is_usual and (len(planned) != len(tokens) or tokens.keys() != set(planned)):
            raise self._no_partition(groups, demand)
        return on_cpu

    def _no_partition(self, groups: Sequence[Group], demand: Demand) -> PolicyError:
        planned = sorted(expert for group in groups for expert in group.experts)
        return PolicyError(
            f"{type(self._schedule).__name__} planned {planned} for layer {demand.layer}, "
            f"which needs each of {sorted(demand.experts)} once"
        )

    def _run_on_gpu(self, group: Group, demand: Demand, *, has_waves: bool) -> None:
        """Hand over the runs of those that have room and have not run.

        Which run uses an expert need be known only where a later wave may take its room.
        """
        device, experts, each = group
        loading, out, run_of = self.residency.loading, self._out, self._run_of
        is_hits = experts is demand.hits
        if has_waves:
            has_room = self.residency.has_room
            experts = [e for e in experts if e not in run_of and has_room(e)]
        if not experts:
            return
        first = out.number + 1
        counts = (1,) * len(experts)
        if not self._is_single:
            served = demand.tokens
            if is_hits and len(experts) == len(served):  # then in its order
                counts = tuple(served.values())
            else:
                counts = tuple(map(served.__getitem__, experts))
        order: Order
        if each:
            out.number += len(experts)
            copies: Sequence[int] = self._transfers.at_once
            if experts is not demand.misses or not copies:
                copies = [loading.get(expert, 0) for expert in experts]
            order = _new(Runs, (first, experts, counts, device, copies, 0))
        else:
            out.number = first
            after: tuple[int, ...] = ()
            if loading and not is_hits:
                after = tuple([loading[expert] for expert in experts if expert in loading])
            order = _new(Run, (first, tuple(experts), counts, device, after, 0))
        if has_waves:
            run_of.update(zip(experts, count(first) if each else repeat(first), strict=False))
        out.commands.append(order)

    def _run_on_cpu(self, group: Group, demand: Demand) -> None:
        """Hand over a CPU run, or several where some experts must be read into RAM first."""
        if not group.experts:
            return
        for experts, after in self._transfers.host_batches(group.experts):
            self._out.number = number = self._out.number + 1
            self._cpu_runs.add(number)
            self.counts.cpu_experts += len(experts)
            counts = tuple(map(demand.tokens.__getitem__, experts))
            self._out.commands.append(Run(number, tuple(experts), counts, group.device, after))
            self._transfers.hold_on_host(experts, number)
            for expert in experts:
                if self.residency.has_room(expert):
                    self._run_of[expert] = number
                else:
                    self._cache.on_evict(expert, self._view)

    def _oldest_first(self, demand: Demand) -> list[int]:
        """Return the members whose runs were handed over; those of one run as they are demanded."""
        run_of, missed = self._run_of, set(demand.misses)
        in_turn = [*filterfalse(missed.__contains__, demand.experts), *demand.misses]
        return sorted(filter(run_of.__contains__, in_turn), key=run_of.__getitem__)

    def _next_wave(
        self, waiting: list[tuple[int, Pool]], members: Sequence[int]
    ) -> list[tuple[int, Pool]]:
        """Give those that wait the room of members that were handed over, in this order (rule 7).

        Where prefetches hold all the room they are given up, oldest first: a demand is never
        refused. One that is under way may be, since the copies of one engine end in order.
        """
        transfers, run_of = self._transfers, self._run_of
        for at, (unit, pool) in enumerate(waiting):
            size = self.residency.size(unit)
            runs = []
            while pool.free_bytes < size:
                member = next((m for m in members if m in run_of and m in pool.rooms), None)
                if member is not None:
                    runs.append(transfers.give_way(member, pool))
                elif at > 0:
                    return waiting[at:]
                else:
                    transfers.give_up_prefetch(unit, pool)
            transfers.copy_into(pool, unit, Cause.DEMAND, tuple(dict.fromkeys(runs)))
        return []
