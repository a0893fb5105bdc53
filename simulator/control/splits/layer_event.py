"""One event of experts that are split: tops that are here run at once, the rest as it comes.

What `LayerEvents` does for experts, this does for their parts. An expert of which some part is here
is *partial*; one of which nothing is here is copied whole, and its top stays.
"""

from collections.abc import Sequence

from moesim.simulator.choices import tokens_of
from moesim.simulator.control.layer_event import LayerEvents
from moesim.simulator.control.prefetch_queue import PrefetchQueue
from moesim.simulator.control.splits.residency import SplitResidency
from moesim.simulator.control.splits.transfers import SplitTransfers
from moesim.simulator.control.transfers import Outbox
from moesim.simulator.ledger import Counts
from moesim.simulator.messages import LayerRouted, Run
from moesim.simulator.policies.base import CachePolicy, Demand, Group, RunInfo, SchedulePolicy, View
from moesim.simulator.terms import GPU


class SplitEvents(LayerEvents):
    """Serves the demand of one layer of one step after another, part by part."""

    def __init__(
        self,
        run: RunInfo,
        cache: CachePolicy,
        schedule: SchedulePolicy,
        *,
        residency: SplitResidency,
        transfers: SplitTransfers,
        queue: PrefetchQueue,
        view: View,
        counts: Counts,
        out: Outbox,
    ) -> None:
        super().__init__(
            run,
            cache,
            schedule,
            residency=residency,
            transfers=transfers,
            queue=queue,
            view=view,
            counts=counts,
            out=out,
        )
        self._parts = residency
        self._moves = transfers

    def release(self) -> None:
        """Let go of what the last event used."""
        self._run_of.clear()
        super().release()

    def _judge(self, fact: LayerRouted) -> Demand:
        """Tell what is here whole, in part, on its way and not at all; settle prefetches."""
        parts, tokens = self._parts, tokens_of(fact.experts)
        if any(parts.layer(expert) != fact.layer for expert in tokens):
            raise self._stray(fact.layer, list(tokens))
        units_of = {expert: parts.units(expert) for expert in tokens}
        wanted = {unit: tokens[expert] for expert, units in units_of.items() for unit in units}
        self._moves.drop_unwanted(fact.layer, wanted)
        found: dict[str, list[int]] = {"hits": [], "late": [], "partial": [], "misses": []}
        for expert, units in units_of.items():
            here = sum(map(parts.has_room, units))
            kind = "misses"
            if here == len(units):
                kind = "late" if parts.is_loading(expert) else "hits"
            elif here:
                kind = "partial"
            found[kind].append(expert)
        parts.leased.update(wanted)
        ready = [unit for unit in wanted if parts.has_room(unit) and unit not in parts.loading]
        self._moves.settle(ready, [unit for unit in wanted if unit in parts.loading])
        if self._queue.wishes:
            self._queue.cancel_layer(fact.layer)
        self._is_single = len(tokens) == len(fact.experts)
        demand = Demand(fact.step, fact.layer, list(tokens), tokens, **found, gates=fact.gates)
        self._count(demand)
        return demand

    def _count(self, demand: Demand) -> None:
        counts = self.counts
        counts.demands += len(demand.experts)
        counts.hits += len(demand.hits)
        counts.late_hits += len(demand.late)
        counts.partial_hits += len(demand.partial)
        counts.misses += len(demand.misses)
        if self.is_decode:
            counts.decode_demands += len(demand.experts)
            counts.decode_hits += len(demand.hits)

    def _carry_out(self, groups: Sequence[Group], demand: Demand) -> None:
        """Hand over copies of the parts that lack, and the runs they allow, wave after wave.

        A CPU computes whole experts, from the store.
        """
        on_cpu = self._check_plan(groups, demand)
        on_gpu = [expert for expert in demand.experts if expert not in on_cpu]
        absent = [unit for expert in on_gpu for unit in self._parts.absent(expert)]
        waiting = self._moves.copy_missing(absent)
        for group in groups:
            if group.device != GPU:
                self._run_on_cpu(group, demand)
        groups = [group for group in groups if group.device == GPU]
        self._run_parts(groups, demand)
        while waiting:
            self.counts.waves += 1
            waiting = self._next_wave(waiting, [*self._run_of])
            self._run_parts(groups, demand)

    def _run_parts(self, groups: Sequence[Group], demand: Demand) -> None:
        """Hand over the runs of parts that have room and have not run.

        Those that are here come first, in one launch for all tops and one for all bottoms; then
        those under way, one by one if their group says so.
        """
        parts, loading = self._parts, self._parts.loading
        present = parts.parts_L[demand.layer]
        for part in present:
            ready = [
                expert
                for group in groups
                for expert in group.experts
                if self._may_run(unit := part * parts.experts_total + expert)
                and unit not in loading
            ]
            self._run(part, ready, demand)
        for _, experts, each in groups:
            batches = [[expert] for expert in experts] if each else [experts]
            for batch in batches:
                for part in present:
                    first = part * parts.experts_total
                    self._run(part, [e for e in batch if self._may_run(first + e)], demand)

    def _may_run(self, unit: int) -> bool:
        return unit not in self._run_of and self._parts.has_room(unit)

    def _run(self, part: int, experts: Sequence[int], demand: Demand) -> None:
        """Hand over one launch of a part of experts, after the copies that bring them."""
        if not experts:
            return
        first, loading = part * self._parts.experts_total, self._parts.loading
        units = [first + expert for expert in experts]
        after = tuple(loading[unit] for unit in units if unit in loading)
        self._out.number = number = self._out.number + 1
        self._run_of.update(dict.fromkeys(units, number))
        counts = tuple(map(demand.tokens.__getitem__, experts))
        self._out.commands.append(Run(number, tuple(experts), counts, GPU, after, part))
