"""How long each layer waits for its experts' weights: the stall, one figure for each MoE layer.

A layer's stall is the time from its router's choice, as the host reports it, until the last of its
runs on the GPU begins, in as far as none of them runs meanwhile: copies that are waited for, the
decision and the launches. It is taken from calls and jobs, of a replay and of an execution alike.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import TypeGuard

from moesim.simulator.messages import Command, LayerRouted, Run, StepBegan
from moesim.simulator.terms import Phase
from moesim.validation.machine import Log, Span

DECIMALS = 6


def stall_ms(log: Log, spans: Sequence[Span]) -> tuple[float, ...]:
    """Return the mean stall of each layer over all steps that are decode alone.

    Args:
        log: Every call of the controller.
        spans: Every job.
    """
    jobs = {label.n: (begin, end) for _, label, begin, end in spans if isinstance(label, Run)}
    by_layer: dict[int, list[int]] = {}
    is_decode, routed_ns, layer = False, 0, -1
    runs: list[tuple[int, int]] = []
    for facts, now_ns, commands in log:
        for fact in facts:
            if isinstance(fact, LayerRouted | StepBegan):
                if is_decode and runs:
                    by_layer.setdefault(layer, []).append(_stall_ns(routed_ns, runs))
                runs = []
            if isinstance(fact, StepBegan):
                is_decode = all(phase is Phase.DECODE for phase in fact.phases)
            elif isinstance(fact, LayerRouted):
                routed_ns, layer = now_ns, fact.layer
        runs += [jobs[one.n] for one in commands if _is_on_gpu(one) and one.n in jobs]
    if is_decode and runs:
        by_layer.setdefault(layer, []).append(_stall_ns(routed_ns, runs))
    return tuple(
        round(fmean(stalls_ns) / 1e6, DECIMALS) for _, stalls_ns in sorted(by_layer.items())
    )


def _is_on_gpu(command: Command) -> TypeGuard[Run]:
    return isinstance(command, Run) and command.device.kind == "gpu"


def _stall_ns(routed_ns: int, runs: list[tuple[int, int]]) -> int:
    """Return the time from the choice to the last begin in which no run was on."""
    stall_ns, free_ns = 0, routed_ns
    for begin, end in sorted(runs):
        stall_ns += max(0, begin - free_ns)
        free_ns = max(free_ns, end)
    return stall_ns
