"""Long traces for benchmarks, made of a short one: its requests drawn again and again.

What is inside a request is as recorded, so its locality is real; that requests recur is not. Such a
trace says ``synthetic``, what it was drawn from and with which seed.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from moesim.traces.chunks import ROWS
from moesim.traces.schema import RoutingTrace


def redrawn(
    trace: RoutingTrace, *, tokens: int, seed: int, rows: int = ROWS
) -> Iterator[RoutingTrace]:
    """Yield pieces of whole requests, drawn with replacement, until there are so many rows.

    Args:
        trace: What is drawn from.
        tokens: Rows of all pieces together, at least; the last request is whole.
        seed: Of the draws.
        rows: Of one piece, at most, where requests allow it.
    """
    lengths = np.diff(trace.row_starts()).tolist()
    notes = f"requests of {trace.content_hash()} drawn with replacement, seed {seed}"
    header = trace.header.model_copy(
        update={
            "evidence": "synthetic",
            "recorder": "moesim trace chunk --tokens",
            "notes": notes,
        }
    )
    source = replace(trace, header=header)
    rng = np.random.default_rng(seed)
    drawn: list[int] = []
    held = made = 0
    while made < tokens:
        request = int(rng.integers(trace.requests))
        if drawn and held + lengths[request] > rows:
            yield source.select_requests(drawn)
            drawn, held = [], 0
        drawn.append(request)
        held += lengths[request]
        made += lengths[request]
    yield source.select_requests(drawn)


def ids_only(trace: RoutingTrace) -> RoutingTrace:
    """Return a trace without gates and signals, and without the rule that needs them."""
    header = trace.header.model_copy(update={"signals": {}})
    return replace(trace, header=header, gate_TLK=None, signals={})
