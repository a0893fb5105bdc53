"""A driver that ends outstanding work in any order it likes, and reports it as late as it may.

Everything that a real machine may do is allowed (design 4.1): copies end in any order but for those
into one place, which one stream keeps in order; a GPU runs its launches in turn, each after its
copies; CPU runs and answers end at any time. The driver polls before it reports a router's choice,
which no launch of the layer before outlives, and, if it likes, while it waits.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from moesim.simulator.controller import Controller
from moesim.simulator.errors import PolicyError
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
    Move,
    RequestArrived,
    RequestEnded,
    Reroute,
    Run,
    RunBegan,
    StepBegan,
    StepEnded,
    Wait,
)
from moesim.simulator.terms import Tier
from moesim.simulator.testing.witness import Witness
from moesim.simulator.workload.demands import Step, Workload

Choose = Callable[[int], int]
"""Picks one of n things: returns a number in [0, n)."""

LONGEST_PAUSE_NS = 5


def seeded(seed: int) -> Choose:
    """Return choices drawn from a seed."""
    rng = np.random.default_rng(seed)
    return lambda n: int(rng.integers(n))


class _DeclaredOnly(Mapping[str, Any]):
    """Signals that refuse to be read under a name that nobody declared."""

    def __init__(self, signals: Mapping[str, Any], declared: frozenset[str]) -> None:
        self._signals = signals
        self._declared = declared

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  a signal's own type
        if name not in self._declared:
            raise PolicyError(f"signal '{name}' is read by a policy without it in its `needs`")
        return self._signals[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._signals)

    def __len__(self) -> int:
        return len(self._signals)


class AdversarialDriver:
    """Serves a workload under a controller whose every call is checked by a `Witness`.

    Args:
        controller: What decides; fresh.
        workload: What is served; fresh.
        budget_bytes: Room for experts, as the controller was built with.
        choose: Decides what ends when; Hypothesis or `seeded`.
        compute: Answers asks: the prefetch policy's own ``compute``.
        declared: What the policies say they need; with it, a signal read without is refused.
    """

    def __init__(
        self,
        controller: Controller,
        workload: Workload,
        *,
        budget_bytes: int,
        choose: Choose,
        compute: Callable[[str, Any], Any] | None = None,
        declared: frozenset[str] | None = None,
    ) -> None:
        self.witness = Witness(controller)
        self._workload = workload
        self._budget_bytes = budget_bytes
        self._draw = choose
        self._compute = compute
        self._declared = declared
        self._now_ns = 0
        self._copies: dict[int, Copy] = {}  # not ended
        self._gpu: list[Run] = []  # not ended, in turn
        self._cpu: dict[int, Run] = {}
        self._asks: dict[int, Ask] = {}
        self._ended: list[Fact] = []  # and not reported
        self._form: FormStep | None = None
        self._done_layer = -1
        self._arrived = 0

    @property
    def commands(self) -> list[Command]:
        """All commands that the controller has given."""
        return self.witness.commands

    def run(self) -> None:
        """Serve everything.

        Raises:
            AssertionError: A law is broken; the message names it.
        """
        for _ in self.play():
            pass

    def play(self) -> Iterator[None]:
        """Serve everything, and pause after every call of the controller."""
        facts: list[Fact] = [RunBegan(self.witness.initial(), self._budget_bytes)]
        yield from self._tell([*facts, *self._arrivals(at_least=1)])
        while True:
            if self._form is not None:
                form, self._form = self._form, None
                yield from self._serve(self._workload.begin(form))
            elif self._asks:
                self._end_one()
                yield from self._tell(self._poll())
            elif self._arrived < self._workload.requests:
                yield from self._tell([*self._poll(), *self._arrivals(at_least=1)])
            else:
                break
        self.witness.close()

    def _serve(self, step: Step) -> Iterator[None]:
        signals = self._guard(step.signals)
        yield from self._tell([StepBegan(step.number, step.requests, step.phases, signals)])
        for layer in range(self._workload.layers):
            yield from self._await_router()
            routed = step.routed(layer)
            routed = routed._replace(signals=self._guard(routed.signals))
            self._done_layer = -1
            yield from self._tell([*self._poll(), routed])
            while self._done_layer != layer:
                assert self._end_one(), f"law 6: layer {layer} waits and nothing is under way"
                if facts := self._poll():
                    yield from self._tell(facts)
        yield from self._await_router()
        facts = [*self._poll(), StepEnded(step.number, step.tokens_out)]
        for request in step.requests:
            if self._workload.is_finished(request):
                facts.append(RequestEnded(request))
        yield from self._tell([*facts, *self._arrivals(at_least=0)])

    def _arrivals(self, at_least: int) -> list[Fact]:
        left = self._workload.requests - self._arrived
        count = min(left, at_least + self._choose(2))
        facts: list[Fact] = []
        for request in range(self._arrived, self._arrived + count):
            prompt_tokens = self._workload.prompt_tokens(request)
            facts.append(RequestArrived(request, prompt_tokens, self._workload.task(request)))
        self._arrived += count
        return facts

    def _await_router(self) -> Iterator[None]:
        """End every launch, and as much else as liked; the router runs after all of them."""
        while self._choose(3) == 0 and self._end_one():
            if self._choose(2) and (facts := self._poll()):
                yield from self._tell(facts)
        while self._gpu:
            self._end_head()
            if self._choose(4) == 0 and (facts := self._poll()):
                yield from self._tell(facts)

    def _guard(self, signals: Mapping[str, Any]) -> Mapping[str, Any]:
        return signals if self._declared is None else _DeclaredOnly(signals, self._declared)

    # What ends

    def _end_one(self) -> bool:
        """End something that may end, and return whether there was anything."""
        copies = [n for n in self._copies if self._may_end(n)]
        cpu = [n for n, run in self._cpu.items() if not any(m in self._copies for m in run.after)]
        can_gpu = bool(self._gpu) and not any(n in self._copies for n in self._gpu[0].after)
        count = len(copies) + len(cpu) + len(self._asks) + can_gpu
        if not count:
            return False
        at = self._choose(count)
        if at < len(copies):
            self._end_copy(copies[at])
            return True
        at -= len(copies)
        if at < len(cpu):
            self._end_cpu_run(cpu[at])
            return True
        at -= len(cpu)
        if at < len(self._asks):
            self._answer([*self._asks][at])
        else:
            self._gpu.pop(0)
        return True

    def _end_head(self) -> None:
        """End the launch that is first in turn, and before it the copies it waits for."""
        for n in self._gpu[0].after:
            self._end_through(n)
        self._gpu.pop(0)

    def _end_through(self, n: int) -> None:
        """End a copy, and before it what it waits for and the copies into the same slot."""
        if n in self._cpu:
            for other in self._cpu[n].after:
                self._end_through(other)
            self._end_cpu_run(n)
        elif n in self._copies:
            for other in (*self._copies[n].after, *self._into_slot_before(n)):
                self._end_through(other)
            self._end_copy(n)

    def _may_end(self, n: int) -> bool:
        open_ = {run.n for run in self._gpu} | self._cpu.keys() | self._copies.keys()
        return open_.isdisjoint(self._copies[n].after) and not self._into_slot_before(n)

    def _into_slot_before(self, n: int) -> list[int]:
        """Return the earlier copies into the same slot; RAM and a neighbour have no slots."""
        place = self._copies[n].dst
        if place.tier is not Tier.VRAM or place.device:
            return []
        return [m for m, copy in self._copies.items() if m < n and copy.dst == place]

    def _end_cpu_run(self, n: int) -> None:
        del self._cpu[n]
        self._ended.append(CpuRunEnded(n))

    def _end_copy(self, n: int) -> None:
        del self._copies[n]
        self._ended.append(CopyEnded(n))

    def _answer(self, n: int) -> None:
        ask = self._asks.pop(n)
        assert self._compute is not None, f"{ask} and nobody to answer"
        self._ended.append(Answered(n, ask.name, self._compute(ask.name, ask.question)))

    def _poll(self) -> list[Fact]:
        facts, self._ended = self._ended, []
        return facts

    # Telling and obeying

    def _tell(self, facts: list[Fact]) -> Iterator[None]:
        self._now_ns += self._choose(LONGEST_PAUSE_NS)
        for command in self.witness.handle(facts, self._now_ns):
            self._obey(command)
        yield

    def _obey(self, command: Command) -> None:
        match command:
            case Copy():
                self._copies[command.n] = command
            case Run():
                if command.device.kind == "gpu":
                    self._gpu.append(command)
                else:
                    self._cpu[command.n] = command
            case Ask():
                self._asks[command.n] = command
            case FormStep():
                self._form = command
            case LayerDone():
                self._done_layer = command.layer
            case Wait() | Reroute() | Move():
                pass
            case _:
                raise AssertionError(f"no policy of today's controller commands {command}")

    def _choose(self, n: int) -> int:
        return self._draw(n) if n > 1 else 0
