"""Prompts of a wanted length, for cells that are about the time to a first token.

A request's prompt goes on with prompts of its own task until it is long enough (*stitched*), or
ends early; its answer stays. Routes are taken row by row, so every signal of a row comes with it.
"""

from dataclasses import replace

import numpy as np

from moesim.simulator.serving.drawing import draw
from moesim.traces import RoutingTrace
from moesim.traces.assemble import step_numbers
from moesim.traces.schema import first_axis

# T rows, R requests.


def with_prompts(trace: RoutingTrace, tokens: int) -> tuple[RoutingTrace, str]:
    """Return the same requests with prompts of so many tokens, and what evidence says of that.

    Raises:
        CapabilityError: The trace has no prompts.
    """
    drawn = draw(
        trace,
        trace.requests,
        lengths=([tokens] * trace.requests, trace.output_tokens_R.tolist()),
        in_order=True,
    )
    pieces = [drawn.rows(request) for request in range(trace.requests)]
    rows_T = np.concatenate(pieces)
    is_prefill = [np.arange(len(piece)) < tokens for piece in pieces]
    lengths = [len(piece) for piece in pieces]
    found = replace(
        trace,
        expert_TLK=trace.expert_TLK[rows_T],
        gate_TLK=None if trace.gate_TLK is None else trace.gate_TLK[rows_T],
        step_T=np.concatenate([step_numbers(of_one) for of_one in is_prefill]),
        request_T=np.repeat(np.arange(trace.requests, dtype=np.int32), lengths),
        position_T=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        is_prefill_T=np.concatenate(is_prefill),
        prompt_tokens_R=np.full(trace.requests, tokens, np.int32),
        signals={
            name: array[rows_T] if first_axis(name) == "T" else array
            for name, array in trace.signals.items()
        },
        known=None,
    )
    how = ", stitched" if drawn.stitched else ""
    return found, f"prompts of {tokens} tokens{how}"
