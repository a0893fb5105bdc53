"""Stands between a driver and a controller and checks invariants 1 to 6 on every call.

The witness keeps books of its own: which expert's bytes lie at which place, which copy brought
them, which runs may still read them. Where experts are split it counts their parts as the
residency does, ``part * L * E + expert``, and means those wherever it says expert. It believes the
controller's residency only as to who has room, since weights that leave are never announced. Each
finding is an AssertionError that begins with the number of the law in INVARIANTS.md.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from moesim.simulator.control.residency import Residency
from moesim.simulator.controller import Controller
from moesim.simulator.messages import (
    Answered,
    Ask,
    Command,
    Copy,
    CopyEnded,
    CpuRunEnded,
    Fact,
    FormStep,
    LayerDone,
    LayerRouted,
    Move,
    Reroute,
    Run,
    RunBegan,
    StepBegan,
    StepEnded,
    Wait,
    WakeAt,
)
from moesim.simulator.terms import Cause, Place, Tier
from moesim.simulator.testing.tier_witness import TierWitness

Numbered = (Copy, Run, Move, Ask, WakeAt)


class Witness:
    """Looks like the controller to a driver; every call goes through and is checked.

    Attributes:
        controller: Who answers.
        commands: All commands so far.
    """

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.commands: list[Command] = []
        self._residency = controller.residency
        self._tiers = TierWitness(controller.shelves) if controller.shelves else None
        self._now_ns = 0
        self._kinds: list[type] = [type(None)]  # of the commands by number; there is no number 0
        self._on_the_way: dict[int, Copy] = {}
        self._cpu_runs: set[int] = set()
        self._asked: set[int] = set()
        self._content: dict[Place, int] = {}  # whose bytes were last sent to a place
        self._place: dict[int, Place] = {}  # where an expert's bytes were last sent
        self._brought: dict[int, int] = {}  # expert -> the copy that did it
        self._leaves: dict[Place, int] = {}  # the copy that takes what lies there to another tier
        self._in_step = False
        self._layer = -1  # the layer that is routed and not done
        self._lossy = controller.lossy
        self._chosen: list[int] = []  # of that layer, in touch order
        self._to_run: dict[int, int] = {}  # demanded, not handed over -> tokens
        self._was_here: set[int] = set()  # in the cache when the event began
        self._copied: set[int] = set()  # demand copies of the event
        self._reads: dict[int, int] = {}  # expert -> the GPU run that reads it where it is
        self._held: set[int] = set()  # whose room must last until the event's runs have ended

    def initial(self) -> tuple[int, ...]:
        """Return the experts to place before time zero."""
        return self.controller.initial()

    @property
    def residency(self) -> Residency:
        """The controller's."""
        return self.controller.residency

    @property
    def listens(self) -> bool:
        """Whether the end of a copy could be answered."""
        return self.controller.listens

    def compute(self, name: str, question: Any) -> Any:  # noqa: ANN401  the question is the policy's own
        """Answer an ask as the controller's policy does."""
        return self.controller.compute(name, question)

    def handle(self, facts: list[Fact], now_ns: int) -> list[Command]:
        """Pass facts on, and check what comes back.

        Raises:
            AssertionError: A law is broken; the message names it.
        """
        assert now_ns >= self._now_ns, f"law 5: the driver's clock went back to {now_ns} ns"
        self._now_ns = now_ns
        for fact in facts:
            self._learn(fact)
            if self._tiers is not None:
                self._tiers.learn(fact)
        commands = self.controller.handle(facts, now_ns)
        for fact in facts:
            if isinstance(fact, RunBegan):
                self._learn_residents(fact)
        if self._tiers is not None:
            self._tiers.check(commands, self._content)
        for command in commands:
            self._check(command)
        self._check_rooms()
        self._check_not_idle(facts, commands)
        self.commands += commands
        return commands

    def close(self) -> None:
        """End the run, and check that nothing was left open."""
        assert self._layer < 0, f"law 6: the run ended and layer {self._layer} was not done"
        self.controller.close()

    # Facts

    def _learn(self, fact: Fact) -> None:
        if isinstance(fact, CopyEnded):
            del self._on_the_way[fact.n]
        elif isinstance(fact, CpuRunEnded):
            self._cpu_runs.discard(fact.n)
        elif isinstance(fact, Answered):
            self._asked.discard(fact.n)
        elif isinstance(fact, StepBegan):
            self._in_step = True
        elif isinstance(fact, LayerRouted):
            self._begin_event(fact)
        elif isinstance(fact, StepEnded):
            assert self._layer < 0, f"a step ended and layer {self._layer} was not done"
            self._in_step = False
            self._end_event()

    def _learn_residents(self, fact: RunBegan) -> None:
        for expert in fact.residents:
            pool = self._residency.pool_of(expert)
            assert pool is not None, f"law 1: initial expert {expert} has no room"
            self._lay(expert, pool.rooms[expert], 0)
        if self._tiers is not None:
            self._tiers.began()

    def _unit(self, expert: int, part: int) -> int:
        return part * self._residency.experts_total + expert

    def _begin_event(self, fact: LayerRouted) -> None:
        assert self._layer < 0, f"layer {fact.layer} was routed and {self._layer} was not done"
        self._end_event()
        self._layer = fact.layer
        self._chosen = list(fact.experts)
        self._to_run = {
            unit: tokens
            for expert, tokens in Counter(fact.experts).items()
            for unit in self._residency.units(expert)
        }
        self._was_here = {expert for expert in self._to_run if self._is_here(expert)}
        if self._lossy:
            rooms = self._residency.cache_L[fact.layer].rooms
            staged = self._residency.staging.rooms
            self._was_here |= {expert for expert in [*rooms, *staged] if self._is_here(expert)}

    def _is_here(self, expert: int) -> bool:
        """Return whether the expert has room that it cannot lose by what was just reported.

        One that was prefetched into staging for a layer that did not want it leaves when its copy
        ends.
        """
        pool, loading = self._residency.pool_of(expert), self._residency.loading
        if pool is None or not pool.is_staging:
            return pool is not None
        return expert not in loading or loading[expert] in self._on_the_way

    def _end_event(self) -> None:
        """Forget who reads what: every GPU run handed over so far has ended."""
        self._to_run, self._was_here, self._copied = {}, set(), set()
        self._reads, self._held = {}, set()

    # Commands

    def _check(self, command: Command) -> None:
        if isinstance(command, Numbered):
            assert command.n == len(self._kinds), f"{command} should be number {len(self._kinds)}"
        if isinstance(command, Copy):
            self._check_copy(command)
        elif isinstance(command, Run):
            self._check_run(command)
        elif isinstance(command, LayerDone):
            self._check_done(command)
        elif isinstance(command, FormStep | Wait):
            assert not self._in_step, f"{command} inside a step"
        elif isinstance(command, Ask):
            self._asked.add(command.n)
        elif isinstance(command, Reroute):
            self._check_reroute(command)
        elif isinstance(command, Move):
            self._check_move(command)
        if isinstance(command, Numbered):
            self._kinds.append(type(command))

    def _check_reroute(self, command: Reroute) -> None:
        """Take what a lossy schedule made of the choices for what is demanded."""
        assert self._lossy, "law 2: choices were rerouted by policies that do not say so"
        assert command.layer == self._layer, f"law 2: {command}, but layer {self._layer} waits"
        assert not self._reads, f"law 2: {command} after runs of its layer"
        assert not self._copied, f"law 2: {command} after copies of its layer"
        served: list[int | None] = [*self._chosen]
        for at, expert in command.changes:
            assert 0 <= at < len(served), f"law 2: {command} changes choice {at}"
            means = "skip" if expert is None else "reroute"
            assert means in self._lossy, f"law 2: choices may not be changed by {means}: {command}"
            if expert is not None:
                assert self._residency.layer(expert) == self._layer, f"law 2: {command}"
            served[at] = expert
        self._to_run = dict(Counter(expert for expert in served if expert is not None))

    def _check_move(self, move: Move) -> None:
        """Between two steps an expert that is ready may move to where nobody is."""
        assert not self._in_step, f"law 3: {move} inside a step"
        expert = self._unit(move.expert, move.part)
        assert self._place.get(expert) == move.src, f"law 4: {move}, but it does not lie there"
        assert self._brought[expert] not in self._on_the_way, f"law 4: {move}, still on its way"
        self._lay(expert, move.dst, self._brought[expert])

    def _check_after(self, command: Copy | Run, *kinds: type) -> None:
        for n in command.after:
            assert 0 < n < len(self._kinds), f"{command} waits for {n}, not handed over before"
            names = " or ".join(kind.__name__ for kind in kinds)
            assert self._kinds[n] in kinds, f"{command} waits for {n}, which is no {names}"

    def _check_copy(self, copy: Copy) -> None:
        self._check_after(copy, *((Run,) if self._tiers is None else (Run, Copy)))
        expert, place = self._unit(copy.expert, copy.part), copy.dst
        if copy.src in self._content:
            self._leaves[copy.src] = copy.n
        if place.tier is not Tier.VRAM or (place.device and self._tiers is not None):
            self._on_the_way[copy.n] = copy
            return
        leaves = self._leaves.pop(place, 0)
        assert leaves not in self._on_the_way or leaves in copy.after, (
            f"law 4: copy {copy.n} overwrites what copy {leaves} still reads"
        )
        if copy.cause is Cause.DEMAND:
            assert expert in self._to_run, f"law 2: {copy}, not needed by layer {self._layer}"
            assert expert not in self._copied, f"law 2: {copy}, the second in an event"
            assert expert not in self._was_here, (
                f"law 3: expert {expert} was here when layer {self._layer} needed it, and left"
            )
            self._copied.add(expert)
        owner = self._content.get(place)
        if owner is not None and owner != expert:
            assert owner not in self._to_run or owner not in self._was_here | self._copied, (
                f"law 3: expert {owner} is needed and lost its place to {expert} before it ran"
            )
            reader = self._reads.get(owner)
            assert reader is None or reader in copy.after, (
                f"law 4: copy {copy.n} overwrites expert {owner}, which run {reader} may still read"
            )
        if place.offset_bytes is None:  # room without places: whose was taken shows in `after` only
            self._held -= {e for e, reader in self._reads.items() if reader in copy.after}
        self._lay(expert, place, copy.n)
        self._on_the_way[copy.n] = copy

    def _lay(self, expert: int, place: Place, n: int) -> None:
        former = self._content.get(place)
        if former is not None:
            self._place.pop(former, None)
            self._held.discard(former)
            self._reads.pop(former, None)
        old_place = self._place.get(expert)
        if old_place is not None:
            del self._content[old_place]
        self._content[place] = expert
        self._place[expert] = place
        self._brought[expert] = n

    def _check_run(self, run: Run) -> None:
        self._check_after(run, Copy)
        on_gpu = run.device.kind == "gpu"
        for expert, tokens in self._units_of(run):
            wanted = self._to_run.pop(expert, 0)
            assert wanted, f"law 2: {run} runs expert {expert}, which has run or is not needed"
            assert tokens == wanted, f"law 2: {run}: expert {expert} serves {wanted} tokens"
            if not on_gpu:
                continue
            assert expert in self._place, f"law 4: {run} runs expert {expert} without its weights"
            assert self._place[expert].device == run.device.number, (
                f"law 4: {run} runs expert {expert}, which is on another GPU"
            )
            brought = self._brought[expert]
            assert brought not in self._on_the_way or brought in run.after, (
                f"law 4: {run} does not wait for copy {brought}, which brings expert {expert}"
            )
            self._reads[expert] = run.n
            self._held.add(expert)
        if not on_gpu:
            self._cpu_runs.add(run.n)

    def _units_of(self, run: Run) -> Iterator[tuple[int, int]]:
        """Yield what a run computes and for how many tokens; a CPU computes whole experts."""
        for expert, tokens in zip(run.experts, run.tokens, strict=True):
            if run.device.kind == "gpu":
                yield self._unit(expert, run.part), tokens
            else:
                yield from ((unit, tokens) for unit in self._residency.units(expert))

    def _check_done(self, done: LayerDone) -> None:
        assert done.layer == self._layer, f"{done}, but layer {self._layer} waits"
        assert not self._to_run, f"law 2: layer {self._layer} is done without {[*self._to_run]}"
        assert not self._cpu_runs, f"layer {self._layer} is done before CPU runs {self._cpu_runs}"
        self._layer = -1

    # After every call

    def _check_rooms(self) -> None:
        """Check law 1 against the residency, and that what runs keeps its room (law 3)."""
        residency = self._residency
        try:
            residency.check()
        except AssertionError as error:
            raise AssertionError(f"law 1: {error}") from None
        spans = []
        for pool in residency.pools():
            for expert, place in pool.rooms.items():
                laid = self._place.get(expert)
                assert laid == place, f"law 1: expert {expert} has room at {place}, sent to {laid}"
                assert place.tier is Tier.VRAM, f"law 1: {place} is not in VRAM"
                if place.offset_bytes is not None:
                    end_bytes = place.offset_bytes + residency.size(expert)
                    spans.append(((place.device, place.offset_bytes), end_bytes, expert))
        spans.sort()
        for ((gpu, _), end_bytes, one), (begin, _, other) in pairwise(spans):
            assert (gpu, end_bytes) <= begin, f"law 1: experts {one} and {other} share bytes"
        for expert in self._held:
            assert residency.has_room(expert), (
                f"law 3: expert {expert} left before run {self._reads[expert]} had ended"
            )

    def _check_not_idle(self, facts: Sequence[Fact], commands: Sequence[Command]) -> None:
        if self._layer >= 0:
            heard = bool(self._on_the_way) and self.listens
            assert self._cpu_runs or self._asked or heard, (
                f"law 6: layer {self._layer} waits for nothing that could end"
            )
        if any(isinstance(fact, StepEnded) for fact in facts):
            assert any(isinstance(c, FormStep | Wait) for c in commands), (
                "law 6: a step ended, and neither another nor a wait was called for"
            )
