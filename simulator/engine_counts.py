"""The driver without a clock: what hits, misses and moves, when every copy ends in no time.

Decisions of policies that do not look at times are those of any other driver; a hit-rate question
needs no more. There are no late hits here, and a prefetch that is handed over is there.
"""

from collections.abc import Callable

from moesim.simulator.controller import Controller
from moesim.simulator.demands import Workload
from moesim.simulator.messages import (
    Answered,
    Ask,
    Command,
    Copy,
    CopyEnded,
    CpuRunEnded,
    Fact,
    FormStep,
    LayerRouted,
    RequestArrived,
    RequestEnded,
    Run,
    RunBegan,
    StepBegan,
    StepEnded,
)
from moesim.simulator.policies.base import PrefetchPolicy

__all__ = ["count"]


def count(
    controller: Controller,
    workload: Workload,
    *,
    budget_bytes: int,
    prefetch: PrefetchPolicy | None = None,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Serve the whole workload, requests one after another; the counts are the controller's.

    Args:
        controller: What decides.
        workload: What is served.
        budget_bytes: Room for experts, as the controller was built with.
        prefetch: Who answers asks, if any are made.
        on_step: Called after every step with the number of tokens processed.
    """
    ended: list[Fact] = []
    form: FormStep | None = None

    def tell(facts: list[Fact]) -> None:
        nonlocal ended, form
        commands: list[Command] = controller.handle([*ended, *facts], 0)
        ended = []
        while commands:
            for command in commands:
                if isinstance(command, Copy):
                    ended.append(CopyEnded(command.n))
                elif isinstance(command, Run) and command.device.kind == "cpu":
                    ended.append(CpuRunEnded(command.n))
                elif isinstance(command, Ask) and prefetch is not None:
                    answer = prefetch.compute(command.name, command.question)
                    ended.append(Answered(command.n, command.name, answer))
                elif isinstance(command, FormStep):
                    form = command
            commands = []
            if controller.listens or any(not isinstance(fact, CopyEnded) for fact in ended):
                commands, ended = controller.handle(ended, 0), []

    def arrival(request: int) -> list[Fact]:
        if request >= workload.requests:
            return []
        return [RequestArrived(request, workload.prompt_tokens(request), workload.task(request))]

    tell([RunBegan(controller.initial(), budget_bytes), *arrival(0)])
    while form is not None:
        step, form = workload.begin(form), None
        tell([StepBegan(step.number, step.requests, step.phases, step.signals)])
        for layer in range(workload.layers):
            routed = LayerRouted(
                step.number,
                layer,
                step.choices(layer),
                step.gates(layer),
                step.layer_signals(layer),
            )
            tell([routed])
        facts: list[Fact] = [StepEnded(step.number, step.tokens_out)]
        for request in step.requests:
            if workload.is_finished(request):
                facts += [RequestEnded(request), *arrival(request + 1)]
        if on_step is not None:
            on_step(step.tokens)
        tell(facts)
    controller.close()
