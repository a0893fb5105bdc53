"""The driver without a clock: what hits, misses and moves, when every copy ends in no time.

Decisions of policies that do not look at times are those of any other driver; a hit-rate question
needs no more. There are no late hits here, and a prefetch that is handed over is there.
"""

from collections.abc import Callable

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
    RequestArrived,
    RequestEnded,
    Run,
    RunBegan,
    StepBegan,
    StepEnded,
)
from moesim.simulator.serving.arrivals import Arrivals
from moesim.simulator.terms import FOREVER_NS
from moesim.simulator.workload.demands import Workload

__all__ = ["count"]

"""Later than whatever happens."""


def count(
    controller: Controller,
    workload: Workload,
    *,
    budget_bytes: int,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Serve the whole workload; the counts are the controller's.

    Args:
        controller: What decides.
        workload: What is served; whoever arrives later finds that no time has passed.
        budget_bytes: Room for experts, as the controller was built with.
        on_step: Called after every step with the number of tokens processed.
    """
    driver = _Instant(controller)
    arrivals = workload.arrivals()
    driver.tell([RunBegan(controller.initial(), budget_bytes), *_arrived(workload, arrivals)])
    while driver.form is not None:
        step = workload.begin(driver.form)
        driver.form = None
        driver.tell([StepBegan(step.number, step.requests, step.phases, step.signals)])
        for layer in range(workload.layers):
            driver.tell([step.routed(layer)])
        facts: list[Fact] = [StepEnded(step.number, step.tokens_out)]
        for request in step.requests:
            if workload.is_finished(request):
                arrivals.ended(FOREVER_NS)
                facts += [RequestEnded(request), *_arrived(workload, arrivals)]
        if on_step is not None:
            on_step(step.tokens)
        driver.tell(facts)
    controller.close()


class _Instant:
    """Obeys in no time; what has ended is reported with the next facts, or at once if awaited."""

    def __init__(self, controller: Controller) -> None:
        self.form: FormStep | None = None
        self._controller = controller
        self._ended: list[Fact] = []

    def tell(self, facts: list[Fact]) -> None:
        """Report what has ended and what is new, and obey until nothing follows."""
        commands = self._controller.handle([*self._ended, *facts], 0)
        while True:
            self._ended = []
            for command in commands:
                self._obey(command)
            is_awaited = any(type(fact) is not CopyEnded for fact in self._ended)
            if not self._ended or not (is_awaited or self._controller.listens):
                return
            commands = self._controller.handle(self._ended, 0)

    def _obey(self, command: Command) -> None:
        if isinstance(command, Copy):
            self._ended.append(CopyEnded(command.n))
        elif isinstance(command, Run):
            if command.device.kind == "cpu":
                self._ended.append(CpuRunEnded(command.n))
        elif isinstance(command, Ask):
            answer = self._controller.compute(command.name, command.question)
            self._ended.append(Answered(command.n, command.name, answer))
        elif isinstance(command, FormStep):
            self.form = command


def _arrived(workload: Workload, arrivals: Arrivals) -> list[Fact]:
    return [
        RequestArrived(request, workload.prompt_tokens(request), workload.task(request))
        for request, _ in arrivals.take(FOREVER_NS)
    ]
