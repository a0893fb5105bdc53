"""The routing that was drawn for requests as a trace of their own: what a live server is forced to.

Row by row it is what a replay of the same arrivals reads, so the two serve the same demands.
"""

from dataclasses import replace

import numpy as np

from moesim.simulator.serving.drawing import Drawing
from moesim.traces import RoutingTrace
from moesim.traces.assemble import step_numbers
from moesim.traces.schema import first_axis

__all__ = ["drawn_trace"]

# R served requests, T rows of all of them.


def drawn_trace(trace: RoutingTrace, drawing: Drawing) -> RoutingTrace:
    """Return a copy of the rows of every request, stitched where they were, numbered from 0."""
    requests = len(drawing.first_R)
    rows_R = drawing.all_rows()
    rows_T = np.concatenate(rows_R)
    prefills_R = [
        np.arange(len(rows)) < prompt
        for rows, prompt in zip(rows_R, drawing.prompt_tokens_R, strict=True)
    ]
    signals = {
        name: array[drawing.first_R if first_axis(name) == "R" else rows_T]
        for name, array in trace.signals.items()
    }
    return replace(
        trace,
        known=None,
        expert_TLK=trace.expert_TLK[rows_T],
        gate_TLK=None if trace.gate_TLK is None else trace.gate_TLK[rows_T],
        step_T=np.concatenate([step_numbers(is_prefill_T) for is_prefill_T in prefills_R]),
        request_T=np.repeat(np.arange(requests, dtype=np.int32), [len(rows) for rows in rows_R]),
        position_T=np.concatenate([np.arange(len(rows), dtype=np.int32) for rows in rows_R]),
        is_prefill_T=np.concatenate(prefills_R),
        task_R=tuple(drawing.task_R),
        arrival_ns_R=np.zeros(requests, np.int64),
        prompt_tokens_R=np.array(drawing.prompt_tokens_R, np.int32),
        output_tokens_R=np.array(drawing.output_tokens_R, np.int32),
        signals=signals,
    )
