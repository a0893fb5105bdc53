"""The recorded routes a model may be tested on: of its topology, and none that was fitted on."""

from collections.abc import Iterator
from pathlib import Path

from moesim.simulator.errors import InputError
from moesim.traces import RoutingTrace


def held_out(
    trace: RoutingTrace, fitted: RoutingTrace, tokens: int, requests: int = 1
) -> list[int]:
    """Return the first requests that nothing was fitted on, with enough decode tokens.

    Raises:
        InputError: The trace has too few decode tokens, or requests.
    """
    starts = trace.row_starts().tolist()
    decode = 0
    taken: list[int] = []
    for number in not_fitted(trace, fitted):
        if decode >= tokens and len(taken) >= requests:
            break
        rows = slice(starts[number], starts[number + 1])
        decode += int((~trace.is_prefill_T[rows].astype(bool)).sum())
        taken.append(number)
    if decode < tokens:
        raise InputError(
            f"the trace has {decode} decode tokens that nothing was fitted on, {tokens} are asked "
            "for; lower --warm or --tokens, or give a longer trace"
        )
    if len(taken) < requests:
        raise InputError(
            f"--max-batch {requests}: the trace has {len(taken)} requests that nothing was fitted "
            "on; lower it, or give a longer trace"
        )
    return taken


def not_fitted(trace: RoutingTrace, fitted: RoutingTrace) -> Iterator[int]:
    """Yield which requests of a trace are none of those that were fitted on, as they are read."""
    seen = {fitted.select_requests([n]).expert_TLK[:].tobytes() for n in range(fitted.requests)}
    for number in range(trace.requests):
        if trace.select_requests([number]).expert_TLK[:].tobytes() not in seen:
            yield number


def check_topology(ours: tuple[int, int, int], name: str, trace: RoutingTrace, path: Path) -> None:
    """Refuse the routes of another model.

    Args:
        ours: Layers, experts and top-k of the model.
        name: Of the model.
        trace: The routes.
        path: Their file.

    Raises:
        InputError: Layers, experts or the number chosen differ.
    """
    theirs = (trace.layers, trace.experts, trace.top_k)
    if ours != theirs:
        shown = [
            f"{layers} layers x {experts} experts top-{k}" for layers, experts, k in (theirs, ours)
        ]
        raise InputError(
            f"--trace {path}: has {shown[0]}, {name} {shown[1]}; a trace of another "
            "topology says nothing about a model"
        )
